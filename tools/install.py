"""Makes a virtual environment, installs the project into it with pip, and prints the progress.

    python3 tools/install.py .venv '.[teacher,dev]'     an editable install; further arguments are for pip

pip by itself prints hundreds of lines or, with --quiet, none for minutes. Here the large files are named as
they come, with what has been downloaded by then. If pip fails, what it said is printed.
"""

from __future__ import annotations  # an older Python has to come as far as being told so

import platform
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
LARGE_MB = 20.0
EVERY_S = 10.0
_PIP = 25  # older ones tell no progress to a pipe
_UNITS = {"bytes": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}
_FILE = re.compile(r"\s*(?:Downloading|Using cached) (\S+) \(([\d.]+) (bytes|kB|MB|GB)\)")
_ROUTINE = ("WARNING", "Collecting ", "Downloading ", "Using cached ", "Requirement already ", "Progress ")


class Progress:
    """How far pip is, from what it prints with --progress-bar raw and what stands in the environment."""

    def __init__(self, environment: Path) -> None:
        self._environment = environment
        self._started = self._said = time.monotonic()
        self._now, self._file_mb, self._complete_mb = "looking for packages", 0.0, 0.0
        self._unpacking = False

    def read(self, line: str) -> None:
        """Takes a line of pip's, and prints one if there is something to say."""
        found = _FILE.match(line)
        if found:
            self._next(f"{found[1].rpartition('/')[2]}, {found[2]} {found[3]}")
            if float(found[2]) * _UNITS[found[3]] >= LARGE_MB:
                self.say()
        elif line.startswith("Progress "):
            self._file_mb = int(line.split()[1]) / 1e6
        elif line.startswith("Installing collected packages: "):
            self._next(f"unpacking {line.count(',') + 1} packages")
            self._unpacking = True
            self.say()
        elif line.startswith("WARNING: Retrying"):
            print(line, flush=True)

    def say(self, after_s: float = 0.0) -> None:
        """Prints how far it is, if nothing has been printed for so long."""
        if time.monotonic() - self._said < after_s:
            return
        self._said = time.monotonic()
        megabytes, now = self._complete_mb + self._file_mb, self._now
        if self._unpacking:
            there = len(list(self._environment.glob("lib/python*/site-packages/*.dist-info")))
            now = f"{now}, {there} are there"
        print(f"{self._said - self._started:5.0f} s {megabytes:6.0f} MB downloaded: {now}", flush=True)

    def _next(self, now: str) -> None:
        self._complete_mb += self._file_mb
        self._now, self._file_mb = now, 0.0


def main(environment: str, requirement: str, *others: str, editable: bool = True) -> int:
    """Installs the requirement; returns the exit code of what failed, or 0.

    Args:
        environment: the folder of the virtual environment; made if it is missing.
        requirement: the project with extras, or a package where `editable` is False.
        others: further arguments for pip.

    Raises:
        SystemExit: this Python is none that the project can be installed with.
    """
    _check_python()
    print(f"Installing {requirement} into {environment}. {_to_download(requirement)}", flush=True)
    python = str(Path(environment, "bin", "python"))
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--constraint", str(CONSTRAINTS)]
    try:
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        version = subprocess.run([*pip, "--version"], check=True, capture_output=True, text=True).stdout
        if int(version.split()[1].partition(".")[0]) < _PIP:
            subprocess.run([*install, "--quiet", "--upgrade", "pip"], check=True)
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    what = ["--editable", requirement] if editable else [requirement]
    command = [*install, "--progress-bar", "raw", *what, *others]
    return run_pip(command, Progress(Path(environment)))


def run_pip(command: list[str], progress: Progress) -> int:
    """Runs pip and prints how far it is; its exit code, once what it said of a failure is printed as well."""
    said: list[str] = []
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(1.0):
            progress.say(after_s=EVERY_S)

    threading.Thread(target=go_on, daemon=True).start()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        for line in running.stdout or ():
            said.append(line.rstrip())
            progress.read(said[-1])
    ended.set()
    if running.returncode:
        print(*(line for line in said if not line.lstrip().startswith(_ROUTINE)), sep="\n")
    return running.returncode


def _check_python() -> None:
    declared = re.search(
        r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text("utf-8")
    )
    assert declared, "pyproject.toml says which Pythons it needs"
    low, high = int(declared[1]), int(declared[2]) - 1
    if not (3, low) <= sys.version_info[:2] <= (3, high):
        here = f"{sys.executable} is {platform.python_version()}"
        sys.exit(f"Python 3.{low} to 3.{high} is needed, and {here}: make PYTHON=python3.{high - 1} ...")


def _to_download(requirement: str) -> str:
    """What constraints.txt tells of the wheels' sizes, in words; nothing if it tells nothing."""
    system = f"{platform.system()} {platform.machine()}"
    extras = requirement.partition("[")[2].rstrip("]")
    for line in CONSTRAINTS.read_text("utf-8").splitlines():
        found = re.search(rf"{system} ([\d.]+)", line)
        if found and line.startswith(f"# GB to download for {extras}: "):
            minutes = float(found[1]) * 8000 / 100 / 60
            cuda = " README.md says how to leave CUDA out." if system.startswith("Linux") else ""
            return f"At most {found[1]} GB are downloaded ({minutes:.0f} minutes at 100 Mbit/s).{cuda}"
    return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
