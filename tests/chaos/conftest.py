"""Fixtures of the chaos suite; skips what cannot run here."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.bodies import Bodies
from tests.conftest import StartTeacher, started_teachers
from tests.vllm.conftest import checkpoint, pytest_collection_modifyitems, short_prompts, start_prompted

__all__ = ["checkpoint", "pytest_collection_modifyitems", "short_prompts", "start_prompted"]

_TOOLS = ("aiohttp", "hypothesis", "pip_audit", "schemathesis")

# Without the extra `chaos` the tests cannot be imported
collect_ignore_glob = ["test_*.py"] if not all(map(importlib.util.find_spec, _TOOLS)) else []


@pytest.fixture(scope="session")
def bodies(pytestconfig: pytest.Config) -> Bodies:
    """An endless supply of questions; their pictures are drawn once and kept in pytest's cache."""
    folder: Path = pytestconfig.cache.mkdir("chaos")  # type: ignore[union-attr]
    return Bodies(folder / "questions.json")


@pytest.fixture(scope="module")
def module_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartTeacher]:
    """Starts teachers; they are killed when the module's tests end."""
    with started_teachers(tmp_path_factory) as start:
        yield start
