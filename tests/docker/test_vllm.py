"""A checkpoint under vLLM on the CPU, through the gateway, and its swap while a student trains."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_tools.bench.questions import distinct_questions
from tests.docker.conftest import VLLM_CPU, Stack, stack, wait_for
from tools.random_checkpoint import make_checkpoint, shortened

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, and the prompt set `minigrid` with short analyses."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        make_checkpoint(folder / name, seed=seed)
    shortened(load_prompt_set("minigrid"), folder / "prompts")
    (folder / "admin-key").write_text("of the administration\n")
    for path in (folder, *folder.parents[:2], *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module")
def vllm(models: Path) -> Iterator[Stack]:
    with stack(
        "lvlm2p-test-vllm",
        VLLM_CPU,
        models,
        VLLM_IMAGE="vllm/vllm-openai:v0.32.0",
        MODELS_DIR=str(models),
        ADMIN_KEY_FILE=str(models / "admin-key"),
        TEACHER_MODEL="one",
        TEACHER_PROMPTS="/models/prompts",
        TEACHER_DTYPE="float32",
        TEACHER_MAX_MODEL_LEN="16384",
        TEACHER_KV_CACHE_GIB="1",
        TEACHER_MIN_LABEL_MASS="0",  # random weights put little mass on labels
        STUDENT_FRAMES="160",
        STUDENT_LOG_EVERY="16",
        STUDENT_ENVIRONMENTS="4",
        STUDENT_ROLLOUT_STEPS="4",
        STUDENT_EVALUATION_EPISODES="1",
        STUDENT_ALLOW_TEACHER_CHANGE="true",
    ) as made:
        yield made


def _identity(stack: Stack) -> str:
    identity: str = httpx.get(f"{stack.url}/teacher", timeout=30).raise_for_status().json()["identity"]
    return identity


def test_the_checkpoint_answers_through_the_gateway(vllm: Stack) -> None:
    vllm.reset()
    vllm.up("--wait", "teacher", "gateway")
    question = distinct_questions(1)[0].model_dump(mode="json")
    reply = httpx.post(f"{vllm.url}/policy", json=question, timeout=120)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["analysis"]
    assert answer["teacher"] == _identity(vllm)


def test_a_swapped_checkpoint_continues_to_teach_the_waiting_student(vllm: Stack) -> None:
    vllm.reset()
    vllm.up("--wait", "teacher", "gateway")
    first = _identity(vllm)
    vllm.up("student")
    begun = ("exec", "-T", "student", "test", "-s", "/runs/student/metrics.jsonl")
    wait_for(lambda: vllm(*begun).returncode == 0 or vllm.state("student")["State"] != "running", "a rollout")
    assert vllm.state("student")["State"] == "running"
    vllm.variables["TEACHER_MODEL"] = "two"
    vllm.up("--no-deps", "teacher")
    assert vllm.run_ended() == 0
    assert _identity(vllm) != first
    assert vllm.summary("student")["teacher"] == _identity(vllm)


def test_a_checkpoint_is_swapped_in_the_running_container(vllm: Stack) -> None:
    vllm.variables["TEACHER_MODEL"] = "two"
    vllm.up("--wait", "teacher", "gateway")
    before = _identity(vllm)
    output = vllm.do("exec", "-T", "teacher", "teacher", "swap", "/models/one")
    assert "new engine" in output
    assert before != _identity(vllm)
    assert _identity(vllm) in output
