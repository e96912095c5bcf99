"""Known vulnerabilities of the pinned packages, from PyPI's advisories or OSV."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.chaos

_CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
_KNOWN_TO_ALL = "numpy"


def test_no_constraint_has_a_known_vulnerability(tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text(
        next(line for line in _CONSTRAINTS.read_text().splitlines() if line.startswith(_KNOWN_TO_ALL))
    )
    failures = []
    for source in ("pypi", "osv"):
        try:
            if not _audited(one, source):  # a mirror may have packages and no advisories
                failures.append(f"{source} does not know {one.read_text()}")
                continue
        except RuntimeError as error:
            failures.append(f"{source}: {error}")
            continue
        packages = _audited(_CONSTRAINTS, source)
        found = {package["name"]: package["vulns"] for package in packages if package["vulns"]}
        print(f"\naudit: {len(packages)} packages checked at {source}: {found or 'no known vulnerability'}")
        assert not found
        return
    pytest.skip(f"no source of advisories answers here: {'; '.join(failures)}")


def _audited(requirements: Path, source: str) -> list[dict[str, Any]]:
    """Returns the packages that the source knows.

    Raises:
        RuntimeError: the source does not answer.
    """
    audited = subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps"),
            *("--disable-pip", "--vulnerability-service", source, "--format", "json"),
            *("--progress-spinner", "off"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    try:
        packages: list[dict[str, Any]] = json.loads(audited.stdout)["dependencies"]
    except ValueError:
        raise RuntimeError(audited.stderr.strip().splitlines()[-1][:200]) from None
    return [package for package in packages if "vulns" in package]
