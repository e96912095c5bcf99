"""`teacher check`: what it prints, and how it ends."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from teacher_server.checkpoints.architectures import QWEN2, QWEN3, Architecture
from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.engines.base import how_to_install
from tests.waiting import LONG_S
from tools.random_checkpoint import make_checkpoint

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made"))


def _check(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("teacher")), "check", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
        env={"PATH": "/usr/bin:/bin", **env},
    )


def _ours(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with the engine that every test environment has."""
    return _check("--engine", "transformers", "--device", "cpu", *arguments, **env)


def _problems(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 1
    assert done.stderr == ""
    assert "ok" not in done.stdout.splitlines()
    return [line for line in done.stdout.splitlines() if line.startswith("- ")]


def test_a_sound_checkpoint(made: Path) -> None:
    done = _ours(made)
    assert (done.returncode, done.stderr) == (0, "")
    *facts, last = done.stdout.splitlines()
    assert last == "ok"
    told = {line[:14].strip(): line[14:] for line in facts}
    checkpoint = read_checkpoint(made)
    assert told["checkpoint"] == str(made)
    assert "Qwen2_5_VLForConditionalGeneration, 717,248 parameters, 2 layers of text" in told["architecture"]
    assert told["weights"] == "float32, 2.7 MiB in 1 file"
    assert told["vocabulary"] == "1,263 tokens, embeddings for 1,280"
    assert f"'left' [{checkpoint.tokenizer.token_to_id('left')}]" in told["labels"]
    assert told["engine"] == "transformers, installed"
    assert told["memory needed"].startswith("1.0 GiB (weights 2.7 MiB in float32")
    assert told["memory there"].endswith("this machine")
    assert told["digest"] == checkpoint.digest()


@pytest.mark.parametrize("architecture", [QWEN2, QWEN3], ids=lambda each: each.family)
def test_another_architecture_is_for_other_engines_than_onnx(
    tmp_path: Path, architecture: Architecture
) -> None:
    folder = make_checkpoint(tmp_path, architecture=architecture)
    done = _ours(folder)
    assert done.returncode == 0
    assert f"architecture  {architecture.name}, " in done.stdout
    (problem,) = _problems(_check(folder, "--engine", "onnx"))
    assert (
        f"onnx serves Qwen2.5-VL alone, and this checkpoint is a {architecture.family}: set --engine"
        in problem
    )


def test_every_problem_is_reported(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "broken"))
    (folder / "preprocessor_config.json").unlink()
    (folder / "tokenizer.json").write_text("{\n}")
    files = [line.split(":")[0] for line in _problems(_ours(folder, "--prompts", "no such set"))]
    assert files == [
        "- tokenizer.json",
        "- preprocessor_config.json",
        "- no prompt set 'no such set'; name one of compact, compact-lake, minigrid, minigrid-zero-shot,"
        " toy-text, or the folder of your own",
    ]


def test_too_little_memory_is_reported(made: Path) -> None:
    length, memory = _problems(_ours(made, "--max-model-len", 10**10))
    assert "--max-model-len 10000000000" in length
    assert memory.startswith("- this machine: serving takes ")


def test_a_missing_folder() -> None:
    (problem,) = _problems(_ours("Qwen/Qwen2.5-VL-3B-Instruct"))
    assert "is not a folder here; models are not downloaded" in problem


def test_dummy_weights(made: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, size="3b", weights=False)
    (problem,) = _problems(_ours(folder))
    assert "model.safetensors: is missing" in problem
    done = _ours(folder, "--load-format", "dummy", "--max-model-len", 256)
    assert "3,754,622,976 parameters" in done.stdout
    assert "model.safetensors" not in done.stdout


def test_variables(made: Path) -> None:
    done = _check(TEACHER_MODEL=str(made), TEACHER_ENGINE="transformers", TEACHER_DEVICE="cpu")
    assert done.returncode == 0
    assert str(made) in done.stdout


def test_vllm_is_not_recommended_where_it_has_no_packages() -> None:
    assert "pip install" not in how_to_install("vllm", "darwin")
    assert "pip install 'lvlm2p[vllm]'" in how_to_install("vllm", "linux")


def test_an_engine_that_is_not_installed(made: Path) -> None:
    """Reported exactly where vLLM is not installed."""
    from importlib.util import find_spec  # noqa: PLC0415

    done = _check(made)
    missing = "- vllm not installed here: " in done.stdout
    assert missing == (find_spec("vllm") is None)
    assert (done.returncode == 1) == missing


@pytest.mark.parametrize(
    ("arguments", "told"),
    [((), "MODEL is missing"), (("x", "--engine", "tgi"), "'tgi'"), (("x", "--modle"), "--modle")],
)
def test_bad_flags_are_refused(arguments: tuple[str, ...], told: str) -> None:
    done = _check(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
