"""Samples: labelled states of the task families, determined by a seed."""

import json
from typing import Any

import numpy as np
import pytest
from minigrid.minigrid_env import MiniGridEnv

from gridworld.pictures import UnreadablePicture, read
from gridworld.planner import NoPlan, plan
from gridworld.tasks import EVALUATION_SEEDS, TASKS, UnknownTask
from gridworld.views import code
from teacher_api.command_line import CannotStart
from teacher_tools.score.perception import judge, read_analysis
from teacher_tools.train import samples
from teacher_tools.train.samples import Sample, Sampler, analysis_of

pytestmark = pytest.mark.unit

_ENVS = tuple(task.env_id for task in TASKS.values())
_LARGE = ("MiniGrid-Fetch-8x8-N3-v0", "MiniGrid-GoToDoor-8x8-v0", "MiniGrid-Dynamic-Obstacles-16x16-v0")


def _keys(samples: list[Sample]) -> list[Any]:
    return [(sample.scene.key, tuple(sample.probabilities.items())) for sample in samples]


def test_a_block_is_determined_by_the_seed_and_its_number() -> None:
    sampler = Sampler(_ENVS, seed=3)
    first, second = _keys(sampler.block(0, 40)), _keys(sampler.block(1, 40))
    assert first != second
    assert _keys(Sampler(_ENVS, seed=3).block(1, 40)) == second
    assert _keys(sampler.block(0, 40)) == first
    assert _keys(Sampler(_ENVS, seed=4).block(0, 40)) != first


def test_all_tasks_get_as_many_samples_with_the_planners_labels() -> None:
    samples = Sampler(_ENVS, seed=0).block(0, 200)
    for task in TASKS.values():
        of_task = [sample for sample in samples if sample.scene.task == task.key]
        assert len(of_task) == 50
        for sample in of_task:
            if sample.outside is None:
                planned = plan(sample.scene.view, task.key, sample.scene.mission, task.useful)
                assert sample.probabilities == planned.probabilities
                assert sample.optimal == planned.best
        # Including actions that end an episode
        assert {action for sample in of_task for action in sample.optimal} == set(task.useful)
        assert {sample.scene.view.heading for sample in of_task} == {0, 1, 2, 3}


def test_some_pictures_show_what_the_planner_has_no_answer_for() -> None:
    samples = Sampler(_ENVS, seed=0).block(0, 2000)
    outside = [sample for sample in samples if sample.outside is not None]
    assert 80 < len(outside) < 125
    shown: list[Any] = [(sample.scene, sample.outside.view) for sample in outside if sample.outside]
    grids = [(scene, view) for scene, view in shown if view is not None]
    assert 0.4 < len(grids) / len(outside) < 0.75
    for sample in outside:
        assert set(sample.probabilities.values()) == {1 / len(sample.probabilities)}
        assert sample.optimal == ()
    for scene, view in grids:
        with pytest.raises(NoPlan):
            plan(view, scene.task, scene.mission, TASKS[scene.task].useful)
    walls = code("wall", "grey")
    assert any((view.cells_HW == walls).all(axis=0).sum() == 2 for _, view in grids)  # without its target
    for sample in outside:
        if sample.outside and sample.outside.view is None:  # noise, or other colours
            with pytest.raises(UnreadablePicture):
                read(sample.outside.picture)


def test_larger_grids_can_wait() -> None:
    sampler = Sampler(_LARGE, seed=0)
    sizes = [sample.scene.view.cells_HW.shape[0] for sample in sampler.block(0, 60, largest=9)]
    assert set(sizes) == {8}
    sizes = [sample.scene.view.cells_HW.shape[0] for sample in sampler.block(0, 60)]
    assert sizes.count(16) == 20
    assert len(sampler.block(0, 60, largest=4)) == 60  # there are no smaller ones


def test_no_evaluation_seed_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int | None] = []
    reset = MiniGridEnv.reset

    def recorded(env: MiniGridEnv, *, seed: int | None = None, **more: Any) -> Any:
        seeds.append(seed)
        return reset(env, seed=seed, **more)

    monkeypatch.setattr(MiniGridEnv, "reset", recorded)
    Sampler(_ENVS, seed=0).block(0, 60)
    assert len(seeds) > 10
    assert all(seed is not None and 0 <= seed < EVALUATION_SEEDS for seed in seeds)


@pytest.mark.parametrize("env_ids", [_ENVS, _LARGE])
def test_every_scored_field_of_the_analysis_is_right(env_ids: tuple[str, ...]) -> None:
    for sample in Sampler(env_ids, seed=1).block(0, 60):
        described = read_analysis(json.dumps(analysis_of(sample.scene)))
        assert described is not None
        judged = judge(described, sample.scene)
        assert all(judged.values()), judged
        assert "direction" in judged


def test_hazards_often_hide_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random positions alone would rarely have a hazard between agent and target."""

    def share() -> float:
        scenes = [sample.scene for sample in Sampler(["MiniGrid-LavaGapS7-v0"], seed=4).block(0, 400)]
        hidden = 0
        for scene in scenes:
            row, column = scene.here
            goal_row, goal_column = scene.targets[0]
            lava_column = scene.hazards[0][1]
            across = row == goal_row and column < lava_column < goal_column
            hidden += across and (row, lava_column) in scene.hazards
        return hidden / len(scenes)

    often = share()
    monkeypatch.setattr(samples, "_HIDDEN", 0.0)
    assert often > 1.5 * share() > 0


def test_several_targets_are_frequent_where_the_task_can_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def share() -> float:
        block = Sampler([TASKS["fetch"].env_id], seed=0).block(0, 400)
        return float(np.mean([len(sample.scene.targets) > 1 for sample in block]))

    assert share() > 0.35
    monkeypatch.setattr(samples, "_SEVERAL_TARGETS", {})
    assert share() < 0.15


def test_agents_are_moved_only_where_they_can_go() -> None:
    """GoToDoor has free floor outside the room too."""
    for sample in Sampler(["MiniGrid-GoToDoor-6x6-v0"], seed=2).block(0, 200):
        doors = np.array(sample.scene.cells("door"))
        top, left = doors.min(0)
        bottom, right = doors.max(0)
        row, column = sample.scene.here
        assert top < row < bottom
        assert left < column < right


def test_an_environment_of_no_family_gets_the_named_task() -> None:
    room = "tests.student.custom_environments:Custom-Room-v0"
    with pytest.raises(UnknownTask, match="`task` is missing: tests"):
        Sampler([room], seed=0)
    samples = Sampler([room], seed=0, task="lava_gap").block(0, 12)
    assert {sample.scene.task for sample in samples} == {"lava_gap"}


def test_sampling_fails_where_the_planner_never_finds_a_plan() -> None:
    with pytest.raises(CannotStart, match="no plan in 100 episodes of tests"):
        Sampler(["tests.student.custom_environments:Custom-Coins-v0"], seed=0, task="go_to_door").block(0, 1)
