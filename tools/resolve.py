"""What constraints.txt pins, and whether pip can install every extra with it, from the registry's metadata.

    python tools/resolve.py              a table: extra x platform x Python; fails where one cannot be had
    python tools/resolve.py --newest     the same without constraints.txt: do pyproject.toml's ranges resolve?
    python tools/resolve.py --lock       writes constraints.txt again; --upgrade, --upgrade-package NAME

uv resolves for platforms other than this one and downloads metadata alone. Wheels on this disk and pip's
configuration play no part. Extras that the Makefile installs together are resolved together as well.
"""

import argparse
import os
import re
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from uv import find_uv_bin

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
_supported = SpecifierSet(PROJECT["requires-python"])
PYTHONS = [python for python in (f"3.{minor}" for minor in range(100)) if python in _supported]


@dataclass(frozen=True)
class Platform:
    """Where the project is installed: uv's name for it, what `uname -sm` says there, the markers' values."""

    target: str
    uname: str
    markers: dict[str, str]


# glibc 2.34 is that of Ubuntu 22.04, Debian 12 and RHEL 9
PLATFORMS = {
    "Linux x86-64": Platform(
        "x86_64-manylinux_2_34", "Linux x86_64", {"sys_platform": "linux", "platform_machine": "x86_64"}
    ),
    "Linux arm64": Platform(
        "aarch64-manylinux_2_34", "Linux aarch64", {"sys_platform": "linux", "platform_machine": "aarch64"}
    ),
    "macOS arm64": Platform(
        "aarch64-apple-darwin", "Darwin arm64", {"sys_platform": "darwin", "platform_machine": "arm64"}
    ),
}
MACOS = "14.0"  # the oldest for which PyTorch has wheels
UV = find_uv_bin()  # not in the threads: sysconfig, which it asks, is filled by the first call and not locked

_ALL = "all at once"
_HEADER = [
    "# Versions that the tests pass with, for the platforms and Pythons of pyproject.toml: pip install -c",
    "# `make lock` writes this file, and `make resolve` checks that everything can be installed with it.",
]


@dataclass(frozen=True)
class Resolution:
    """What would be installed: the wheels' sizes in bytes by package, or why nothing can be."""

    sizes: dict[str, int]
    why_not: str = ""

    @property
    def gigabytes(self) -> float:
        """What is downloaded."""
        return sum(self.sizes.values()) / 1e9


