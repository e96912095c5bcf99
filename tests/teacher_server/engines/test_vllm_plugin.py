"""The vLLM plugin: it leaves engines of others alone and records why our own engine's processes fail."""

import logging
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from teacher_server.engines.exceptions import words_of
from teacher_server.engines.vllm import plugin
from teacher_server.engines.vllm.plugin import VARIABLE, cause_of
from tests.conftest import environment_without

_PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


@pytest.mark.integration
def test_it_leaves_other_engines_of_the_environment_alone() -> None:
    plugins = tomllib.loads(_PYPROJECT.read_text())["project"]["entry-points"]["vllm.general_plugins"]
    (module, function) = plugins["lvlm2p"].split(":")
    loads = (
        f"import os, sys; before = dict(os.environ); import {module}; {module}.{function}();"
        "large = ('teacher_server', 'PIL', 'vllm', 'torch');"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in large));"
        "print(dict(os.environ) == before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", loads],
        capture_output=True,
        text=True,
        check=True,
        env=environment_without(VARIABLE),
    )
    ours = ["teacher_server", "teacher_server.engines"]
    ours += [f"teacher_server.engines.{name}" for name in ("exceptions", "vllm", "vllm.plugin")]
    assert done.stdout.splitlines() == [str(ours), "True"]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that records failures, as vLLM's does in our processes."""
    logger = logging.Logger("vllm")
    logger.addHandler(plugin._Failures(logging.ERROR))
    return logger


def _failed(message: str = "", cause: BaseException | None = None) -> Exception:
    try:
        raise RuntimeError(message) from cause
    except RuntimeError as error:
        return error


@pytest.mark.unit
def test_failures_are_noted_a_line_each(
    logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "failures"
    file.touch()
    monkeypatch.setenv(VARIABLE, str(file))
    for error in (_failed("no\n  room"), _failed(cause=AssertionError("2 NUMA nodes"))):
        try:
            raise error
        except RuntimeError:
            logger.exception("WorkerProc failed to start.")
    logger.error("no exception")
    assert file.read_text() == "no room\n2 NUMA nodes\n"
    file.unlink()  # the engine has started
    logger.error("later", exc_info=error)
    assert not file.exists()


@pytest.mark.unit
def test_the_cause_is_what_a_process_has_said() -> None:
    core = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    worker = "WorkerProc initialization failed due to an exception in a background process."
    assert cause_of(_failed(core), ["Not enough NUMA nodes", worker]) == "Not enough NUMA nodes"
    assert cause_of(_failed(core), [worker, "CUDA error"]) == "CUDA error"
    assert cause_of(_failed("no such dtype"), ["CUDA error"]) == "no such dtype"
    killed = core.replace("{}", "{'EngineCore': -9}")
    assert cause_of(_failed(killed), []) == (
        f"one of its processes ended without a message, as when memory runs out ({killed})"
    )
    assert "ended without a message" in cause_of(_failed(core), [worker])


@pytest.mark.unit
def test_an_exception_that_says_nothing_is_told_by_its_cause_or_its_type() -> None:
    assert words_of(_failed("a\n b")) == "a b"
    assert words_of(_failed(cause=KeyError("rope"))) == "'rope'"
    assert words_of(_failed(cause=AssertionError())) == "RuntimeError"

    class Sizes(BaseModel):
        heads: int

    with pytest.raises(ValidationError) as caught:
        Sizes.model_validate({"heads": "two"})
    assert words_of(caught.value).startswith("Input should be a valid integer")
