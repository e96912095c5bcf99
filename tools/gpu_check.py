"""Runs on a GPU what otherwise runs on a CPU alone, step by step, and keeps what each step prints.

    python -m tools.gpu_check --out DIR                   on a machine with an NVIDIA GPU
    python -m tools.gpu_check --out DIR --size tiny       the same steps at small dimensions, anywhere

tools/gpu_check.toml has the steps. One that fails or takes too long does not stop the others; those that need
a package that is not installed are left out. DIR/gpu.json and DIR/gpu.md are complete after each step, and
DIR/NAME.txt is all that it printed.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_SHOWN = 14
"""Last lines of a step's output in gpu.md."""
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Step:
    """A part of tools/gpu_check.toml.

    Attributes:
        about: what it shows.
        limit_s: seconds after which it is ended.
        packages: what it needs beside the project's own.
    """

    name: str
    about: str
    limit_s: float
    command: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What became of a step; `printed` are its last lines."""

    name: str
    about: str
    status: str
    seconds: float
    printed: str


def main() -> None:
    """Runs the steps; the exit code is 1 if one failed."""
    plan = tomllib.loads((_ROOT / "tools/gpu_check.toml").read_text(encoding="utf-8"))
    known = [Step(**step) for step in plan["step"]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument("--size", choices=list(plan["sizes"]), default="3b", help="default: 3b")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in known], help="these steps alone")
    parser.add_argument("--minutes", type=float, default=1e6, help="the end of all; later steps are left out")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + 60 * arguments.minutes, list[Result]()
    with tempfile.TemporaryDirectory() as work:
        words = {**plan["sizes"][arguments.size], "work": work}
        for step in known:
            if step.name in (arguments.only or [step.name]):
                command = step.command.format(**words)
                results.append(_run(step, command, arguments.out, end - time.monotonic()))
                _write(results, arguments.out)
                print(f"{step.name}: {results[-1].status}, {results[-1].seconds:.0f} s", flush=True)
    sys.exit(any(result.status == "failed" for result in results))


def _run(step: Step, command: str, out: Path, left_s: float) -> Result:
    if lacking := [package for package in step.packages if importlib.util.find_spec(package) is None]:
        return Result(step.name, step.about, f"left out: no {', '.join(lacking)}", 0.0, "")
    if left_s <= 0:
        return Result(step.name, step.about, "left out: no time", 0.0, "")
    log, began, limit_s = out / f"{step.name}.txt", time.monotonic(), min(step.limit_s, left_s)
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["/bin/bash", "-e", "-c", command],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            start_new_session=True,
        )
        try:
            status = "failed" if process.wait(limit_s) else "done"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"ended after {limit_s:.0f} s"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Result(step.name, step.about, status, time.monotonic() - began, "\n".join(lines[-_SHOWN:]))


def _write(results: Sequence[Result], out: Path) -> None:
    content = json.dumps([asdict(result) for result in results], indent=2)
    (out / "gpu.json").write_text(content + "\n", encoding="utf-8")
    rows = [f"| {each.name} | {each.about} | {each.status} | {each.seconds:.0f} |" for each in results]
    table = ["| step | what it shows | status | seconds |", "|---|---|---|---|", *rows, ""]
    printed = [f"## {each.name}\n\n```text\n{each.printed}\n```\n" for each in results if each.printed]
    (out / "gpu.md").write_text("\n".join([*table, *printed]), encoding="utf-8")


if __name__ == "__main__":
    main()
