"""Prints what the project needs, for pip, from pyproject.toml in the working directory.

    python3 requirements.py EXTRA...        the dependencies, and those of the extras
    python3 requirements.py --constraints   the tested versions; beside vLLM, those that are installed already

So the images install dependencies before the project's code is copied, and a change of code costs
seconds. vLLM and all that it is built against stay as they are in an image that has them.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> None:
    """Prints one requirement or constraint a line."""
    if arguments == ["--constraints"]:
        lines = _constraints(Path("constraints.txt").read_text(encoding="utf-8").splitlines())
    else:
        project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = [*project["dependencies"], *(line for extra in arguments for line in _extra(extra, project))]
    print("\n".join(lines))


def _extra(extra: str, project: dict[str, Any]) -> list[str]:
    """Returns the dependencies of an extra, and those of the extras that it names."""
    lines: list[str] = []
    for line in project["optional-dependencies"][extra]:
        other = re.fullmatch(rf"{project['name']}\[(\w+)\]", line)
        lines += _extra(other[1], project) if other else [line]
    return lines


def _constraints(tested: list[str]) -> list[str]:
    installed = {_name(each.name): f"{each.name}=={each.version}" for each in metadata.distributions()}
    here = installed if "vllm" in installed else {}
    pins = [line for line in tested if "==" in line and _name(line.split("==")[0]) not in here]
    return [*here.values(), *pins]


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main(sys.argv[1:])
