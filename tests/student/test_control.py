"""What makes the difference is what the teacher knows, not that there is one."""

from pathlib import Path
from typing import Any

import pytest

from student.settings import TrainSettings
from student.teachers import served_teacher
from student.trainer import train

pytestmark = pytest.mark.integration


def _summary(out: Path, teacher: str | None) -> dict[str, Any]:
    """A run with the defaults of the preset, beside a teacher of this kind."""

    def run(address: str) -> dict[str, Any]:
        return train(
            TrainSettings(
                env="MiniGrid-LavaGapS5-v0",
                frames=8192,
                seed=2,
                teacher=address,
                out=out / f"{teacher}",
                evaluate_every=0,
                evaluation_episodes=200,
                progress=False,
            )
        )

    if teacher is None:
        return run("none")
    with served_teacher(out / f"{teacher}.sqlite3", {"teacher": teacher}, out / f"{teacher}.log") as address:
        return run(address)


def test_a_teacher_that_knows_nothing_helps_nobody(tmp_path: Path) -> None:
    """The same settings with a planner, with a uniform teacher, and alone: success on held-out seeds."""
    planner, uniform, alone = (_summary(tmp_path, teacher) for teacher in ("planner", "uniform", None))
    assert planner["success"] >= 0.9
    assert alone["success"] < 0.9
    assert (uniform["failed"], uniform["states"] > 100) == (0, True)
    assert uniform["questions"] == uniform["states"]
    low, high = uniform["sampled"]["success_interval"]
    assert high < planner["sampled"]["success_interval"][0]
    assert uniform["success"] <= alone["success"] + (high - low)
