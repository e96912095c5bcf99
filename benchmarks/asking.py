"""Measures what a slow teacher with an empty store costs a student.

The teacher is a planner that takes 200 ms for a question and answers 32 at once. The same run asks it in four
ways. Each is compared with a bound: the longer of the student alone with every label stored, and the teacher
alone with the questions of that run (questions * delay / places). An update that waits for all its labels
cannot reach this bound if a rollout has few new states, because it waits a whole delay for the last of them.
The last columns therefore count whole delays: as many for each update as its new states need. Seconds include
collecting, asking and learning, in the fastest of some runs. Run it as `python benchmarks/asking.py`.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridworld.tasks import EVALUATION_SEEDS
from student.labels import asking
from student.labels.table import LabelTable
from student.runs.folder import Run
from student.settings import TrainSettings
from student.trainer import train
from teacher_api.client import TeacherClient
from teacher_api.files import write_json
from teacher_api.processes import served_teacher
from worlds.minigrid import MinigridEnvironment, MinigridWorld, Vocabulary, layout_of
from worlds.world import stacked

_ENVS = ("MiniGrid-LavaGapS6-v0", "MiniGrid-GoToDoor-6x6-v0")
_WAYS = {
    "stored": "every label stored: the student alone",
    "in-turn": "at the end of a rollout, batch by batch",
    "at-end": "at the end of a rollout, all at once",
    "ahead": "during the rollout (the default)",
    "go-on": "the same, with --late-labels go-on",
}


def main() -> None:
    """Measures each way in its own process, prints a table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=4096, help="frames of each run (default: 4096)")
    parser.add_argument(
        "--delay-ms", type=float, default=200, help="the teacher's delay for a question (default: 200)"
    )
    parser.add_argument(
        "--places", type=int, default=32, help="questions that the teacher answers at once (default: 32)"
    )
    parser.add_argument("--env", nargs="+", default=_ENVS, help=f"environments (default: {' '.join(_ENVS)})")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench/asking.json"), help="a JSON file for the results"
    )
    parser.add_argument(
        "--only", nargs=3, metavar=("WAY", "TEACHER", "FOLDER"), help="measure one run in this process"
    )
    arguments = parser.parse_args()
    if arguments.only:
        way, teacher, folder = arguments.only
        _train(way, teacher, Path(folder), arguments.env[0], arguments.frames)
        return
    report = {env_id: _compare(env_id, arguments) for env_id in arguments.env}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, vars(arguments) | {"out": str(arguments.out), "env": report})
    print(f"\nWritten: {arguments.out}")


def _compare(env_id: str, arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in _WAYS}
    for _ in range(arguments.rounds):
        for way in _WAYS:
            runs[way].append(_measure(way, env_id, arguments))
    fastest = {way: min(runs[way], key=lambda run: float(run["seconds"])) for way in _WAYS}
    alone = fastest["stored"]["seconds"]
    print(f"\n{env_id}, {arguments.frames} frames, {arguments.delay_ms:g} ms, {arguments.places} at once")
    print(f"{'':42}{'questions':>9}{'seconds':>9}{'bound':>8}{'ratio':>7}{'delays':>8}{'ratio':>7}")
    for way, run in fastest.items():
        delays = sum(math.ceil(new / arguments.places) for new in run.pop("new"))
        run["bound"] = max(alone, run["questions"] / arguments.places * arguments.delay_ms / 1000)
        run["delays"] = max(alone, delays * arguments.delay_ms / 1000)
        run["of_bound"], run["of_delays"] = (run["seconds"] / run[name] for name in ("bound", "delays"))
        print(
            f"{_WAYS[way]:42}{run['questions']:9}{run['seconds']:9.2f}{run['bound']:8.2f}"
            f"{run['of_bound']:7.2f}{run['delays']:8.2f}{run['of_delays']:7.2f}",
            flush=True,
        )
    return fastest


def _measure(way: str, env_id: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one run with its own teacher."""
    flags = {"delay-ms": arguments.delay_ms, "concurrency": arguments.places}
    with tempfile.TemporaryDirectory() as name, served_teacher(Path(name, "answers.sqlite3"), flags) as url:
        _warm_up(url, env_id)
        if way == "stored":
            _in_a_process("at-end", url, Path(name, "first"), env_id, arguments.frames)
        return _in_a_process(way, url, Path(name), env_id, arguments.frames)


def _warm_up(url: str, env_id: str) -> None:
    """Asks one question, about a state of an evaluation: a teacher draws all tiles for its first picture."""
    layout, vocabulary = layout_of(env_id), Vocabulary()
    row = MinigridEnvironment(layout, vocabulary, lambda _: EVALUATION_SEEDS).reset()
    table = LabelTable(MinigridWorld(layout, vocabulary), TeacherClient(url))
    table.labels_of(table.rows_of(stacked([row])))
    table.close()


def _in_a_process(way: str, url: str, folder: Path, env_id: str, frames: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--frames", str(frames), "--env", env_id]
    done = subprocess.run(
        [*command, "--only", way, url, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        encoding="utf-8",
    )
    if done.returncode:
        sys.exit(f"benchmarks/asking.py: error: {way} failed; its output is above")
    counts = [row["questions"] for row in Run.open(folder / "run").metrics()]
    new = [now - before for before, now in pairwise([0, *counts])]
    return {"questions": counts[-1], "seconds": float(done.stdout), "new": new}


def _train(way: str, teacher: str, folder: Path, env_id: str, frames: int) -> None:
    settings = TrainSettings(env=env_id, frames=frames, preset="fast", evaluate_every=0, progress=False)
    # Keeps the one-time work of torch out of the measurement
    train(settings.model_copy(update={"out": folder / "warm-up", "frames": 1, "evaluation_episodes": 1}))
    if way in ("in-turn", "at-end"):
        LabelTable.ask = _ask_nothing  # type: ignore[method-assign, assignment]
    if way == "in-turn":
        asking.THREADS, asking.TOGETHER = 1, 64
    late = "go-on" if way == "go-on" else "wait"
    run = {"teacher": teacher, "teacher_wait_s": 30.0, "out": folder / "run", "late_labels": late}
    summary = train(settings.model_copy(update=run))
    print(summary["seconds"])


def _ask_nothing(table: LabelTable, rows_N: NDArray[np.intp]) -> None:
    """Replaces `LabelTable.ask`, so that no question is sent before the end of the rollout."""


if __name__ == "__main__":
    main()
