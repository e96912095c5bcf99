"""Measures what each part of learning from labels is worth, by training without it.

Each hypothesis is one change of the preset `fast`: settings of `student train`, or constants of the modules
in `student/algorithms`. The teachers are planners, served over HTTP. Run it as
`python benchmarks/ablations.py`; a run takes about 10 seconds, and a hypothesis as many runs as there are
cases and seeds. Prints a Markdown table: frames to success 0.9 (three evaluations in a row; "-": never) and
success at the end, for each seed.
"""

import argparse
import contextlib
import importlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gridworld.tasks import TASKS
from student.experiments.statistics import samples_to
from student.runs.metrics import read_metrics
from student.settings import TrainSettings
from student.trainer import train
from teacher_api.processes import served_teacher

_THRESHOLD = 0.9
_TEACHERS: dict[str, dict[str, float | str]] = {
    "planner": {},
    "noise30": {"noise": 0.3},
    "mirrored": {"fault": "mirrored"},
    "shifted": {"fault": "shifted"},
}
_CASES = (
    "planner/lava_gap",
    "noise30/lava_gap",
    "noise30/dynamic_obstacles",
    "noise30/go_to_door",
    "mirrored/dynamic_obstacles",
    "shifted/go_to_door",
)
_HYPOTHESES: dict[str, dict[str, Any]] = {
    "fast": {},
    "labels not judged": {"judge_labels": False},
    "no recovery": {"recover": False},
    "no doubt": {"doubt": 0.0},
    "replay 32": {"replay_ratio": 32.0},
    "replay 64": {"replay_ratio": 64.0},
    "no weight by agreement": {"judgement._FAMILIAR": 1e-9},
    "agreement counts however familiar": {"judgement._FAMILIAR": 1e9},
    "ends without success not known to be bad": {"experience._FAILURE": 0.0},
    "no confusion matrix": {"judgement._PSEUDO_COUNT": 1e9},
    "corrected labels not sharpened": {"judgement._SHARPNESS": 1.0},
    "untried actions as good as tried ones": {"judgement._UNTRIED": 1.0},
    "no error in labels": {"judgement._ERROR": 0.0},
    "one try is enough": {"judgement._PRIOR_TRIES": 0.0},
    "fruitless labels believed": {"judgement._FRUITLESS": math.inf},
    "nothing learned without a label": {"judgement._OFTEN": math.inf},
    "also rare states learned without a label": {"judgement._OFTEN": 0.0},
}
"""Settings by name, and constants as module.NAME."""


def main() -> None:
    """Prints the table, a row for each hypothesis as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--hypotheses", nargs="+", choices=_HYPOTHESES, default=list(_HYPOTHESES), metavar="NAME"
    )
    parser.add_argument(
        "--cases", nargs="+", type=_case, default=[_case(name) for name in _CASES], metavar="TEACHER/TASK"
    )
    parser.add_argument("--algo", choices=("ppo", "a2c"), default="ppo")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default: 3)")
    parser.add_argument("--frames", type=int, default=16_384, help="of each run (default: 16384)")
    arguments = parser.parse_args()
    print("| hypothesis | " + " | ".join("/".join(case) for case in arguments.cases) + " |")
    print("|---" * (1 + len(arguments.cases)) + "|")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as teachers:
        urls = {
            name: teachers.enter_context(served_teacher(Path(folder) / f"{name}.sqlite3", _TEACHERS[name]))
            for name in dict.fromkeys(teacher for teacher, _ in arguments.cases)
        }
        for hypothesis in arguments.hypotheses:
            cells = []
            for teacher, task in arguments.cases:
                changes = {
                    "env": TASKS[task].env_id,
                    "algo": arguments.algo,
                    "teacher": urls[teacher],
                    "frames": arguments.frames,
                    **_HYPOTHESES[hypothesis],
                }
                cells.append(_cell([_trained(changes, seed) for seed in range(1, arguments.seeds + 1)]))
            print(f"| {hypothesis} | {' | '.join(cells)} |", flush=True)


def _case(name: str) -> tuple[str, str]:
    teacher, _, task = name.partition("/")
    if teacher not in _TEACHERS or task not in TASKS:
        raise argparse.ArgumentTypeError(f"write TEACHER/TASK of {', '.join(_TEACHERS)}; {', '.join(TASKS)}")
    return teacher, task


def _trained(changes: Mapping[str, Any], seed: int) -> tuple[int | None, float]:
    """Trains a student; returns the frames to success 0.9, None if never, and its success at the end."""
    settings = {name: value for name, value in changes.items() if "." not in name}
    with tempfile.TemporaryDirectory() as folder, _constants(changes):
        out = Path(folder) / "run"
        summary = train(
            TrainSettings(
                **settings,
                seed=seed,
                out=out,
                evaluate_every=512,
                evaluation_episodes=50,
                checkpoint_every=10**9,
                progress=False,
            )
        )
        rows = list(read_metrics(out, figure="evaluation_success", complete=True))
    successes = [row["evaluation_success"] for row in rows]
    return samples_to(_THRESHOLD, [row["frames"] for row in rows], successes), summary["success"]


@contextlib.contextmanager
def _constants(changes: Mapping[str, Any]) -> Iterator[None]:
    """Changes constants of modules, given as module.NAME, while it is open."""
    with contextlib.ExitStack() as stack:
        for name, value in changes.items():
            module, _, constant = name.rpartition(".")
            if module:
                found = importlib.import_module(f"student.algorithms.{module}")
                stack.enter_context(patch.object(found, constant, value))
        yield


def _cell(results: list[tuple[int | None, float]]) -> str:
    frames = " ".join("-" if first is None else f"{first:,}" for first, _ in results)
    return f"{frames}; {' '.join(f'{success:.2f}' for _, success in results)}"


if __name__ == "__main__":
    main()
