"""A prompted teacher under transformers in its own process: unusable settings and unreadable answers."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from student.labels.table import LabelTable, UselessTeacher
from teacher_api.client import TeacherClient
from teacher_server.checkpoints.architectures import ARCHITECTURES, QWEN2_5, Architecture
from teacher_server.prompting.prompt_set import SETS
from teacher_tools.bench.questions import distinct_questions
from tests.conftest import StartTeacher, TeacherProcess
from tests.waiting import LONG_S, metric, wait_until_ready
from tools.random_checkpoint import make_checkpoint
from worlds.minigrid import MinigridWorld, Vocabulary, layout_of
from worlds.world import Environments

pytestmark = pytest.mark.integration

_TEACHER = str(Path(sys.executable).with_name("teacher"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL checkpoint of under a million parameters, with random weights."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def start_prompted(teacher_process: StartTeacher, checkpoint: Path) -> Callable[..., TeacherProcess]:
    """start(*flags) starts a prompted teacher and waits until it is ready."""

    def start(*flags: str) -> TeacherProcess:
        given = ("--teacher", "prompted", "--engine", "transformers", "--model", str(checkpoint))
        teacher = teacher_process(*given, "--prompts", "minigrid-zero-shot", *flags)
        wait_until_ready(teacher)
        return teacher

    return start


def _copy(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(SETS / name, folder / "set"))


def _change(file: Path, pattern: str, replacement: str) -> None:
    text = file.read_text()
    changed = re.sub(pattern, replacement, text)
    assert changed != text
    file.write_text(changed)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda each: each.family)
def test_it_answers_and_stores(
    start_prompted: Callable[..., TeacherProcess], tmp_path: Path, architecture: Architecture
) -> None:
    model = make_checkpoint(tmp_path / "model", architecture=architecture)
    prompts = _copy("minigrid-zero-shot", tmp_path)
    _change(prompts / "set.toml", r"analysis_max_tokens = \d+", "analysis_max_tokens = 900")
    teacher = start_prompted("--model", str(model), "--prompts", str(prompts), "--min-label-mass", "0")
    about = httpx.get(f"{teacher.url}/teacher").json()
    assert about["kind"] == "prompted"
    identified = about["description"]["checkpoint"]
    assert identified.get("architecture", QWEN2_5.name) == architecture.name
    assert about["hosting"]["engine"] == "transformers"
    assert about["hosting"]["weight_bytes"] > 0
    body = [question.model_dump(mode="json") for question in distinct_questions(4)]
    first, second = (
        httpx.post(f"{teacher.url}/policy/batch", json=body, timeout=LONG_S).json()["answers"]
        for _ in range(2)
    )
    for asked, again in zip(first, second, strict=True):
        assert (asked["status"], asked["answer"]["stored"]) == (200, False)
        assert (again["status"], again["answer"]["stored"]) == (200, True)
        assert asked["answer"]["probabilities"] == again["answer"]["probabilities"]
        assert set(json.loads(asked["answer"]["analysis"], strict=False)) >= {"agent", "target", "reasoning"}
        assert 0 < asked["answer"]["stages"]["action"]["label_mass"] < 1


def test_it_teaches_a_student(start_prompted: Callable[..., TeacherProcess], tmp_path: Path) -> None:
    prompts = _copy("minigrid-zero-shot", tmp_path)
    _change(prompts / "set.toml", r"analysis_max_tokens = \d+", "analysis_max_tokens = 900")
    teacher = start_prompted("--prompts", str(prompts), "--min-label-mass", "0")
    run = tmp_path / "run"
    flags = ["--env", "MiniGrid-LavaGapS5-v0", "--frames", "256", "--evaluation-episodes", "2"]
    command = [sys.executable, "-m", "student", "train", "--teacher", teacher.url, *flags, "--out", str(run)]
    subprocess.run(command, check=True, capture_output=True, timeout=LONG_S)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["teacher"] == httpx.get(f"{teacher.url}/teacher").json()["identity"]
    assert 0 < summary["questions"] == metric(teacher, "teacher_questions_total", way="asked")


def test_it_answers_a_student_about_a_task_of_ones_own(
    start_prompted: Callable[..., TeacherProcess], tmp_path: Path
) -> None:
    prompts = _copy("minigrid-zero-shot", tmp_path)
    _change(prompts / "set.toml", r"tasks = .*", 'tasks = ["empty"]')
    rules = (prompts / "tasks/lava_gap.toml").read_text()
    shutil.rmtree(prompts / "tasks")
    (prompts / "tasks").mkdir()
    (prompts / "tasks/empty.toml").write_text(rules)
    front = {"type": "object", "properties": {"front": {"enum": ["wall", "nothing"]}}, "required": ["front"]}
    (prompts / "analysis.schema.json").write_text(json.dumps(front | {"additionalProperties": False}))
    teacher = start_prompted("--prompts", str(prompts), "--min-label-mass", "0")
    layout, vocabulary = layout_of("MiniGrid-Empty-5x5-v0"), Vocabulary()
    obs_NK = Environments(MinigridWorld(layout, vocabulary), 2, seed=1).reset()
    with TeacherClient(teacher.url, deadline_s=100) as client:
        with pytest.raises(UselessTeacher, match="knows empty, and not lava_gap"):
            LabelTable(MinigridWorld(layout, vocabulary), client, task="lava_gap").start()
        table = LabelTable(MinigridWorld(layout, vocabulary), client, task="empty")
        probs_A = table.labels_of(table.rows_of(obs_NK[:1])).probs_BA[0]
        table.close()
    assert (table.asked, table.failed) == (1, 0)
    assert probs_A.sum() == pytest.approx(1)
    useful = len(("left", "right", "forward"))
    assert probs_A[:useful].min() > 0
    assert not probs_A[useful:].any()


@pytest.mark.parametrize(
    ("change", "flags", "stage", "fault"),
    [
        ("analysis_max_tokens = 8", (), "analysis", "truncated"),
        ("analysis_max_tokens = 900", ("--min-label-mass", "0.999"), "action", "label_mass"),
        ("analysis_max_tokens = 900", ("--readout", "numbers", "--sum-tolerance", "0"), "action", "sum"),
    ],
)
def test_what_cannot_be_read_is_told_and_counted_and_not_stored(
    start_prompted: Callable[..., TeacherProcess],
    tmp_path: Path,
    change: str,
    flags: tuple[str, ...],
    stage: str,
    fault: str,
) -> None:
    prompts = _copy("minigrid-zero-shot", tmp_path)
    _change(prompts / "set.toml", r"analysis_max_tokens = \d+", change)
    teacher = start_prompted("--prompts", str(prompts), *flags)
    (question,) = distinct_questions(1)
    before = metric(teacher, "teacher_unreadable_total", stage=stage, fault=fault)
    for _ in range(2):
        reply = httpx.post(f"{teacher.url}/policy", json=question.model_dump(mode="json"), timeout=LONG_S)
        assert reply.status_code == 502, reply.text
        error: dict[str, Any] = reply.json()["error"]
        assert error["reason"].startswith(f"{stage}: ")
        assert error["raw"]
    assert metric(teacher, "teacher_unreadable_total", stage=stage, fault=fault) == before + 2
    assert metric(teacher, "teacher_failures_total", status="502") == 2
    assert metric(teacher, "teacher_questions_total", way="asked") == 2
    assert metric(teacher, "teacher_questions_total", way="stored") == 0


def _without_a_shard(model: Path, _: Path) -> str:
    (model / "model.safetensors").unlink()
    return "model.safetensors"


def _another_architecture(model: Path, _: Path) -> str:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    return "architectures is ['LlamaForCausalLM']"


def _labels_of_many_tokens(_: Path, prompts: Path) -> str:
    _change(prompts / "set.toml", r'forward = "C"', 'forward = "onwards and upwards"')
    return "'onwards and upwards'"


def _unknown_variable(_: Path, prompts: Path) -> str:
    (prompts / "question.txt").write_text("{{ picture }} {{ weather }}")
    return "question.txt: unknown variable 'weather'"


def _no_rules(_: Path, prompts: Path) -> str:
    (prompts / "tasks" / "fetch.toml").unlink()
    return "lists the task 'fetch', which has no tasks/fetch.toml"


@pytest.mark.parametrize(
    "spoil",
    [_without_a_shard, _another_architecture, _labels_of_many_tokens, _unknown_variable, _no_rules],
)
def test_what_cannot_be_served_is_refused_at_the_start(
    checkpoint: Path, tmp_path: Path, spoil: Callable[[Path, Path], str]
) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    prompts = _copy("minigrid-zero-shot", tmp_path)
    said = spoil(model, prompts)
    assert said in _refused("--model", str(model), "--prompts", str(prompts))


def test_too_little_memory_or_length_is_refused_at_the_start(checkpoint: Path) -> None:
    model = ("--model", str(checkpoint))
    assert "more than --max-model-len 300" in _refused(*model, "--max-model-len", "300")
    said = _refused(*model, "--max-model-len", "100000000")
    assert "lower it to 32768" in said
    assert "GiB are available" in said


def test_settings_that_are_missing_are_named() -> None:
    assert "needs --model" in _refused()


def _refused(*flags: str) -> str:
    """Returns the one line with which `teacher serve` refuses."""
    command = [_TEACHER, "serve", "--teacher", "prompted", "--engine", "transformers", "--port", "0"]
    command += ["--store", "none", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("teacher serve: error: ")
    return done.stderr
