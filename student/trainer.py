"""One training run from its first frame to its last: collect, ask, update, evaluate, write down."""

import json
import math
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch

from gridworld.episodes import Evaluation
from student.algorithms.distillation import (
    Labels,
    Replay,
    agreement,
    doubt_at,
    lambda_at,
    target_entropy,
    targets,
    taught_frames,
)
from student.algorithms.networks import ActorCritic
from student.algorithms.registry import algorithm
from student.algorithms.rollout import Rollout, act, collect
from student.environments import EnvironmentFailed, Environments, EpisodeState, Vocabulary, layout_of
from student.labels.table import LabelTable
from student.runs.evaluation import evaluate
from student.runs.folder import CannotWrite, Run
from student.runs.resuming import resumed
from student.settings import TrainSettings
from teacher_api.client import TeacherError, connect
from teacher_api.command_line import CommandFailed
from teacher_api.terminal import Bar, say

_RECENT = 100
"""Training episodes over which success and return are averaged."""


class Stopped(CommandFailed):
    """The run stopped before its end; its folder holds all that is needed to go on."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class _Interrupt(Exception):
    """A signal asked to stop while nothing was half done."""


def train(settings: TrainSettings) -> dict[str, Any]:
    """Trains to the end and returns what summary.json then holds.

    Raises:
        BadRun: the folder cannot be used, or another process trains in it.
        BadKeyFile: the file of the teacher's key holds none.
        TeacherError: the teacher cannot be used from the start.
        EnvironmentFailed: the environment cannot be reset.
        Stopped: interrupted, the teacher was lost, or the environment failed, after a checkpoint was written;
            or the folder takes no more.
    """
    if settings.resume is not None:
        run = Run.open(settings.resume)
        settings = resumed(run, settings)
        with run.held():
            return _Trainer(settings, run).run_to_end()
    if settings.go_on and Run.is_in(settings.out):
        return _go_on(settings)
    return _Trainer(settings, None).run_to_end()


def _go_on(given: TrainSettings) -> dict[str, Any]:
    """As far as told, with the run in --out; what it holds is kept, unless it has no checkpoint yet."""
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
        _ = np.finfo(np.float32), np.finfo(np.float64)  # numpy warns where it meets no denormals at first
        torch.set_flush_denormal(True)  # Adam's moments of weights at rest decay into numbers that are slow
        torch.manual_seed(settings.seed)
        self.vocabulary = Vocabulary()
        self.layout = layout_of(settings.env)
        self.network = ActorCritic(self.layout)
        self.algorithm = algorithm(settings.algo)(self.network, settings)
        self.replay = Replay(self.network, settings)
        self.rng = np.random.default_rng(settings.seed)
        self.envs = Environments(self.layout, self.vocabulary, settings.environments, settings.seed)
        self.frames = self.updates = 0
        self.taught = 0.0
        """Frames on the clock that lambda falls by; see `_clock`."""
        self._told_of_failures = False
        self.seconds = 0.0
        self.recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._interruptible = self._signalled = False
        self._figures: dict[str, str] = {}
        state = run.load_checkpoint() if run else None
        self.labels = self._label_table(state)
        if state is None:
            self.obs_NK = self.envs.reset()
        else:
            self._restore(state)
        self.run = run or Run.create(settings.out, self._config())
        self._mark_boundary()

    def run_to_end(self) -> dict[str, Any]:
        try:
            return self._run_to_end()
        except CannotWrite as error:
            where = self.run.folder
            how = (
                f"--resume {where}"
                if self.run.has_checkpoint
                else f"--out {where} --go-on, and all as before"
            )
            raise Stopped(f"{error}; make room and go on with: student train {how}", 4) from error
        finally:
            self.run.stop_logging()
            self.run.release()
            if self.labels is not None:
                self.labels.close()

    def _run_to_end(self) -> dict[str, Any]:
        settings = self.settings
        self.run.start_logging(self.frames)
        size = settings.environments * settings.rollout_steps
        # An update is never cut short: the last one may go beyond the frames asked for
        total = self.frames + math.ceil(max(settings.frames - self.frames, 0) / size) * size
        self.bar = Bar(total, "frames", done=self.frames, shown=settings.progress)
        try:
            with self._signals(), self.bar:
                while self.frames < settings.frames:
                    row = self._one_update()
                    self._figures = _shown(row) if row else self._figures
                    self.bar.update(self.frames, self._figures)
                    self._tell_of_failures()
                self.bar.update(figures={"evaluating": "", **self._figures})
                return self._finish()
        except (TeacherError, EnvironmentFailed, _Interrupt) as error:
            self._save()
            again = f"go on with: student train --resume {self.run.folder}"
            if isinstance(error, EnvironmentFailed):
                raise Stopped(f"{error}; saved after {self.frames} frames; mend it and {again}", 5) from error
            if isinstance(error, _Interrupt):
                raise Stopped(f"interrupted after {self.frames} frames; {again}", 130) from error
            raise Stopped(f"{error}; saved after {self.frames} frames; {again}", 3) from error

    def _tell_of_failures(self) -> None:
        """Says once, as soon as it can be told, that most questions have no answer."""
        if self.labels is not None and self.labels.useless and not self._told_of_failures:
            self._told_of_failures = True
            labels, asked = self.labels, self.labels.asked + self.labels.store_hits
            say(
                f"note: the teacher gave no answer to {labels.failed:,} of {asked:,} questions so far, and"
                f" the student learns without: {labels.failures}; the first: {labels.failures.example}"
            )

    def _one_update(self) -> dict[str, Any]:
        """Collects, asks, learns; returns what it logged, which is nothing in between."""
        began = time.perf_counter()
        settings = self.settings
        teacher_lambda = lambda_at(self.taught, settings) if self.labels is not None else 0.0
        # A teacher without weight is not asked
        asking = (
            (self.labels.rows_of, self.labels.ask) if self.labels is not None and teacher_lambda > 0 else ()
        )
        rollout = collect(self.network, self.envs, self.obs_NK, settings.rollout_steps, self.rng, *asking)
        labels = self._labels_of(rollout, teacher_lambda)
        self.recent.extend(rollout.ended)
        doubt = doubt_at(self.taught, self._success(), settings)
        drawn_to = targets(labels, settings, doubt)
        figures = self.algorithm.update(rollout, drawn_to, teacher_lambda, self.rng)
        size = rollout.actions_TN.size
        if self.labels is not None and settings.replay_ratio:
            obs_MK, stored = self.labels.stored()
            figures["replay_kl"] = self.replay.learn(obs_MK, stored, size, teacher_lambda, self.rng, doubt)
        self.obs_NK = rollout.last_obs_NK
        before, self.frames, self.updates = self.frames, self.frames + size, self.updates + 1
        self.taught = self._clock()
        took = time.perf_counter() - began
        self.seconds += took
        row: dict[str, Any] = {}
        evaluate_now = _passed(settings.evaluate_every, before, self.frames)
        if evaluate_now or _passed(settings.log_every, before, self.frames):
            which_B = torch.from_numpy(rollout.which_TN.ravel())
            log_probs_BA = torch.from_numpy(rollout.log_probs_UA)[which_B]
            row = {"frames": self.frames, "frames_per_second": size / took, "lambda": teacher_lambda}
            row["doubt"] = doubt if teacher_lambda > 0 else None
            row |= {**self._progress(), **figures}
            row["agreement"] = agreement(log_probs_BA, labels[which_B])
            row["target_entropy"] = target_entropy(drawn_to[which_B])
            if evaluate_now:
                result = self._evaluate(sampled=True)
                row |= {"evaluation_success": result.success, "evaluation_return": result.mean_return}
            row = {name: _finite(value) for name, value in row.items()}
            self.run.log(row)
        self._mark_boundary()
        if self._signalled:
            raise _Interrupt
        if _passed(settings.checkpoint_every, before, self.frames):
            self._save()
        return row

    def _labels_of(self, rollout: Rollout, teacher_lambda: float) -> Labels:
        if self.labels is None or teacher_lambda == 0:
            return Labels.nothing(len(rollout.states_UK), len(self.layout.actions))
        # Where the policy is decided a label changes little
        entropy_U = -(np.exp(rollout.log_probs_UA) * rollout.log_probs_UA).sum(1)
        visits_U = np.bincount(rollout.which_TN.ravel())
        settings = self.settings
        # Where labels may be late, so may the end of the frames in which the teacher is asked
        last = settings.frames if settings.late_labels == "go-on" else taught_frames(settings)
        frames_left = min(last, settings.frames) - self.frames
        frames = rollout.which_TN.size
        return self.labels.labels_of(rollout.rows_U, visits_U * entropy_U, frames_left, frames)

    def _clock(self) -> float:
        """The frames that count for lambda: all, or where labels may be late as large a share as has come.

        A student that does not wait is through the frames of a schedule before the teacher has answered.
        """
        if self.labels is None or self.settings.late_labels == "wait":
            return self.frames
        return max(self.taught, self.frames * self.labels.answered)

    def _success(self) -> float:
        """The share of the recent training episodes that succeeded; 0 before the first one ends."""
        return float(np.mean([total > 0 for total, _ in self.recent] or [False]))

    def _progress(self) -> dict[str, Any]:
        """Figures of the run so far; see docs/reference/metrics.md."""
        returns = [total for total, _ in self.recent]
        row: dict[str, Any] = {
            "return": float(np.mean(returns)) if returns else None,
            "success": self._success() if returns else None,
            "length": float(np.mean([length for _, length in self.recent])) if returns else None,
        }
        return row | _counts(self.labels)

    def _evaluate(self, sampled: bool) -> Evaluation:
        """On held-out seeds, with words and random numbers of its own: training goes on as without it."""
        return evaluate(
            lambda obs_BK: act(self.network, obs_BK)[0],
            self.layout,
            Vocabulary(self.vocabulary.words),
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
            self.layout,
            self.vocabulary,
            client,
            task=self.settings.task,
            allow_change=self.settings.allow_teacher_change,
            late=self.settings.late_labels,
            budget=self.settings.teacher_budget,
            waiting=self._may_be_interrupted,
            on_wait=self._show_wait,
        )
        if labels:
            table.restore(labels)
        table.start()
        return table

    def _show_wait(self, missing: int) -> None:
        self.bar.update(figures={f"{missing:,} labels to come": "", **self._figures})

    def _config(self) -> dict[str, Any]:
        return {
            "settings": self.settings.in_force(),
            "teacher": None if self.labels is None else self.labels.info.model_dump(mode="json"),
        }

    def _mark_boundary(self) -> None:
        """Remembers where the run stands between two updates: the network does not change before the next
        one begins, so this is all that a checkpoint of a broken-off rollout needs beside it."""
        self._boundary = {
            "rng": json.dumps(self.rng.bit_generator.state),
            "episodes": [(state.episode, state.actions) for state in self.envs.states],
        }

    def _save(self) -> None:
        self.run.save_checkpoint(
            self.frames,
            {
                **self._boundary,
                "env": self.layout.env_id,
                "frames": self.frames,
                "updates": self.updates,
                "seconds": self.seconds,
                "taught": self.taught,
                "recent": list(self.recent),
                "words": self.vocabulary.words,
                "network": self.network.state_dict(),
                "algorithm": self.algorithm.state(),
                "replay": self.replay.state(),
                "labels": None if self.labels is None else self.labels.state(),
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.vocabulary.extend(state["words"])
        self.network.load_state_dict(state["network"])
        self.algorithm.restore(state["algorithm"])
        self.replay.restore(state["replay"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.obs_NK = self.envs.restore([EpisodeState(*episode) for episode in state["episodes"]])
        self.frames, self.updates, self.seconds = state["frames"], state["updates"], state["seconds"]
        self.taught = state.get("taught", self.frames)
        self.recent.extend((total, length) for total, length in state["recent"])

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the run at the next point where nothing is half done."""

        def on_signal(number: int, frame: FrameType | None) -> None:
            self._signalled = True
            if self._interruptible:
                raise _Interrupt

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _may_be_interrupted(self) -> Iterator[None]:
        """Waiting for the teacher can be broken off at once: what it answered so far is kept."""
        self._interruptible = True
        try:
            if self._signalled:
                raise _Interrupt
            yield
        finally:
            self._interruptible = False


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
    """JSON has no word for what is undefined but null."""
    return value if value is not None and math.isfinite(value) else None


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """What the progress bar shows of a row, the most important first."""
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
    zeros = ("failed", "questions", "store_hits", "lambda")  # are not worth their room
    return {
        shown: f"{row[name]:,.0f}" if isinstance(row[name], int) or row[name] > 100 else f"{row[name]:.2f}"
        for name, shown in names.items()
        if _finite(row.get(name)) is not None and (row[name] or name not in zeros)
    }
