"""The compose file for a GPU, on a machine without one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.conftest import GPU, VLLM_CPU, Stack, docker_info, stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def gpu(models: Path) -> Iterator[Stack]:
    """A stack whose teacher image has no vLLM: Docker refuses to start it for other reasons."""
    image = {"VLLM_IMAGE": "python:3.11-slim-bookworm", "TEACHER_IMAGE": "lvlm2p-teacher-cpu"}
    with stack("lvlm2p-test-gpu", GPU, models.parent, "teacher", MODELS_DIR=str(models), **image) as made:
        yield made


@pytest.fixture
def vllm_cpu(models: Path) -> Iterator[Stack]:
    variables = {"VLLM_IMAGE": "vllm/vllm-openai:v0.32.0", "TEACHER_MODEL": "Qwen2.5-VL-3B-Instruct"}
    with stack("lvlm2p-test-none", VLLM_CPU, models.parent, MODELS_DIR=str(models), **variables) as made:
        yield made


def test_the_teacher_requests_the_gpu_as_docker_documents_it(gpu: Stack) -> None:
    teacher = json.loads(gpu.do("config", "--format", "json"))["services"]["teacher"]
    devices = teacher["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"capabilities": ["gpu"], "count": -1, "driver": "nvidia"}]
    gpu.variables["TEACHER_GPUS"] = "2"
    teacher = json.loads(gpu.do("config", "--format", "json"))["services"]["teacher"]
    assert teacher["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    (mount,) = (volume for volume in teacher["volumes"] if volume["target"] == "/models")
    assert mount["read_only"]


@pytest.mark.skipif("nvidia" in docker_info(), reason="there is a GPU's runtime here")
def test_without_a_gpu_docker_reports_it(gpu: Stack) -> None:
    done = gpu("up", "--detach", "--no-build", "teacher")
    assert done.returncode != 0
    assert 'could not select device driver "nvidia" with capabilities: [[gpu]]' in done.stderr


def test_without_the_models_folder_docker_reports_it(gpu: Stack, models: Path) -> None:
    models.rmdir()
    gpu.variables["TEACHER_GPUS"] = "0"
    done = gpu("up", "--detach", "--no-build", "teacher")
    assert done.returncode != 0
    assert "bind source path does not exist" in done.stderr
    assert str(models) in done.stderr


def test_without_the_checkpoint_the_teacher_reports_it_once(vllm_cpu: Stack) -> None:
    assert vllm_cpu("up", "--detach", "--no-build", "teacher", "student").returncode != 0
    assert vllm_cpu.state("teacher")["ExitCode"] == 2
    assert vllm_cpu.state("teacher")["State"] == "exited"
    (line,) = vllm_cpu.do("logs", "--no-log-prefix", "teacher").splitlines()
    assert "teacher serve: error: /models/Qwen2.5-VL-3B-Instruct: " in line
