"""What makes the difference is what the teacher knows, not that there is one."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from gridworld.intervals import success_interval
from student.settings import TrainSettings
from student.trainer import train
from teacher_api.processes import served_teacher

pytestmark = pytest.mark.integration

_SEEDS = (1, 2)
_EPISODES = 200
"""Held-out episodes of each student."""


def _successes(out: Path, teacher: str) -> list[float]:
    """Success of each seed beside a teacher of this kind or alone, with labels that are not judged.

    A student that judges them learns from its own experience too, whatever the teacher knows.
    """
    serving = served_teacher(out / f"{teacher}.sqlite3", {"teacher": teacher}, out / f"{teacher}.log")
    found = []
    with nullcontext("none") if teacher == "none" else serving as address:
        for seed in _SEEDS:
            settings = TrainSettings(
                env="MiniGrid-LavaGapS5-v0",
                frames=8192,
                seed=seed,
                teacher=address,
                judge_labels=False,
                out=out / f"{teacher}-{seed}",
                evaluate_every=0,
                evaluation_episodes=_EPISODES,
                progress=False,
            )
            summary = train(settings)
            assert (summary["states"] > 0, summary["failed"]) == (teacher != "none", 0)
            found.append(summary["success"])
    return found


def test_a_teacher_that_knows_nothing_helps_nobody(tmp_path: Path) -> None:
    """The same settings and seeds with a planner, with a uniform teacher, and alone."""
    planner, uniform, alone = (_successes(tmp_path, teacher) for teacher in ("planner", "uniform", "none"))
    assert min(planner) >= 0.9
    assert max(alone) < 0.9
    low, high = success_interval(round(sum(uniform) * _EPISODES), len(uniform) * _EPISODES)
    assert high < min(planner)
    assert sum(uniform) / len(uniform) <= sum(alone) / len(alone) + (high - low)