def uv(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs uv with no other packages than the registry's."""
    others = ("UV_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_EXCLUDE")
    environment = {name: value for name, value in os.environ.items() if name not in others}
    return subprocess.run(
        [UV, *arguments],
        cwd=ROOT,
        env=environment | {"MACOSX_DEPLOYMENT_TARGET": MACOS},
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


def resolve(platform: Platform, python: str, constraints: Path | None, what: str) -> Resolution:
    """Resolves extras of the project, given by name and divided by commas, or a requirement of other kind."""
    extras = list(EXTRAS) if what == _ALL else [name for name in what.split(",") if name in EXTRAS]
    done = uv(
        *("pip", "compile", "pyproject.toml" if extras else "-", "--quiet", "--no-config"),
        *("--only-binary", ":all:", "--format", "pylock.toml"),
        *("--python-platform", platform.target, "--python-version", python),
        *(("--constraint", str(constraints)) if constraints else ()),
        *(word for extra in extras for word in ("--extra", extra)),
        given=None if extras else what,
    )
    if done.returncode:
        return Resolution({}, done.stderr.strip() or f"uv ended with {done.returncode}")
    packages = tomllib.loads(done.stdout)["packages"]
    # Of several wheels that fit, pip takes one: the largest is a bound
    return Resolution({each["name"]: max(wheel["size"] for wheel in each["wheels"]) for each in packages})


def left_out(platform: Platform, extra: str) -> list[str]:
    """An extra's requirements that pyproject.toml's markers leave out on a platform, without the markers."""
    lines = [Requirement(line) for line in EXTRAS.get(extra, [])]
    return [
        f"{line.name}{line.specifier}"
        for line in lines
        if line.marker and not line.marker.evaluate(platform.markers)
    ]


def check(constraints: Path | None) -> list[str]:
    """Prints the table; what is wrong, a paragraph each.

    All extras are resolved at once: what can be installed together can be installed apart. Where that fails,
    each is resolved by itself.
    """
    columns = [(name, python) for name in PLATFORMS for python in PYTHONS]
    rows = [*EXTRAS, *installed_together(), _ALL]
    absent = {(name, extra): left_out(PLATFORMS[name], extra) for name in PLATFORMS for extra in EXTRAS}
    results = resolve_all([(*column, _ALL) for column in columns], constraints)
    apart = [(*column, row) for column in columns if results[*column, _ALL].why_not for row in rows[:-1]]
    results |= resolve_all(apart, constraints)
    available = resolve_all(
        [(*column, each) for column in columns for extra in EXTRAS for each in absent[column[0], extra]], None
    )

    def cell(name: str, python: str, row: str) -> str:
        together, alone = results[name, python, _ALL], results.get((name, python, row))
        return "FAIL" if (alone or together).why_not else "-" if absent.get((name, row)) else "ok"

    width = max(map(len, rows))
    print(" " * width, *(f"{name:{5 * len(PYTHONS) - 1}}" for name in PLATFORMS), sep=" | ")
    print(" " * width, *[" ".join(f"{python:4}" for python in PYTHONS)] * len(PLATFORMS), sep=" | ")
    for row in rows:
        cells = [" ".join(f"{cell(name, python, row):4}" for python in PYTHONS) for name in PLATFORMS]
        print(f"{row:{width}}", *cells, sep=" | ")
    for name, extra in (key for key, value in absent.items() if value):
        print(f"-: pyproject.toml leaves {', '.join(absent[name, extra])} out of {extra} on {name}")

    problems: dict[str, list[str]] = {}
    for where, result in results.items():
        if result.why_not:
            problems.setdefault(result.why_not, []).append("{2} on {0} with Python {1}".format(*where))
    for where, result in available.items():
        if not result.why_not:
            said = "it can be installed by now, and pyproject.toml's marker leaves it out"
            problems.setdefault(said, []).append("{2} on {0} with Python {1}".format(*where))
    if constraints == CONSTRAINTS and not problems:
        told = [
            line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith("# GB")
        ]
        if told != (sizes := to_download()):
            problems["the sizes in constraints.txt are others: make lock"] = sizes
    return [f"{'; '.join(where)}\n{why}" for why, where in problems.items()]


def installed_together() -> list[str]:
    """The extras that the Makefile installs into one environment."""
    found = re.findall(r"'\.\[([a-z0-9]+(?:,[a-z0-9]+)+)\]'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    return list(dict.fromkeys(found))


def resolve_all(
    jobs: list[tuple[str, str, str]], constraints: Path | None
) -> dict[tuple[str, str, str], Resolution]:
    """Resolves what is given as platform, Python, and what is wanted."""
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda job: resolve(PLATFORMS[job[0]], job[1], constraints, job[2]), jobs)
        return dict(zip(jobs, made, strict=True))


def lock(arguments: list[str]) -> None:
    """Writes constraints.txt: what it pins already stays where that can be.

    Raises:
        SystemExit: it cannot be resolved; the reason is uv's.
    """
    done = uv(
        *(
            "pip",
            "compile",
            "pyproject.toml",
            "--quiet",
            "--universal",
            "--all-extras",
            "--only-binary",
            ":all:",
        ),
        *("--python-version", PYTHONS[0], "--no-annotate", "--no-header", "--output-file", CONSTRAINTS.name),
        *arguments,
    )
    if done.returncode:
        sys.exit(done.stderr.strip())
    pins = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    names = [pin.partition("==")[0] for pin in pins]
    # A marker says where a package is needed. Only where it is pinned twice does a constraint need to say so
    lines = [
        pin if names.count(name) > 1 else pin.partition(" ;")[0]
        for name, pin in zip(names, pins, strict=True)
    ]
    CONSTRAINTS.write_text("\n".join(lines), encoding="utf-8")
    CONSTRAINTS.write_text("\n".join([*_HEADER, *to_download(), *lines, ""]), encoding="utf-8")


def to_download() -> list[str]:
    """What constraints.txt tells tools/install.py of sizes, which are the same for each Python to 0.1 GB."""
    jobs = [(name, PYTHONS[0], row) for row in installed_together() for name in PLATFORMS]
    results = resolve_all(jobs, CONSTRAINTS)
    return [
        f"# GB to download for {row}: "
        + ", ".join(
            f"{platform.uname} {results[name, PYTHONS[0], row].gigabytes:.1f}"
            for name, platform in PLATFORMS.items()
        )
        for row in installed_together()
    ]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", action="store_true", help="write constraints.txt again")
    parser.add_argument("--upgrade", action="store_true", help="with --lock: take the newest versions")
    parser.add_argument("--upgrade-package", metavar="NAME", help="with --lock: take this package's newest")
    parser.add_argument("--newest", action="store_true", help="resolve without constraints")
    parser.add_argument(
        "--constraints", type=Path, default=CONSTRAINTS, help="another file than constraints.txt"
    )
    options = parser.parse_args()
    if options.lock:
        one = ("--upgrade-package", options.upgrade_package) if options.upgrade_package else ()
        lock([*(("--upgrade",) if options.upgrade else ()), *one])
        return
    started = time.monotonic()
    problems = check(None if options.newest else options.constraints)
    print(f"resolved in {time.monotonic() - started:.0f} s; {len(problems)} problems")
    if problems:
        sys.exit("\n\n".join(problems))


if __name__ == "__main__":
    main()
