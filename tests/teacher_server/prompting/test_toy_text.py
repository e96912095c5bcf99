"""The prompt set `toy-text`: a checkpoint is asked about environments that are not MiniGrid's."""

import json
from pathlib import Path

import numpy as np
import pytest

from student.settings import TrainSettings
from student.trainer import train
from teacher_api.client import TeacherClient
from teacher_api.schemas import Question
from teacher_server.prompting.prompt_set import load_prompt_set
from tests.conftest import StartTeacher
from tests.waiting import LONG_S, wait_until_ready
from tools.random_checkpoint import make_checkpoint
from worlds.registry import world_of

_ENVIRONMENTS = {
    "frozen_lake": "FrozenLake-v1@is_slippery=false",
    "cliff_walking": "CliffWalking-v1",
    "taxi": "Taxi-v4",
}


@pytest.mark.unit
@pytest.mark.parametrize(("task", "env_id"), _ENVIRONMENTS.items())
def test_a_tasks_actions_are_the_environments(task: str, env_id: str) -> None:
    prompts = load_prompt_set("toy-text")
    assert prompts.tasks[task] == world_of(env_id).actions
    assert len(prompts.examples[task]) >= 3
    for example in prompts.examples[task]:
        assert max(example.probabilities.values()) > 0.9


@pytest.mark.integration
def test_a_checkpoint_answers_and_a_student_learns_from_it(
    teacher_process: StartTeacher, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "checkpoint")
    flags = ["--engine", "transformers", "--device", "cpu", "--min-label-mass", "0", "--prompts", "toy-text"]
    teacher = teacher_process("--teacher", "prompted", "--model", str(tmp_path / "checkpoint"), *flags)
    wait_until_ready(teacher)
    with TeacherClient(teacher.url, deadline_s=LONG_S) as client:
        for task, env_id in _ENVIRONMENTS.items():
            world = world_of(env_id)
            world.draws = True
            obs_K = np.frombuffer(world.environment(lambda episode: 1).reset(), np.uint8)
            question = Question.about(world.picture(obs_K), mission="", task=task, actions=world.actions)
            answer = client.ask(question)
            assert list(answer.probabilities or {}) == list(world.actions)
            assert sum((answer.probabilities or {}).values()) == pytest.approx(1)
            said = json.loads(answer.analysis, strict=False)
            assert list(said) == ["agent", "target", "hazards", "direction", "reasoning"]
    settings = {"env": _ENVIRONMENTS["frozen_lake"], "task": "frozen_lake", "teacher": teacher.url}
    more = {"frames": 256, "out": tmp_path / "run", "progress": False, "evaluation_episodes": 2}
    summary = train(TrainSettings.model_validate(settings | more))
    assert 0 < summary["questions"] + summary["store_hits"] <= 16
    assert summary["failed"] == 0
