"""Writes sweep folders with known curves, as `student sweep` and `student train` do."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENV = "MiniGrid-LavaGapS5-v0"
TEACHER = "planner-1"
"""The identity of the teacher of all arms that have one."""
EVERY = 1000
"""Frames between evaluations."""

ALONE: dict[str, Any] = {"teacher": "none", "lambda": 1.0, "targets": "soft"}
TAUGHT: dict[str, Any] = {**ALONE, "teacher": "http://127.0.0.1:8000"}


def write_sweep(
    folder: Path,
    arms: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    envs: Sequence[str] = (ENV,),
    algos: Sequence[str] = ("ppo",),
    **more: Any,
) -> Path:
    """Writes a sweep without runs; the first arm is the baseline."""
    plan = {"version": 1, "envs": list(envs), "algos": list(algos), "seeds": list(seeds), "arms": arms}
    write(folder / "sweep.json", plan | {"baseline": next(iter(arms))} | more)
    return folder


def write_run(
    folder: Path,
    arm: str,
    seed: int,
    success: Sequence[float],
    algo: str = "ppo",
    env: str = ENV,
    **more: Any,
) -> Path:
    """Writes a finished run with an evaluation every 1,000 frames; the return is 0.95 of the success."""
    given = json.loads((folder / "sweep.json").read_text())["arms"][arm]
    given.pop("envs", None)
    settings = {"env": env, "algo": algo, "seed": seed, "evaluation_episodes": 100, **given}
    settings |= {"epochs": 4} if algo == "ppo" else {}
    taught = given["teacher"] != "none"
    run = folder / "runs" / arm / algo / env / f"seed-{seed}"
    teacher = {"identity": TEACHER, "kind": "planner", "description": {"noise": 0.0}} if taught else None
    config = {"settings": settings, "teacher": teacher, "versions": {"lvlm2p": "0.1.0"}}
    rows = []
    for i, value in enumerate(success, 1):
        rows.append({"frames": i * EVERY - 500, "success": 0.5})
        rows.append(
            {"frames": i * EVERY, "evaluation_success": value, "evaluation_return": 0.95 * value, "kl": 0.1}
        )
    report = {"episodes": 100, "success": success[-1], "return": 0.95 * success[-1]}
    summary: dict[str, Any] = {
        "env": env,
        "algorithm": algo,
        "seed": seed,
        "sampled": report,
        "argmax": report,
    }
    summary |= {"success": report["success"], "return": report["return"], "frames": len(success) * EVERY}
    summary |= {"seconds": 10.0, "teacher": TEACHER if taught else None}
    asked = (300, 200, 90, 10) if taught else (0, 0, 0, 0)
    summary |= dict(zip(("states", "questions", "store_hits", "failed"), asked, strict=True))
    write(run / "config.json", config)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(run / "summary.json", summary | more)
    return run


def write_teacher(folder: Path, name: str = "planner", env: str = ENV, success: float = 0.97) -> None:
    """Writes the evaluation of a teacher."""
    report = {"episodes": 100, "success": success, "success_interval": [success - 0.03, 1.0], "return": 0.9}
    content = {"teacher": TEACHER, "sampled": report, "argmax": report}
    write(folder / "teachers" / name / f"{env}.json", content)


def step(at: int, length: int, top: float = 1.0) -> list[float]:
    """Returns the success of `length` evaluations: 0.1, from `at` thousand frames on `top`."""
    return [0.1] * (at - 1) + [top] * (length - at + 1)


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
