"""Teachers being made: real models, a few steps; kept, gone on with, served."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gridworld.tasks import TASKS
from teacher_api import terminal
from teacher_api.client import TeacherClient
from teacher_api.command_line import BadSetting, CannotStart
from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.engines.base import Prompt
from teacher_server.engines.processor import picture_processor
from teacher_server.engines.transformers import TransformersEngine
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_server.settings import Settings
from teacher_tools.train import command, training
from teacher_tools.train.batches import Batch, Patches
from teacher_tools.train.conversation import LessonWriter
from teacher_tools.train.model import load_model, speak
from teacher_tools.train.samples import Sampler
from tests.conftest import AskAbout, StartTeacher
from tests.waiting import LONG_S, wait_for, wait_until_ready

pytestmark = pytest.mark.integration

_QUICK = ["--batch-size", "2", "--precision", "float32", "--device", "cpu", "--no-progress"]
_STEPS = ["--pictures", "4", "--samples", "10"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with pictures and five with conversations."""
    out = tmp_path_factory.mktemp("made") / "run"
    assert command.main(["--out", str(out), *_QUICK, *_STEPS]) == 0
    return out


def _state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / "model.safetensors")


def test_a_run_that_was_stopped_ends_with_the_same_weights(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    learn, stopped_after = training.Run._learn, iter([1, 4])
    at = next(stopped_after)

    def stopping(run: training.Run, batch: Batch) -> object:
        outcome = learn(run, batch)
        if run.step == at:
            signal.raise_signal(signal.SIGINT)
        return outcome

    monkeypatch.setattr(training.Run, "_learn", stopping)
    assert command.main(["--out", str(out), *_QUICK, *_STEPS]) == 130
    at = next(stopped_after)
    assert command.main(["--out", str(out), "--resume", "--no-progress", "--workers", "2"]) == 130
    monkeypatch.undo()
    monkeypatch.setattr(terminal, "_LINE_EVERY_S", 0.0)
    capsys.readouterr()
    assert command.main(["--out", str(out), "--resume", "--progress"]) == 0
    said = capsys.readouterr().err.splitlines()
    told = dict.fromkeys(line.split(" (")[0] for line in said if " samples (" in line)
    assert [line.rpartition(": ")[2] for line in told] == [f"{done} of 10 samples" for done in (6, 8, 10)]
    assert all("conversations: " in line for line in told)
    expected, got = _state(made), _state(out)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [7]


def test_a_last_line_cut_off_in_the_writing_is_left_out(tmp_path: Path) -> None:
    (tmp_path / training.METRICS).write_text('{"step": 20}\n{"step": 40, "val')
    assert training.read_metrics(tmp_path) == [{"step": 20}]


def test_the_checkpoint_is_whole_small_and_says_what_it_is(made: Path) -> None:
    checkpoint = read_checkpoint(made / "checkpoint")
    assert sum(path.stat().st_size for path in checkpoint.folder.iterdir()) < 16e6
    # Kept in half the size that it is served in
    assert checkpoint.dtype() == "float32"
    assert {tensor.dtype for tensor in _state(made).values()} == {torch.bfloat16}
    card = (checkpoint.folder / "README.md").read_text()
    assert checkpoint.digest() in card
    assert "14 samples, made from seed 0" in card
    assert all(task.env_id in card for task in TASKS.values())
    assert "| answers whose most probable action is optimal | " in card
    record = checkpoint.trained_on
    assert record is not None
    assert (record.prompts, record.prompts_digest) == ("compact", load_prompt_set("compact").digest)
    assert [*record.environments] == [task.env_id for task in TASKS.values()]
    assert {grids.sizes for grids in record.environments.values()} == {((6, 6),)}


def test_training_reads_a_conversation_as_the_engine_does(made: Path) -> None:
    checkpoint, prompts = read_checkpoint(made / "checkpoint"), load_prompt_set("compact")
    writer = LessonWriter(checkpoint, prompts)
    samples = Sampler([task.env_id for task in TASKS.values()], seed=5).block(0, 8)
    lessons = [writer.lesson(sample) for sample in samples]
    patches = Patches(picture_processor(checkpoint.dimensions))
    vocabulary = checkpoint.dimensions.text.vocab_size
    batch = Batch.of(lessons, patches, vocabulary=vocabulary, padding=checkpoint.end_token_id)
    model = load_model(checkpoint.folder, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        outcome = speak(model, None, batch)
    image = checkpoint.image_token_id

    async def asked() -> list[dict[int, float]]:
        engine = TransformersEngine(checkpoint, Settings(device="cpu"))
        await engine.start()
        told = []
        for lesson in lessons:
            ids = lesson.token_ids
            once = tuple(token for i, token in enumerate(ids) if token != image or ids[i - 1] != image)
            scores = await engine.score(Prompt(once, (lesson.picture,)), list(lesson.action))
            told.append(dict(zip(lesson.action, scores, strict=True)))
        await engine.close()
        return told

    expected = [
        -sum(lesson.action[token] * score for token, score in scores.items())
        for lesson, scores in zip(lessons, asyncio.run(asked()), strict=True)
    ]
    assert outcome.losses["actions"].item() == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_what_is_taught_is_learned(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--pictures", "320", "--samples", "320", "--batch-size", "8", "--precision", "float32"]
    flags += ["--env", "MiniGrid-LavaGapS5-v0", "--device", "cpu", "--no-progress", "--learning-rate", "2e-3"]
    assert command.main(["--out", str(out), *flags]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name in ("tiles_loss", "places_loss", "analysis_loss", "actions_loss"):
        losses = [line[name] for line in lines if name in line]
        assert losses[-1] < 0.9 * losses[0], name


def test_a_forged_teacher_is_served(made: Path, teacher_process: StartTeacher, ask_about: AskAbout) -> None:
    flags = ["--model", str(made / "checkpoint"), "--prompts", "compact", "--min-label-mass", "0"]
    teacher = teacher_process("--teacher", "prompted", "--engine", "transformers", "--device", "cpu", *flags)
    wait_until_ready(teacher)
    with TeacherClient(teacher.url, deadline_s=LONG_S) as client:
        for task in TASKS.values():
            answer = client.ask(ask_about(task.env_id))
            # The schema has bounds everywhere: even a model that knows nothing comes to an end
            assert list(json.loads(answer.analysis, strict=False)) == [
                "agent",
                "target",
                "hazards",
                "front",
                "direction",
            ]
            assert answer.probabilities is not None
            assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_adapters_are_merged_into_the_base(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    out, base = tmp_path / "run", made / "checkpoint"
    flags = ["--base", str(base), "--lora-rank", "4", "--samples", "4", *_QUICK]
    assert command.main(["--out", str(out), *flags]) == 0
    # Merged weights are written as they are served
    before, after = {name: value.float() for name, value in _state(made).items()}, _state(out)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.layers.") and "_proj.weight" in name for name in changed)
    assert read_checkpoint(out / "checkpoint").differs_in_weights_alone(read_checkpoint(base))
    assert command.main(["--out", str(out), "--resume", "--no-progress"]) == 0


def test_a_process_that_is_interrupted_keeps_what_it_has(tmp_path: Path) -> None:
    out = tmp_path / "run"
    teacher = Path(sys.executable).with_name("teacher")
    flags = ["--out", str(out), *_QUICK, "--pictures", "0", "--samples", "100000", "--save-s", "0.001"]
    process = subprocess.Popen([teacher, "train", *flags], stderr=subprocess.PIPE, text=True)
    wait_for((out / "training.pt").exists, "the first saving")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    (line,) = (line for line in errors.splitlines() if line.startswith("teacher train: interrupted after "))
    assert re.search(rf" \d+ of 50000 steps; saved; `teacher train --resume --out {out}` goes on$", line)
    assert "error:" not in errors
    assert "Traceback" not in errors
    assert torch.load(out / "training.pt", weights_only=True)["step"] >= 1
    read_checkpoint(out / "checkpoint")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--env", "MiniGrid-Nowhere-v0"], "unknown environment 'MiniGrid-Nowhere-v0'"),
        (
            ["--env", "MiniGrid-Empty-6x6-v0"],
            "--task is missing: MiniGrid-Empty-6x6-v0 belongs to no known task",
        ),
        (["--task", "maze"], "--task: the planner, who teaches, knows lava_gap"),
        (["--env", "MiniGrid-GoToObject-6x6-N2-v0"], "of which the prompt set compact says nothing"),
        (["--samples", "0"], "--samples"),
        (["--prompts", "nothing"], "no prompt set 'nothing'"),
        (["--base", "nowhere"], "--base nowhere"),
        (["--resume"], "holds no run"),
        (["--device", "tpu"], "--device is 'tpu'"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(flags: list[str], why: str, tmp_path: Path) -> None:
    with pytest.raises((BadSetting, CannotStart)) as refused:
        command.main(["--out", str(tmp_path / "run"), *flags])
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_run_is_not_written_over(made: Path) -> None:
    before = _state(made)
    with pytest.raises(CannotStart, match="add --resume"):
        command.main(["--out", str(made), *_QUICK, *_STEPS])
    assert all(torch.equal(value, before[name]) for name, value in _state(made).items())
