"""The compose file as it stands, for a GPU, on a machine that has none."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.conftest import GPU, VLLM_CPU, Stack, docker_info

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def gpu(models: Path) -> Iterator[Stack]:
    image = "lvlm2p-teacher-vllm-cpu"
    made = Stack("lvlm2p-test-gpu", GPU, models.parent, MODELS_DIR=str(models), TEACHER_IMAGE=image)
    yield made
    made.do("down", "--volumes")


def test_the_teacher_asks_for_the_gpu_as_docker_documents_it(gpu: Stack) -> None:
    teacher = json.loads(gpu.do("config", "--format", "json"))["services"]["teacher"]
    devices = teacher["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"capabilities": ["gpu"], "count": -1, "driver": "nvidia"}]
    gpu.variables["TEACHER_GPUS"] = "2"
    teacher = json.loads(gpu.do("config", "--format", "json"))["services"]["teacher"]
    assert teacher["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    (mount,) = (volume for volume in teacher["volumes"] if volume["target"] == "/models")
    assert mount["read_only"]


@pytest.mark.skipif("nvidia" in docker_info(), reason="there is a GPU's runtime here")
def test_without_a_gpu_docker_says_so(gpu: Stack) -> None:
    done = gpu("up", "--detach", "--no-build", "teacher")
    assert done.returncode != 0
    assert 'could not select device driver "nvidia" with capabilities: [[gpu]]' in done.stderr


def test_without_the_models_folder_docker_says_so(gpu: Stack, models: Path) -> None:
    models.rmdir()
    gpu.variables["TEACHER_GPUS"] = "0"
    done = gpu("up", "--detach", "--no-build", "teacher")
    assert done.returncode != 0
    assert "bind source path does not exist" in done.stderr
    assert str(models) in done.stderr


def test_without_the_checkpoint_the_teacher_says_so_once(models: Path) -> None:
    made = Stack(
        "lvlm2p-test-none",
        VLLM_CPU,
        models.parent,
        MODELS_DIR=str(models),
        VLLM_IMAGE="vllm/vllm-openai:v0.32.0",
        TEACHER_MODEL="Qwen2.5-VL-3B-Instruct",
    )
    try:
        assert made("up", "--detach", "--no-build", "teacher", "student").returncode != 0
        assert made.state("teacher")["ExitCode"] == 2
        assert made.state("teacher")["State"] == "exited"
        (line,) = made.do("logs", "--no-log-prefix", "teacher").splitlines()
        assert "teacher serve: error: --model /models/Qwen2.5-VL-3B-Instruct: " in line
    finally:
        made.do("down", "--volumes")
