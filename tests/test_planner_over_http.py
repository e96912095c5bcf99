"""The planner behind a real `teacher serve`, played by the student's own evaluation."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gridworld.planner import plan
from gridworld.tasks import ALL_TASKS, task_of
from student.algorithms.distillation import Labels
from student.labels.table import LabelTable
from student.runs import evaluate as evaluate_command
from student.runs.evaluate import score
from student.runs.policies import Policy, evaluate
from student.runs.settings import EvaluateSettings
from teacher_api.client import TeacherError
from tests.conftest import TeacherProcess
from tests.waiting import LONG_S
from worlds.minigrid import Layout, MinigridWorld, Vocabulary, layout_of
from worlds.world import stacked

pytestmark = pytest.mark.integration

_ENV_IDS = [task.env_ids[0] for task in ALL_TASKS.values()]
_EPISODES = 20


def _planner(layout: Layout, vocabulary: Vocabulary) -> Policy:
    """The planner in this process, without pictures and HTTP."""
    task = task_of(layout.env_id).key

    def policy(obs_BK: NDArray[np.uint8]) -> NDArray[np.float32]:
        plans = [
            plan(layout.view(row), task, vocabulary.decode(layout.words(row)), layout.actions)
            for row in obs_BK
        ]
        probs_BA = np.array([list(p.probabilities.values()) for p in plans], np.float32)
        with np.errstate(divide="ignore"):
            return np.log(probs_BA)

    return policy


@pytest.mark.parametrize("env_id", _ENV_IDS)
def test_the_planner_always_succeeds_and_is_the_same_over_http(
    shared_teacher: TeacherProcess, env_id: str
) -> None:
    settings = EvaluateSettings(policy=shared_teacher.url, env=env_id, episodes=_EPISODES, seed=3)
    report = score(settings)
    assert report["sampled"]["success"] == report["argmax"]["success"] == 1.0
    layout, vocabulary = layout_of(env_id), Vocabulary()
    policy = _planner(layout, vocabulary)
    for name, rng in (("sampled", np.random.default_rng(3)), ("argmax", None)):
        assert report[name] == evaluate(policy, MinigridWorld(layout, vocabulary), _EPISODES, rng).report()


def test_a_state_without_an_answer_has_even_useful_actions(
    shared_teacher: TeacherProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Takes the answer of every fifth state away."""
    settings = EvaluateSettings(policy=shared_teacher.url, env="MiniGrid-Fetch-5x5-N2-v0", episodes=_EPISODES)
    labels_of = LabelTable.labels_of

    def some(table: LabelTable, rows_B: NDArray[np.intp]) -> Labels:
        labels = labels_of(table, rows_B)
        return Labels(labels.probs_BA, labels.given_B & torch.from_numpy(rows_B % 5 != 0))

    monkeypatch.setattr(LabelTable, "labels_of", some)
    monkeypatch.setattr(LabelTable, "failed", property(lambda table: table.states // 5))
    world, policy, _ = evaluate_command._teacher(settings)
    first = world.environment(lambda _: 1).reset()
    probs_BA = np.exp(policy(stacked([first])))
    assert probs_BA.tolist() == [pytest.approx([0.25] * 4 + [0] * 3)]
    assert 0.3 < score(settings)["sampled"]["success"] < 1
    assert "note: " + shared_teacher.url + " gave no answer for " in capsys.readouterr().err
    monkeypatch.setattr(LabelTable, "useless", True)
    with pytest.raises(TeacherError, match="gave no answer for"):
        score(settings)


def test_student_evaluate_reports_the_teacher(shared_teacher: TeacherProcess, tmp_path: Path) -> None:
    student, out = str(Path(sys.executable).with_name("student")), tmp_path / "report.json"
    command = [student, "evaluate", shared_teacher.url, "--env", "MiniGrid-Fetch-5x5-N2-v0"]
    done = subprocess.run(
        [*command, "--episodes", str(_EPISODES), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    for name in ("sampled", "argmax"):
        assert (report[name]["episodes"], report[name]["success"]) == (_EPISODES, 1.0)
        row = next(line.split() for line in done.stdout.splitlines() if line.startswith(name))
        assert row[1:3] == [str(_EPISODES), "1.000"]
