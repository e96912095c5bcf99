"""One training run: collect a rollout, ask the teacher, update, evaluate, log, save checkpoints."""

import json
import math
import time
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gridworld.episodes import Evaluation
from student.algorithms.distillation import (
    Labels,
    Replay,
    agreement,
    doubt_at,
    lambda_at,
    lambda_frames,
    target_entropy,
    targets,
)
from student.algorithms.experience import Experience
from student.algorithms.judgement import judged
from student.algorithms.networks import network_of
from student.algorithms.registry import algorithm
from student.algorithms.rewards import RewardScale
from student.algorithms.rollout import Rollout, act, collect
from student.labels.table import LabelTable
from student.runs.folder import CannotWrite, Run
from student.runs.policies import evaluate
from student.runs.resuming import resumed
from student.settings import TrainSettings
from teacher_api.client import TeacherError, connect
from teacher_api.command_line import INTERRUPTED, CommandFailed
from teacher_api.interrupts import Interrupted, Interrupts
from teacher_api.terminal import Bar, say
from worlds.registry import world_of
from worlds.world import EnvironmentFailed, Environments, EpisodeState, is_repeatable

_EXPERIENCE_SHARE = 0.5
"""Steps of replay that learn what experience has decided, as a share of the first steps that learn labels."""
_RECENT = 100
"""Newest training episodes, over which success, return and length are averaged."""


