"""Set-up: what it prints while pip works and when pip fails; what is said of Pythons and sizes agrees."""

import re
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tools import install, resolve

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text("utf-8")
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))
_CONSTRAINTS = (_ROOT / "constraints.txt").read_text("utf-8")


def _wheel(index: Path, name: str, requires: str = "", megabytes: int = 0) -> None:
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}"
    (index / name).mkdir(parents=True)
    with zipfile.ZipFile(index / name / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/data", bytes(megabytes * 10**6))
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", metadata)
        wheel.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def pip(tmp_path: Path) -> Iterator[list[str]]:
    """A `pip install` from an index that has a large package and one that cannot be installed with it."""
    _wheel(tmp_path / "index", "large", megabytes=25)
    _wheel(tmp_path / "index", "tiny", requires="Requires-Dist: large==2.0\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_address[1]}/"
        yield [
            *(
                sys.executable,
                "-m",
                "pip",
                "--isolated",
                "install",
                "--no-cache-dir",
                "--progress-bar",
                "raw",
            ),
            *("--index-url", index, "--target", str(tmp_path / "target")),
        ]
        server.shutdown()


@pytest.mark.integration
def test_set_up_names_large_files_and_what_has_been_downloaded(
    pip: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert install.run_pip([*pip, "large"], install.Progress(tmp_path)) == 0
    said = capfd.readouterr().out
    assert "0 MB downloaded: large-1.0-py3-none-any.whl, 25.0 MB\n" in said
    assert "25 MB downloaded: unpacking 1 packages" in said


@pytest.mark.integration
def test_set_up_says_why_pip_failed(
    pip: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert install.run_pip([*pip, "large", "tiny"], install.Progress(tmp_path)) == 1
    said = capfd.readouterr().out
    assert "tiny 1.0 depends on large==2.0" in said
    assert "ResolutionImpossible" in said
    assert "Collecting" not in said


@pytest.mark.unit
def test_another_python_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ((3, 10), (3, 15)):
        monkeypatch.setattr(sys, "version_info", version)
        with pytest.raises(SystemExit, match=r"Python 3\.11 to 3\.14 is needed, .*: make PYTHON=python3\.13"):
            install.main("never-made", ".[dev]")


@pytest.mark.unit
def test_the_readme_names_the_pythons_and_sizes_that_are_resolved_for() -> None:
    low, high = re.fullmatch(r">=(3\.\d+),<3\.(\d+)", _PROJECT["project"]["requires-python"]).groups()
    assert f"Python {low} to 3.{int(high) - 1}" in _README
    assert all(f"python_version < '3.{high}'" in each for each in _PROJECT["tool"]["uv"]["environments"])
    setup = next(extras for extras in resolve.installed_together() if "export" in extras)
    sizes = re.search(rf"# GB to download for {setup}: (.+)", _CONSTRAINTS)[1]
    for _, gigabytes in re.findall(r"(\w+ \w+) ([\d.]+)", sizes):
        assert f"{gigabytes} GB" in _README
