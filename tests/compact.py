"""Checks by `teacher score` that a served teacher knows the paper's four tasks."""

import json
from pathlib import Path

from gridworld.tasks import TASKS
from teacher_tools.cli import main


def assert_it_knows_its_tasks(url: str, out: Path, *, states: int, episodes: int) -> None:
    """Scores the teacher on a few states and episodes of each task. docs/results/compact.md has more."""
    sizes = ["--states", str(states), "--episodes", str(episodes)]
    assert main(["score", url, "--all", "--no-progress", "--out", str(out), *sizes]) == 0
    scores = json.loads((out / "score.json").read_text())["tasks"]
    assert list(scores) == [task.env_id for task in TASKS.values()]
    for env_id, score in scores.items():
        assert score["sampled"]["success"]["value"] >= 0.8, env_id
        assert score["agreement"]["optimal"]["value"] >= 0.85, env_id
        for field in ("agent", "target", "hazards"):
            assert score["perception"]["fields"][field]["value"] >= 0.95, (env_id, field)