class Stopped(CommandFailed):
    """A run stopped before its end; its folder holds all that resuming it needs."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


def train(settings: TrainSettings) -> dict[str, Any]:
    """Trains to the end and returns the content of summary.json.

    Raises:
        BadRun: the folder cannot be used, or another process trains in it.
        BadKeyFile: the file of the teacher's key holds no key.
        TeacherError: the teacher cannot be used at the start.
        EnvironmentFailed: the environment cannot be reset at the start.
        Stopped: the run was interrupted, lost its teacher, or its environment failed, and a checkpoint was
            written; or the folder cannot be written.
    """
    if settings.resume is not None:
        run = Run.open(settings.resume)
        settings = resumed(run, settings)
        with run.held():
            return _Trainer(settings, run).run_to_end()
    if settings.go_on and Run.is_in(settings.out):
        return _resume_or_start(settings)
    return _Trainer(settings, None).run_to_end()


def _resume_or_start(given: TrainSettings) -> dict[str, Any]:
    """Resumes the run in `out`, starts it again if it has no checkpoint, or returns its summary."""
    run = Run.open(given.out)
    settings, summary = resumed(run, given), run.summary()
    if summary is not None and summary["frames"] >= settings.frames:
        return summary
    with run.held():
        if run.has_checkpoint:
            return _Trainer(settings, run).run_to_end()
        run.clear()
    return _Trainer(settings, None).run_to_end()


class _Trainer:
    def __init__(self, settings: TrainSettings, run: Run | None) -> None:
        self.settings = settings
        torch.set_num_threads(settings.threads)
        _ = np.finfo(np.float32), np.finfo(np.float64)  # computed later, numpy warns of missing denormals
        # Adam's moments of unused weights decay into denormals, which are slow
        torch.set_flush_denormal(True)
        torch.manual_seed(settings.seed)
        self.world = world_of(settings.env, settings.success_above)
        self.network = network_of(self.world)
        self.algorithm = algorithm(settings.algo)(self.network, settings)
        self.replay = Replay(self.network, settings)
        judging = settings.judge_labels and settings.teacher != "none"
        self.experience = Experience(len(self.world.actions)) if judging else None
        self.rewards = None
        if not self.world.rewards_success:
            self.rewards = RewardScale(settings.environments, settings.gamma)
        self.rng = np.random.default_rng(settings.seed)
        self.envs = Environments(self.world, settings.environments, settings.seed)
        self.frames = self.updates = 0
        self.schedule_frames = 0.0
        """Frames by which lambda falls; see `_schedule_frames`."""
        self._reported_failures = False
        self.seconds = 0.0
        self.recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._interrupts = Interrupts()
        self._figures: dict[str, str] = {}
        state = run.load_checkpoint() if run else None
        self.labels = self._label_table(state)
        self.world.draws = self.labels is not None
        if state is None:
            self.obs_NK = self.envs.reset()
        else:
            self._restore(state)
        self.run = run or Run.create(settings.out, self._config())
        if run is None and self.world.keeps_pictures and not is_repeatable(self.world):
            say(
                f"note: in {self.world.env_id} an episode does not follow from its seed and its actions; a"
                " resumed run will not end as an uninterrupted one"
            )
        self._mark_boundary()

    def run_to_end(self) -> dict[str, Any]:
        try:
            return self._run_to_end()
        except CannotWrite as error:
            where = self.run.folder
            how = f"`resume` {where}" if self.run.has_checkpoint else "`go_on` and the same settings"
            raise Stopped(f"{error}; free disk space and resume with {how}", 4) from error
        finally:
            self.run.stop_logging()
            self.run.release()
            if self.labels is not None:
                self.labels.close()

    def _run_to_end(self) -> dict[str, Any]:
        settings = self.settings
        self.run.start_logging(self.frames)
        total = max(settings.frames, self.frames)
        self.bar = Bar(total, "frames", done=self.frames, shown=settings.progress)
        try:
            with self._interrupts.handled(), self.bar:
                while self.frames < settings.frames:
                    row = self._one_update()
                    self._figures = _shown(row) if row else self._figures
                    self.bar.update(min(self.frames, total), self._figures)
                    self._report_failures()
                self.bar.update(figures={"evaluating": "", **self._figures})
                return self._finish()
        except (TeacherError, EnvironmentFailed, Interrupted) as error:
            self._save()
            again = f"resume with `resume` {self.run.folder}"
            if isinstance(error, EnvironmentFailed):
                why = f"{error}; saved after {self.frames} frames; repair the environment and {again}"
                raise Stopped(why, 5) from error
            if isinstance(error, Interrupted):
                raise Stopped(f"interrupted after {self.frames} frames; {again}", INTERRUPTED) from error
            raise Stopped(f"{error}; saved after {self.frames} frames; {again}", 3) from error

    def _report_failures(self) -> None:
        """Prints once, as soon as it is known, that the teacher does not answer most questions."""
        if self.labels is not None and self.labels.useless and not self._reported_failures:
            self._reported_failures = True
            labels, asked = self.labels, self.labels.asked + self.labels.store_hits
            say(
                f"note: the teacher gave no answer to {labels.failed:,} of {asked:,} questions so far, and"
                f" their states have no label: {labels.failures}; for example: {labels.failures.example}"
            )

    def _one_update(self) -> dict[str, Any]:
        """Collects a rollout and learns from it; returns the row that it logged, empty if none was due."""
        began = time.perf_counter()
        settings = self.settings
        teacher_lambda = lambda_at(self.schedule_frames, settings) if self.labels is not None else 0.0
        if settings.recover and self.labels is not None and teacher_lambda == 0:
            self.algorithm.recover(1 - self._success())
        self.world.draws = teacher_lambda > 0
        rollout = self._collect(teacher_lambda)
        labels_U = self._labels_of(rollout, teacher_lambda)
        # From here on nothing waits, so that an interrupted update leaves no trace
        rollout = self._taken_in(rollout, teacher_lambda)
        doubt = doubt_at(self.schedule_frames, self._success(), settings)
        size = rollout.actions_TN.size
        share = self._replay_share(teacher_lambda)
        targets_U = targets(labels_U, settings, doubt)
        if share > 0 and (settings.replay_ratio or self.experience is not None):
            obs_MK, targets_M = self._all_targets(teacher_lambda, doubt)
            if teacher_lambda == 0:  # as much as the student meets what experience has decided
                share *= float(targets_M.given_B.float()[rollout.rows_U[rollout.which_TN.ravel()]].mean())
            elif self.experience is not None:
                targets_U = targets_M[torch.from_numpy(rollout.rows_U)]
        figures = self.algorithm.update(rollout, targets_U, teacher_lambda, self.rng)
        steps = self.replay.steps_due(size, share)
        if self.labels is not None and settings.replay_ratio:
            figures["replay_kl"] = (
                self.replay.learn(obs_MK, targets_M, steps, self.rng) if steps else math.nan
            )
        self.obs_NK = rollout.last_obs_NK
        before, self.frames, self.updates = self.frames, self.frames + size, self.updates + 1
        self.schedule_frames = self._schedule_frames()
        took = time.perf_counter() - began
        self.seconds += took
        row: dict[str, Any] = {}
        evaluate_now = _passed(settings.evaluate_every, before, self.frames)
        if evaluate_now or _passed(settings.log_every, before, self.frames):
            which_B = torch.from_numpy(rollout.which_TN.ravel())
            log_probs_BA = torch.from_numpy(rollout.log_probs_UA)[which_B]
            row = {"frames": self.frames, "frames_per_second": size / took, "lambda": teacher_lambda}
            row["doubt"] = doubt if teacher_lambda > 0 else None
            row |= {**self._recent_figures(), **figures}
            row["agreement"] = agreement(log_probs_BA, labels_U[which_B])
            row["target_entropy"] = target_entropy(targets_U[which_B])
            if evaluate_now:
                result = self._evaluate(sampled=True)
                row |= {"evaluation_success": result.success, "evaluation_return": result.mean_return}
            row = {name: _finite(value) for name, value in row.items()}
            self.run.log(row)
        self._mark_boundary()
        self._interrupts.check()
        if _passed(settings.checkpoint_every, before, self.frames):
            self._save()
        return row

    def _collect(self, teacher_lambda: float) -> Rollout:
        """Collects a rollout; asks about its states while lambda is above 0."""
        table, steps = self.labels, self.algorithm.settings.rollout_steps
        arguments = (self.network, self.envs, self.obs_NK, steps, self.rng)
        taught = teacher_lambda > 0  # with lambda 0 the labels have no weight, so the teacher is not asked
        if table is None or not (taught or self._records(teacher_lambda)):
            return collect(*arguments)
        asked_at_once = taught and self._asks_about_all(teacher_lambda)
        return collect(*arguments, table.rows_of, table.ask if asked_at_once else lambda rows: None)

    def _records(self, teacher_lambda: float) -> bool:
        """Whether rollouts are added to the experience."""
        experience = self.experience
        return experience is not None and not experience.full and experience.useful(taught=teacher_lambda > 0)

    def _taken_in(self, rollout: Rollout, teacher_lambda: float) -> Rollout:
        """Adds a rollout to the experience and its episodes to the newest; returns it with scaled rewards."""
        if self._records(teacher_lambda):
            self._record(rollout)
        self.recent.extend(rollout.ended)
        return rollout if self.rewards is None else self.rewards.scaled(rollout)

    def _record(self, rollout: Rollout) -> None:
        """Adds a rollout whose states have rows in the label table to the experience.

        Experience ends where steps within an episode are rewarded: what is a success then depends on all of
        the episode, and not on the state and what follows.
        """
        assert self.experience is not None
        assert self.labels is not None
        if rollout.rewards_TN[~rollout.ended_TN].any():
            self.experience = None
        else:
            self.experience.add(rollout, self.labels.rows_of(rollout.last_obs_NK))

    def _asks_about_all(self, teacher_lambda: float) -> bool:
        return self.settings.ask_when_unsure is None or teacher_lambda == self.settings.teacher_lambda

    def _replay_share(self, teacher_lambda: float) -> float:
        """Returns the share of the settings' replay that is due: falls with lambda and with success."""
        taught = teacher_lambda / self.settings.teacher_lambda if self.settings.teacher_lambda else 0.0
        if not self._records(0) or not self.settings.replay_ratio:
            return taught  # what experience has decided is learned only while it grows
        return max(taught, _EXPERIENCE_SHARE * min(2 * (1 - self._success()), 1.0))

    def _all_targets(self, teacher_lambda: float, doubt: float) -> tuple[NDArray[np.uint8], Labels]:
        """Returns all M states numbered so far, uint8 [M, K], and their distillation targets."""
        assert self.labels is not None
        obs_MK, labels_M = self.labels.stored()
        targets_M = targets(labels_M, self.settings, doubt)
        if self.experience is None:
            return obs_MK, targets_M
        values, taught = self.experience.values(len(obs_MK)), teacher_lambda > 0
        return obs_MK, judged(targets_M, values, lambda rows: self._policy(obs_MK[rows]), taught=taught)

    def _policy(self, obs_BK: NDArray[np.uint8]) -> torch.Tensor:
        """Returns the student's probabilities [B, A]."""
        return torch.from_numpy(act(self.network, obs_BK)[0]).exp()

    def _labels_of(self, rollout: Rollout, teacher_lambda: float) -> Labels:
        if self.labels is None or teacher_lambda == 0:
            return Labels.nothing(len(rollout.states_UK), len(self.world.actions))
        # The value of a label: where the policy's entropy is low, a label changes little
        entropy_U = -(np.exp(rollout.log_probs_UA) * rollout.log_probs_UA).sum(1)
        visits_U = np.bincount(rollout.which_TN.ravel())
        settings = self.settings
        # With late labels lambda falls later, and the teacher is asked for longer
        last = settings.frames if settings.late_labels == "go-on" else lambda_frames(settings)
        frames_left = min(last, settings.frames) - self.frames
        frames = rollout.which_TN.size
        wanted_U = None if self._asks_about_all(teacher_lambda) else entropy_U > settings.ask_when_unsure
        return self.labels.labels_of(
            rollout.rows_U, visits_U * entropy_U, frames_left, frames, wanted_B=wanted_U
        )

    def _schedule_frames(self) -> float:
        """Returns the frames by which lambda falls: all, or with late labels the share that was answered.

        A student that does not wait would pass the frames of a schedule before the teacher has answered.
        """
        if self.labels is None or self.settings.late_labels == "wait":
            return self.frames
        return max(self.schedule_frames, self.frames * self.labels.answered)

    def _success(self) -> float:
        """Returns the share of the newest training episodes that succeeded; 0 before the first one ends."""
        return float(np.mean([total > self.world.success_above for total, _ in self.recent] or [False]))

    def _recent_figures(self) -> dict[str, Any]:
        """Returns means over the newest episodes and counts of labels; see docs/reference/metrics.md."""
        returns = [total for total, _ in self.recent]
        row: dict[str, Any] = {
            "return": float(np.mean(returns)) if returns else None,
            "success": self._success() if returns else None,
            "length": float(np.mean([length for _, length in self.recent])) if returns else None,
        }
        return row | _counts(self.labels)

    def _evaluate(self, sampled: bool) -> Evaluation:
        """Plays held-out episodes, with a vocabulary and random numbers apart from those of training."""
        return evaluate(
            lambda obs_BK: act(self.network, obs_BK)[0],
            self.world.copy(),
            self.settings.evaluation_episodes,
            np.random.default_rng((self.settings.seed, self.frames)) if sampled else None,
        )

    def _finish(self) -> dict[str, Any]:
        self._save()
        sampled, greedy = self._evaluate(sampled=True).report(), self._evaluate(sampled=False).report()
        summary = {
            "env": self.settings.env,
            "algorithm": self.settings.algo,
            "preset": self.settings.preset,
            "success_above": self.world.success_above,
            "seed": self.settings.seed,
            "success": sampled["success"],
            "return": sampled["return"],
            "sampled": sampled,
            "argmax": greedy,
            "frames": self.frames,
            "seconds": self.seconds,
            "frames_per_second": self.frames / self.seconds if self.seconds else None,
            "teacher": None if self.labels is None else self.labels.identity,
            "targets": None if self.labels is None else self.settings.targets,
            **_counts(self.labels),
            "failures": [] if self.labels is None else self.labels.failures.report(),
        }
        self.run.summarise(summary)
        return summary

    def _label_table(self, state: dict[str, Any] | None) -> LabelTable | None:
        if self.settings.teacher == "none":
            return None
        labels = state["labels"] if state else None
        key_file, wait_s = self.settings.teacher_key_file, self.settings.teacher_wait_s
        client = connect(self.settings.teacher, key_file=key_file, wait_s=wait_s)
        table = LabelTable(
            self.world,
            client,
            task=self.settings.task,
            allow_change=self.settings.allow_teacher_change,
            late=self.settings.late_labels,
            budget=self.settings.teacher_budget,
            selective=self.settings.ask_when_unsure is not None,
            waiting=self._interrupts.allowed,
            on_wait=self._show_wait,
        )
        if labels:
            table.restore(labels)
        table.start()
        return table

    def _show_wait(self, missing: int) -> None:
        self.bar.update(figures={f"waiting for {missing:,} labels": "", **self._figures})

    def _config(self) -> dict[str, Any]:
        return {
            "settings": self.settings.in_force(),
            "teacher": None if self.labels is None else self.labels.info.model_dump(mode="json"),
        }

    def _mark_boundary(self) -> None:
        """Keeps the state between two updates that the next rollout changes.

        The network changes only in an update, so a checkpoint of an interrupted rollout needs nothing else.
        """
        self._boundary = {
            "rng": json.dumps(self.rng.bit_generator.state),
            "episodes": [(state.episode, state.actions) for state in self.envs.states],
        }

    def _save(self) -> None:
        self.run.save_checkpoint(
            self.frames,
            {
                **self._boundary,
                "env": self.world.env_id,
                "frames": self.frames,
                "updates": self.updates,
                "seconds": self.seconds,
                "taught": self.schedule_frames,
                "recent": list(self.recent),
                "words": list(self.world.words),
                "network": self.network.state_dict(),
                "algorithm": self.algorithm.state(),
                "replay": self.replay.state(),
                "labels": None if self.labels is None else self.labels.state(),
                "experience": None if self.experience is None else self.experience.state(),
                "rewards": None if self.rewards is None else self.rewards.state(),
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.world.learn_words(state["words"])
        self.network.load_state_dict(state["network"])
        self.algorithm.restore(state["algorithm"])
        self.replay.restore(state["replay"])
        if state["experience"] is None:
            self.experience = None
        elif self.experience is not None:
            self.experience.restore(state["experience"])
        if self.rewards is not None and state.get("rewards"):  # earlier versions did not scale rewards
            self.rewards.restore(state["rewards"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.obs_NK = self.envs.restore([EpisodeState(*episode) for episode in state["episodes"]])
        self.frames, self.updates, self.seconds = state["frames"], state["updates"], state["seconds"]
        self.schedule_frames = state.get("taught", self.frames)
        self.recent.extend((total, length) for total, length in state["recent"])


def _counts(labels: LabelTable | None) -> dict[str, int]:
    if labels is None:
        return {"states": 0, "questions": 0, "store_hits": 0, "failed": 0}
    return {
        "states": labels.states,
        "questions": labels.asked,
        "store_hits": labels.store_hits,
        "failed": labels.failed,
    }


def _passed(every: int, before: int, now: int) -> bool:
    return every > 0 and before // every < now // every


def _finite(value: float | None) -> float | None:
    """Returns None for what is undefined: JSON knows neither nan nor infinity."""
    return value if value is not None and math.isfinite(value) else None


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """Returns the figures of a row that the progress bar shows, the most important first."""
    names = {
        "success": "success",
        "failed": "failed",
        "questions": "asked",
        "return": "return",
        "frames_per_second": "frames/s",
        "kl": "KL",
        "lambda": "lambda",
        "agreement": "agreement",
        "store_hits": "stored",
    }
    hidden_if_0 = ("failed", "questions", "store_hits", "lambda")
    return {
        shown: f"{row[name]:,.0f}" if isinstance(row[name], int) or row[name] > 100 else f"{row[name]:.2f}"
        for name, shown in names.items()
        if _finite(row.get(name)) is not None and (row[name] or name not in hidden_if_0)
    }
