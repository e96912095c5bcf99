"""`teacher train`: real models trained for a few steps, then resumed and served."""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from gridworld.tasks import TASKS
from teacher_api import terminal
from teacher_api.client import TeacherClient
from teacher_server.checkpoints.architectures import ARCHITECTURES, Architecture
from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.engines.base import Prompt
from teacher_server.engines.transformers.engine import TransformersEngine
from teacher_server.engines.transformers.pictures import picture_processor
from teacher_server.prompting.prompt_set import SETS, load_prompt_set
from teacher_server.settings import Settings
from teacher_tools.cli import main
from teacher_tools.train import training
from teacher_tools.train.batches import Batch, Patches
from teacher_tools.train.examples import ExampleEncoder
from teacher_tools.train.losses import conversation_losses
from teacher_tools.train.models import load_model
from teacher_tools.train.samples import Sampler
from tests.conftest import AskAbout, StartTeacher
from tests.waiting import LONG_S, wait_for, wait_until_ready
from tools.random_checkpoint import make_checkpoint

pytestmark = pytest.mark.integration

_QUICK = ["--batch-size", "2", "--precision", "float32", "--device", "cpu", "--no-progress"]
_STEPS = ["--pictures", "4", "--samples", "10"]


@pytest.fixture(scope="module", autouse=True)
def _muon_in_float32() -> Iterator[None]:
    """Muon's bfloat16 products take nine tenths of a step on a CPU that calculates in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.float().clone())
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with pictures and five with conversations."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--out", str(out), *_QUICK, *_STEPS]) == 0
    return out


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / "model.safetensors")


def test_an_interrupted_and_resumed_run_ends_with_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    learn = training.Run._learn

    def stopping(*arguments: Any, **named: Any) -> object:
        result = learn(*arguments, **named)
        signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(training.Run, "_learn", stopping)
    assert main(["train", "--out", str(out), *_QUICK, *_STEPS]) == 130
    monkeypatch.undo()
    stopped = ["train", "--out", str(out), "--resume", "--no-progress", "--workers", "2", "--stop-after", "7"]
    for _ in range(2):  # the second time there is nothing to do
        capsys.readouterr()
        assert main(stopped) == 0
        assert "teacher train: stopped after 4 of 7 steps; saved; " in capsys.readouterr().err
        checkpoint = read_checkpoint(out / "checkpoint")
        assert checkpoint.trained_on is not None
        assert checkpoint.trained_on.samples == 8
        card = (checkpoint.folder / "README.md").read_text()
        assert "8 of 14 planned samples, made with seed 0" in card
        assert checkpoint.digest() in card
        assert "| answers whose most probable action is optimal | " in card
    monkeypatch.setattr(terminal, "_LINE_EVERY_S", 0.0)
    capsys.readouterr()
    assert main(["train", "--out", str(out), "--resume", "--progress"]) == 0
    printed = capsys.readouterr().err.splitlines()
    lines = dict.fromkeys(line.split(" (")[0] for line in printed if " samples (" in line)
    assert [line.rpartition(": ")[2] for line in lines] == [f"{done} of 10 samples" for done in (6, 8, 10)]
    assert all("conversations: " in line for line in lines)
    expected, got = _weights(trained), _weights(out)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 7]
    assert "stop_after" not in (out / "settings.json").read_text()


def test_a_killed_run_leaves_no_worker(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "teacher_tools", "train", "--out", str(tmp_path / "run"), *_QUICK]
    with subprocess.Popen([*command, "--workers", "2"]) as process:
        started = psutil.Process(process.pid)
        # The workers, and the process in which multiprocessing keeps track of what they share
        wait_for(lambda: len(started.children()) == 3, "two workers")
        workers = started.children()
        process.kill()
        assert not psutil.wait_procs(workers, timeout=LONG_S)[1]


@pytest.mark.parametrize(
    "machine",
    [
        ["--batch-tokens", "1"],
        ["--gradient-checkpointing", "--compile"],
    ],
    ids=lambda machine: machine[0],
)
def test_what_saves_memory_does_not_change_the_weights(
    trained: Path, tmp_path: Path, machine: list[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *_QUICK, *_STEPS, *machine]) == 0
    _assert_alike(out, trained)


@pytest.mark.operate
def test_processes_learn_together_as_one_does(trained: Path, tmp_path: Path) -> None:
    """The processes are those of torchrun; SIGINT to one of them stops both after the same step."""
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train = [*torchrun, "--module", "teacher_tools", "train", *_QUICK, "--out", str(out)]
    with subprocess.Popen([*train, *_STEPS, "--save-s", "0.001"], stderr=subprocess.PIPE, text=True) as first:
        wait_for((out / "training.pt").exists, "the first save")
        psutil.Process(first.pid).children()[-1].send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=LONG_S)
    assert len(re.findall(r"interrupted after \d of 7 steps; saved", errors)) == 1
    done = subprocess.run([*train, "--resume"], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.count("teacher serve") == 1
    _assert_alike(out, trained)


def _assert_alike(out: Path, other: Path) -> None:
    """The weights are the same but for rounding, which Muon makes larger: its steps have one size."""
    got, expected = _weights(out), _weights(other)
    assert got.keys() == expected.keys()
    for name, weight in expected.items():
        if not name.endswith("k_proj.bias"):  # its gradient is 0, and AdamW makes steps of its rounding
            difference = (got[name].float() - weight.float()).norm() / weight.float().norm()
            assert difference < 0.01, name


def test_an_incomplete_last_line_of_the_metrics_is_dropped(tmp_path: Path) -> None:
    (tmp_path / training.METRICS).write_text('{"step": 20}\n{"step": 40, "val')
    assert training.read_metrics(tmp_path) == [{"step": 20}]


def test_the_checkpoint_is_complete_and_small_and_has_a_card_and_a_record(trained: Path) -> None:
    checkpoint = read_checkpoint(trained / "checkpoint")
    assert sum(path.stat().st_size for path in checkpoint.folder.iterdir()) < 16e6
    # Stored in half the size that it is served in
    assert checkpoint.dtype() == "float32"
    assert {tensor.dtype for tensor in _weights(trained).values()} == {torch.bfloat16}
    card = (checkpoint.folder / "README.md").read_text()
    assert checkpoint.digest() in card
    assert "14 samples, made with seed 0" in card
    assert "- MiniGrid-LavaCrossingS11N5-v0" in card
    assert "| answers whose most probable action is optimal | " in card
    record = checkpoint.trained_on
    assert record is not None
    assert record.samples == 14
    assert (record.prompts, record.prompts_digest) == ("compact", load_prompt_set("compact").digest)
    assert {task.env_id for task in TASKS.values()} < {*record.environments}
    assert record.environments["MiniGrid-LavaGapS7-v0"].sizes == ((7, 7),)


def test_training_and_the_engine_compute_the_same_action_loss(trained: Path) -> None:
    _check_action_loss(trained / "checkpoint", "compact")


def _check_action_loss(folder: Path, prompt_set: str) -> None:
    checkpoint = read_checkpoint(folder)
    prompts = load_prompt_set(prompt_set, checkpoint.dimensions.vision.token_side)
    encoder = ExampleEncoder(checkpoint, prompts)
    samples = Sampler([task.env_id for task in TASKS.values()], seed=5).block(0, 8)
    examples = [encoder.encode(sample) for sample in samples]
    patches = Patches(picture_processor(checkpoint.dimensions))
    vocabulary = checkpoint.dimensions.text.vocab_size
    batch = Batch.of(examples, patches, vocabulary=vocabulary, padding=checkpoint.end_token_id)
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        result = conversation_losses(model, None, batch, batch.targets)
    image = checkpoint.image_token_id

    async def engine_scores() -> list[dict[int, float]]:
        engine = TransformersEngine(checkpoint, Settings(device="cpu"))
        await engine.start()
        by_example = []
        for example in examples:
            ids = example.token_ids
            once = tuple(token for i, token in enumerate(ids) if token != image or ids[i - 1] != image)
            scores = await engine.score(Prompt(once, (example.picture,)), list(example.action))
            by_example.append(dict(zip(example.action, scores, strict=True)))
        await engine.close()
        return by_example

    expected = [
        -sum(example.action[token] * score for token, score in scores.items())
        for example, scores in zip(examples, asyncio.run(engine_scores()), strict=True)
    ]
    assert result.losses["actions"].item() == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_every_loss_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(training, "REPORT_EVERY", 4)
    flags = ["--pictures", "64", "--samples", "64", "--batch-size", "4", "--precision", "float32"]
    flags += ["--env", "MiniGrid-LavaGapS5-v0", "--device", "cpu", "--no-progress", "--learning-rate", "2e-3"]
    assert main(["train", "--out", str(out), *flags]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name in ("tiles_loss", "places_loss", "analysis_loss", "actions_loss"):
        losses = [line[name] for line in lines if name in line]
        assert len(losses) == 4
        assert losses[-1] < 0.5 * losses[0], name


def test_a_trained_checkpoint_is_served(
    trained: Path, teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    flags = ["--model", str(trained / "checkpoint"), "--prompts", "compact", "--min-label-mass", "0"]
    teacher = teacher_process("--teacher", "prompted", "--engine", "transformers", "--device", "cpu", *flags)
    wait_until_ready(teacher)
    with TeacherClient(teacher.url, deadline_s=LONG_S) as client:
        for task in TASKS.values():
            answer = client.ask(ask_about(task.env_id))
            # The schema bounds every part, so that even an untrained model ends its analysis
            assert list(json.loads(answer.analysis, strict=False)) == [
                "agent",
                "target",
                "hazards",
                "front",
                "direction",
            ]
            assert answer.probabilities is not None
            assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_adapters_are_merged_into_the_base(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    out, base = tmp_path / "run", trained / "checkpoint"
    flags = ["--base", str(base), "--lora-rank", "4", "--samples", "4", *_QUICK]
    assert main(["train", "--out", str(out), *flags]) == 0
    # Merged weights have the precision that they are served in
    before, after = {name: value.float() for name, value in _weights(trained).items()}, _weights(out)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.layers.") and "_proj.weight" in name for name in changed)
    assert read_checkpoint(out / "checkpoint").differs_in_weights_alone(read_checkpoint(base))
    assert main(["train", "--out", str(out), "--resume", "--no-progress"]) == 0


def test_adapters_are_trained_on_four_bits_and_merged_into_the_whole_weights(
    trained: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    out, base = tmp_path / "run", trained / "checkpoint"
    flags = ["--base", str(base), "--base-4bit", "--lora-rank", "4", "--samples", "4", *_QUICK]
    assert main(["train", "--out", str(out), *flags]) == 0
    before, after = _weights(trained), _weights(out)
    assert after.keys() == before.keys()
    differences = {
        name: (after[name].float() - before[name].float()).norm() / before[name].float().norm()
        for name in before
    }
    # Rounding to 4 bits would change a weight by a tenth
    assert 0 < max(differences.values()) < 0.02


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda each: each.family)
def test_every_architecture_is_adapted_and_its_losses_are_those_of_the_engine(
    tmp_path: Path, architecture: Architecture
) -> None:
    pytest.importorskip("peft")
    base, out = make_checkpoint(tmp_path / "base", architecture=architecture), tmp_path / "run"
    flags = ["--base", str(base), "--prompts", "minigrid-zero-shot", "--lora-rank", "4", "--samples", "4"]
    assert main(["train", "--out", str(out), *flags, *_QUICK]) == 0
    adapted = read_checkpoint(out / "checkpoint")
    assert adapted.differs_in_weights_alone(read_checkpoint(base))
    assert f"A {architecture.family} checkpoint" in (adapted.folder / "README.md").read_text()
    before, after = load_file(base / "model.safetensors"), _weights(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(f"{architecture.text_prefix}layers.") for name in changed)
    _check_action_loss(out / "checkpoint", "minigrid-zero-shot")


def test_an_interrupted_process_saves_its_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    teacher = Path(sys.executable).with_name("teacher")
    flags = ["--out", str(out), *_QUICK, "--pictures", "0", "--samples", "100000", "--save-s", "0.001"]
    process = subprocess.Popen([teacher, "train", *flags], stderr=subprocess.PIPE, text=True)
    wait_for((out / "training.pt").exists, "the first save")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    (line,) = (line for line in errors.splitlines() if line.startswith("teacher train: interrupted after "))
    assert re.search(
        rf" \d+ of 50000 steps; saved; `teacher train --resume --out {out}` resumes the run$", line
    )
    assert "error:" not in errors
    assert "Traceback" not in errors
    assert torch.load(out / "training.pt", weights_only=True)["step"] >= 1
    read_checkpoint(out / "checkpoint")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--env", "MiniGrid-Nowhere-v0"], "unknown environment 'MiniGrid-Nowhere-v0'"),
        (
            ["--env", "MiniGrid-MemoryS7-v0"],
            "--task is missing: MiniGrid-MemoryS7-v0 belongs to no known task",
        ),
        (["--task", "maze"], "--task: the planner knows lava_gap"),
        (
            ["--env", "MiniGrid-GoToObject-6x6-N2-v0", "--prompts", "minigrid"],
            "go_to_object, which the prompt set minigrid does not have",
        ),
        (["--samples", "0"], "--samples"),
        (["--stop-after", "0"], "--stop-after"),
        (["--prompts", "nothing"], "no prompt set 'nothing'"),
        (["--base", "nowhere"], "--base nowhere"),
        (["--base-4bit"], "--base-4bit is for adapters: name their checkpoint with --base"),
        (["--resume"], "holds no run"),
        (["--device", "tpu"], "--device is 'tpu'"),
    ],
)
def test_an_unusable_setting_is_reported_in_one_line(
    flags: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_the_environments_are_those_of_the_prompt_sets_tasks(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_checkpoint(trained / "checkpoint", weights=False).trained_on
    assert record is not None
    assert {each.task for each in record.environments.values()} == set(load_prompt_set("compact").tasks)
    maze = shutil.copytree(SETS / "compact", tmp_path / "maze")
    settings = (maze / "set.toml").read_text()
    (maze / "set.toml").write_text(re.sub(r"tasks = .*", 'tasks = ["maze"]', settings))
    (maze / "tasks" / "lava_gap.toml").rename(maze / "tasks" / "maze.toml")
    for other in (*TASKS, "go_to_object"):
        (maze / "tasks" / f"{other}.toml").unlink(missing_ok=True)
    (maze / "views.toml").unlink()
    assert main(["train", "--out", str(tmp_path / "run"), "--prompts", str(maze)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--env is missing: none is known for the prompt set's tasks, maze" in line


def test_a_run_is_not_overwritten(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _weights(trained)
    assert main(["train", "--out", str(trained), *_QUICK, *_STEPS]) == 2
    assert f"--out {trained} holds a run: add --resume" in capsys.readouterr().err
    assert all(torch.equal(value, before[name]) for name, value in _weights(trained).items())
