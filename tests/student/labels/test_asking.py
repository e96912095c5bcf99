"""Asking in the background: what is learnt does not hang on the clock, keeps to a budget, survives ends."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from student.labels.table import LabelTable
from student.settings import TrainSettings
from student.trainer import train
from teacher_api.client import TeacherClient, TeacherUnavailable
from teacher_api.command_line import parse
from tests.conftest import StartTeacher, TeacherProcess, environment_without
from tests.student.ends import assert_same_end, checkpoint, metrics, summary
from tests.student.labels.lookup import labels_of
from tests.waiting import metric, wait_for, without_waiting
from worlds.minigrid import MinigridWorld, Vocabulary, layout_of
from worlds.world import Environments

pytestmark = pytest.mark.integration

LAYOUT = layout_of("MiniGrid-LavaGapS5-v0")
STEPS, N = 12, 8
_STUDENT = str(Path(sys.executable).with_name("student"))


def _rollouts(count: int = 1) -> tuple[Vocabulary, list[np.ndarray]]:
    """Rollouts uint8 [T, N, K] of random actions that follow each other."""
    vocabulary, rng = Vocabulary(), np.random.default_rng(1)
    envs = Environments(MinigridWorld(LAYOUT, vocabulary), N, 1)
    rows = [envs.reset()]
    for _ in range(count * STEPS - 1):
        rows.append(envs.step(rng.integers(0, 3, N)).obs_NK)
    return vocabulary, np.split(np.stack(rows), count)


@contextmanager
def _table(
    url: str, vocabulary: Vocabulary, *, deadline_s: float = 30, **settings: Any
) -> Iterator[LabelTable]:
    with closing(
        LabelTable(MinigridWorld(LAYOUT, vocabulary), TeacherClient(url, deadline_s=deadline_s), **settings)
    ) as table:
        yield table


def _flat(rollout_TNK: np.ndarray) -> np.ndarray:
    return rollout_TNK.reshape(-1, LAYOUT.length)


def _first_met(*rollouts: np.ndarray) -> list[bytes]:
    """The states in the order in which they were first met."""
    return list(dict.fromkeys(row.tobytes() for rollout in rollouts for row in _flat(rollout)))


def _learn(table: LabelTable, rollout_TNK: np.ndarray, **spending: Any) -> torch.Tensor:
    """Asks at each step and takes the labels at the end, as a trainer does; which are given [T * N]."""
    return table.labels_of(_asked(table, rollout_TNK), **spending).given_B


def _asked(table: LabelTable, rollout_TNK: np.ndarray) -> np.ndarray:
    """The rows of a rollout [T * N], asked about step by step."""
    rows = [table.rows_of(obs_NK) for obs_NK in rollout_TNK]
    for rows_N in rows:
        table.ask(rows_N)
    return np.concatenate(rows)


def _assert_same_labels(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in ("keys", "probabilities", "status"):
        assert torch.equal(one[name], other[name]), name
    assert (one["asked"], one["store_hits"]) == (other["asked"], other["store_hits"])


def test_what_is_learnt_does_not_hang_on_when_answers_come(teacher_process: StartTeacher) -> None:
    vocabulary, rollouts = _rollouts(3)
    slow = teacher_process("--noise", "0.4", "--delay-ms", "40", "--concurrency", "3")
    fast = teacher_process("--noise", "0.4")
    with _table(slow.url, vocabulary) as seen, _table(fast.url, vocabulary) as looked_up:
        for rollout_TNK in rollouts:
            assert _learn(seen, rollout_TNK).all()
            assert labels_of(looked_up, _flat(rollout_TNK)).given_B.all()
        _assert_same_labels(seen.state(), looked_up.state())
        obs_MK, labels = seen.stored()
        assert [row.tobytes() for row in obs_MK] == _first_met(*rollouts)
        torch.testing.assert_close(labels_of(looked_up, obs_MK).probs_BA, labels.probs_BA, rtol=0, atol=0)


def test_a_question_leaves_as_soon_as_its_state_is_seen(teacher_process: StartTeacher) -> None:
    vocabulary, (rollout_TNK,) = _rollouts()
    teacher = teacher_process()
    with _table(teacher.url, vocabulary) as table:
        _asked(table, rollout_TNK)
        asked = len(_first_met(rollout_TNK))
        wait_for(lambda: metric(teacher, "teacher_questions_total", way="asked") == asked, "all questions")
        assert labels_of(table, _flat(rollout_TNK)[::-1].copy()).given_B.all()
        assert table.asked == asked


def test_late_labels_serve_the_next_look_up(teacher_process: StartTeacher) -> None:
    vocabulary, (rollout_TNK,) = _rollouts()
    teacher = teacher_process("--delay-ms", "1500")
    with _table(teacher.url, vocabulary, late="go-on") as table:
        assert not _learn(table, rollout_TNK).any()
        assert not table.stored()[1].given_B.any()
        wait_for(lambda: bool(labels_of(table, _flat(rollout_TNK)).given_B.all()), "the labels")
        assert table.stored()[1].given_B.all()
        assert table.asked == table.states == len(_first_met(rollout_TNK))


def test_a_checkpoint_in_mid_flight_holds_what_was_answered_and_the_rest_is_asked_again(
    teacher_process: StartTeacher,
) -> None:
    vocabulary, rollouts = _rollouts(2)
    teacher = teacher_process("--delay-ms", "100", "--concurrency", "2")
    with _table(teacher.url, vocabulary) as table:
        _asked(table, rollouts[0])
        wait_for(lambda: table.state()["asked"] > 0, "an answer")
        state = table.state()
        assert state["asked"] == int(table.stored()[1].given_B.sum()) < table.states
    with (
        _table(teacher_process().url, vocabulary) as resumed,
        _table(teacher_process().url, vocabulary) as whole,
    ):
        resumed.restore(state)
        for rollout_TNK in rollouts:
            assert _learn(resumed, rollout_TNK).all()
            assert _learn(whole, rollout_TNK).all()
        _assert_same_labels(resumed.state(), whole.state())


def test_a_budget_is_spread_over_the_run_and_never_exceeded(shared_teacher: TeacherProcess) -> None:
    """A share of the frames gets the same share of the budget; a resumed table goes on with what is left."""
    vocabulary, rollouts = _rollouts(6)
    budget, frames, rng = 16, 6 * STEPS * N, np.random.default_rng(0)
    with _table(shared_teacher.url, vocabulary, budget=budget) as table:
        states: list[dict[str, Any]] = []
        for update, rollout_TNK in enumerate(rollouts):
            frames_left = frames - update * STEPS * N
            rows, scores_B = _flat(rollout_TNK), rng.random(STEPS * N).astype(np.float32)
            before = table.asked + table.store_hits
            unasked = _scores(rows[~_given(table, rows)], scores_B[~_given(table, rows)])
            given_B = _learn(table, rollout_TNK, scores_B=scores_B, frames_left=frames_left, frames=STEPS * N)
            allowed = (budget - before) * STEPS * N // frames_left
            best = sorted(unasked, key=lambda key: -unasked[key])[:allowed]
            assert table.asked + table.store_hits == before + len(best)
            assert {row.tobytes() for row in rows[given_B.numpy()]} & unasked.keys() == set(best)
            states.append(table.state())
        assert table.asked + table.store_hits == budget < table.states
        labels_of(table, _flat(rollouts[0]))
        assert table.asked + table.store_hits == budget
    with _table(shared_teacher.url, vocabulary, budget=budget) as resumed:
        resumed.restore(states[2])
        for rollout_TNK in rollouts:  # without frames_left, all may be spent at once
            _learn(resumed, rollout_TNK)
        assert resumed.asked + resumed.store_hits == budget


def _given(table: LabelTable, rows_BK: np.ndarray) -> np.ndarray:
    obs_MK, labels = table.stored()
    given = {row.tobytes() for row in obs_MK[labels.given_B.numpy()]}
    return np.array([row.tobytes() in given for row in rows_BK])


def _scores(rows_BK: np.ndarray, scores_B: np.ndarray) -> dict[bytes, float]:
    """Summed over the visits of each state."""
    scores: dict[bytes, float] = {}
    for row, score in zip(rows_BK, scores_B, strict=True):
        scores[row.tobytes()] = scores.get(row.tobytes(), 0.0) + float(score)
    return scores


def test_an_allowance_is_never_less_than_one_question(shared_teacher: TeacherProcess) -> None:
    vocabulary, rollouts = _rollouts(4)
    with _table(shared_teacher.url, vocabulary, budget=3) as table:
        counts = []
        for update, rollout_TNK in enumerate(rollouts):
            _learn(table, rollout_TNK, frames_left=100_000 - update, frames=STEPS * N)
            _learn(
                table, rollout_TNK, frames_left=100_000 - update, frames=STEPS * N
            )  # as after a resume: it has been spent
            counts.append(table.asked + table.store_hits)
        assert counts == [1, 2, 3, 3]


def test_an_error_in_the_background_is_raised_at_the_next_look_up_and_nothing_is_lost(
    teacher_process: StartTeacher, capfd: pytest.CaptureFixture[str]
) -> None:
    vocabulary, (rollout_TNK, next_TNK) = _rollouts(2)
    teacher = teacher_process()
    with _table(teacher.url, vocabulary, deadline_s=0.4) as table:
        assert _learn(table, rollout_TNK).all()
        teacher.kill()
        _asked(table, next_TNK)
        with pytest.raises(TeacherUnavailable, match=teacher.url):
            labels_of(table, _flat(next_TNK))
        assert table.stored()[1].given_B.sum() == len(_first_met(rollout_TNK))
        teacher.restart()
        wait_for(lambda: _answered(table, _flat(next_TNK)), "all labels")
        assert table.asked + table.store_hits == len(_first_met(rollout_TNK, next_TNK))
    assert "Traceback" not in capfd.readouterr().err


def _answered(table: LabelTable, obs_BK: np.ndarray) -> bool:
    try:
        return bool(labels_of(table, obs_BK).given_B.all())
    except TeacherUnavailable:
        return False


def test_closing_ends_the_threads_at_once_whatever_they_wait_for(
    teacher_process: StartTeacher, capfd: pytest.CaptureFixture[str]
) -> None:
    vocabulary, (rollout_TNK,) = _rollouts()
    teacher = teacher_process("--delay-ms", "600000")
    with _table(teacher.url, vocabulary) as table:
        _asked(table, rollout_TNK)
        wait_for(lambda: metric(teacher, "teacher_pending") >= len(_first_met(rollout_TNK)), "the questions")
        began = time.monotonic()
        table.close()
        assert time.monotonic() - began < 60
        assert not [thread for thread in threading.enumerate() if thread.name == "asker"]
        assert table.state()["asked"] == 0
        wait_for(lambda: metric(teacher, "teacher_pending") == 0, "the teacher to hear of it")
    assert capfd.readouterr().err == ""


_SMALL = (
    *("--env", "MiniGrid-LavaGapS5-v0", "--environments", "4", "--rollout-steps", "16", "--frames", "320"),
    *("--evaluate-every", "0", "--evaluation-episodes", "5", "--no-progress", "--log-every", "64"),
)


def _start(*arguments: str) -> subprocess.Popen[str]:
    env = environment_without("STUDENT_")
    return subprocess.Popen([_STUDENT, "train", *arguments], stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.parametrize("budget", [None, 20])
def test_sigint_ends_waiting_at_once_and_the_run_resumes_to_the_same_end(
    teacher_process: StartTeacher, tmp_path: Path, budget: int | None
) -> None:
    flags = (*_SMALL, "--teacher-budget", str(budget)) if budget else _SMALL
    quick = teacher_process("--noise", "0.3")
    slow = teacher_process("--noise", "0.3", "--delay-ms", "1000", "--concurrency", "1")
    run, whole = tmp_path / "run", tmp_path / "whole"
    with _start(*flags, "--out", str(run), "--teacher", slow.url) as process:
        assert process.stderr is not None
        wait_for(lambda: metric(slow, "teacher_seconds_count", part="storing") >= 2, "two answers")
        process.send_signal(signal.SIGINT)
        (said,) = without_waiting(process.stderr.read())
        assert said.startswith("student train: interrupted after ")
        assert f"--resume {run}" in said
    assert process.returncode == 130
    assert metric(slow, "teacher_seconds_count", part="storing") < 20  # of the first update's 30 or more
    for flags_of_one in (("--resume", str(run)), (*flags, "--out", str(whole))):
        train(parse(TrainSettings, [*flags_of_one, "--teacher", quick.url, "--no-progress"]))
    assert_same_end(whole, run)
    found = summary(run)
    questions = found["labels"]
    if budget is None:
        assert questions == found["states"]
    else:  # the last rollout may have fewer states left to ask about than the budget allows
        assert budget // 2 < questions <= budget < found["states"]


@pytest.mark.parametrize(("entropy", "all_asked"), [(0.0, True), (5.0, False)])
def test_once_lambda_falls_only_unsure_states_are_asked_about(
    shared_teacher: TeacherProcess, tmp_path: Path, entropy: float, all_asked: bool
) -> None:
    flags = [*_SMALL, "--out", str(tmp_path), "--teacher", shared_teacher.url]
    train(parse(TrainSettings, [*flags, "--ask-when-unsure", str(entropy)]))
    found, first = summary(tmp_path), metrics(tmp_path)[0]
    assert first["labels"] == first["states"] > 0  # lambda has not begun to fall
    assert found["states"] > first["states"]
    assert found["labels"] == (found["states"] if all_asked else first["labels"])


def test_a_run_that_goes_on_without_late_labels_ends_without_waiting_for_them(
    teacher_process: StartTeacher, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = teacher_process("--delay-ms", "60000")
    flags = [*_SMALL, "--out", str(tmp_path), "--teacher", teacher.url, "--late-labels", "go-on"]
    train(parse(TrainSettings, flags))
    found = summary(tmp_path)
    assert found["labels"] == 0 < found["states"]
    # The frames in which lambda falls are those whose labels have come
    assert {row["lambda"] for row in metrics(tmp_path)} == {1.0}
    assert not checkpoint(tmp_path)["labels"]["probabilities"].any()
    assert not [thread for thread in threading.enumerate() if thread.name == "asker"]
    assert capfd.readouterr().err == ""
