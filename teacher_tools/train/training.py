"""A training run: steps over endless samples, kept in a folder, from which the run resumes bit for bit."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacher_api.interrupts import Interrupts
from teacher_api.terminal import Bar
from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_tools.train.batches import Batch, Patches, batches_by_length
from teacher_tools.train.examples import ExampleBlocks
from teacher_tools.train.losses import BatchResult, conversation_losses, picture_losses
from teacher_tools.train.models import TrainableModel, compile_layers
from teacher_tools.train.settings import TrainingSettings

STATE, METRICS, WEIGHTS = "training.pt", "metrics.jsonl", "model.safetensors"
_BATCHES_PER_BLOCK = 8
"""Samples are made, and sorted by length, in blocks of this many batches."""
_WARM_UP, _DECAY = 0.02, 0.5
"""The shares of a phase's steps in which the learning rate rises at its start and falls at its end."""
REPORT_EVERY = 20
"""Steps that a line of metrics.jsonl averages."""
_MAX_GRADIENT_NORM = 1.0


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, without an incomplete last line."""
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Run:
    """Trains one model.

    Args:
        folder: the run's; a saved state in it is resumed.
        checkpoint: the folder that the weights are written to.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrainingSettings,
        checkpoint: Checkpoint,
        trainable: TrainableModel,
        processor: Any,
        device: torch.device,
    ) -> None:
        self._folder, self._settings, self._checkpoint = folder, settings, checkpoint
        self._trainable, self.device = trainable, device
        self._patches = Patches(processor)
        size = settings.batch_size * _BATCHES_PER_BLOCK
        self._blocks = ExampleBlocks(
            checkpoint.folder,
            settings.prompts,
            settings.env,
            settings.task,
            settings.seed,
            settings.expert,
            size,
            *(steps * settings.batch_size for steps in settings.steps),
        )
        self._optimizer = trainable.optimizer(settings.learning_rate)
        if settings.compile:
            compile_layers(trainable.model)
        self.step = 0
        """Steps done."""
        self.seconds = 0.0
        """Time spent on these steps."""
        if (folder / STATE).exists():
            self._load()

    @property
    def samples(self) -> int:
        """Samples learned from."""
        return self.step * self._settings.batch_size

    def train(self) -> None:
        """Takes the steps up to the settings' last one; saves every `save_s` seconds and at the end.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the run is saved.
        """
        last = self._settings.last_step
        if self.step >= last:
            return
        values = defaultdict[str, list[float]](list)
        saved = began = time.monotonic()
        phase, first, of = self._phase()
        bar = Bar(of, "samples", name=phase, done=first, shown=self._settings.progress)
        interrupts = Interrupts()
        with bar, interrupts.handled():
            for batch in self._batches():
                result = self._learn(batch)
                now = time.monotonic()
                self.seconds, began = self.seconds + now - began, now
                for name, value in _metrics(result).items():
                    values[name].append(value)
                done = self.step == last
                before, (phase, samples, of) = phase, self._phase()
                if phase == before:
                    bar.update(samples)
                else:
                    bar.update(self._settings.pictures)
                    bar.begin(of, name=phase)
                if self.step % REPORT_EVERY == 0 or done:
                    means = {name: float(np.mean(each)) for name, each in values.items()}
                    values.clear()
                    self._report(means)
                    shown = ("tile", "value", "whole", "action")
                    bar.update(figures={name: f"{means[name]:.3f}" for name in shown if name in means})
                if interrupts.signalled or done or now - saved > self._settings.save_s:
                    self.save()
                    saved = time.monotonic()
                if done:
                    return
                interrupts.check()

    def _phase(self) -> tuple[str, int, int]:
        """Returns the phase of the next step, how many of its samples are done, and how many it has."""
        settings = self._settings
        pictures, _ = settings.steps
        if self.step < pictures:
            return "pictures", self.step * settings.batch_size, settings.pictures
        done = (self.step - pictures) * settings.batch_size
        return "conversations", min(done, settings.samples), settings.samples

    def save(self) -> None:
        """Writes the checkpoint's weights and the run's state; each file is replaced atomically."""
        self._trainable.export(self._checkpoint.folder / WEIGHTS)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "trainee": self._trainable.state(),
            "optimizer": self._optimizer.state_dict(),
        }
        unfinished = self._folder / f"{STATE}.unfinished"
        torch.save(state, unfinished)
        unfinished.replace(self._folder / STATE)

    def _load(self) -> None:
        state = torch.load(self._folder / STATE, map_location=self.device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self._trainable.load(state["trainee"])
        self._optimizer.load_state_dict(state["optimizer"])
        kept = [line for line in read_metrics(self._folder) if line["step"] <= self.step]
        (self._folder / METRICS).write_text(
            "".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8"
        )

    def _batches(self) -> Iterator[Batch]:
        """Yields the batches of the remaining steps; they depend on the seed and the step alone."""
        first, skipped = divmod(self.step, _BATCHES_PER_BLOCK)
        for number, examples in enumerate(self._blocks.starting_at(first, self._settings.workers), first):
            order = np.random.default_rng([self._settings.seed, number, 1])
            for i, batch in enumerate(batches_by_length(examples, self._settings.batch_size, order)):
                if i >= skipped:
                    yield Batch.of(
                        batch,
                        self._patches,
                        vocabulary=self._checkpoint.dimensions.text.vocab_size,
                        padding=self._checkpoint.end_token_id,
                    )
            skipped = 0

    def _learn(self, batch: Batch) -> BatchResult:
        pictures_alone = self.step < self._settings.steps[0]
        batch = batch.to(self.device)
        model, heads = self._trainable.model, self._trainable.heads
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self._settings.precision == "bfloat16"
        )
        with autocast:
            if pictures_alone and heads:
                result = picture_losses(model, heads, batch)
            else:
                result = conversation_losses(model, heads, batch)
        result.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trainable.parameters(), _MAX_GRADIENT_NORM)
        self._optimizer.step(self._schedule())
        self.step += 1
        return result

    def _schedule(self) -> float:
        """Returns this step's share of the learning rate: warm-up, plateau and decay in each phase."""
        pictures, conversations = self._settings.steps
        in_pictures = self.step < pictures
        done, total = (self.step, pictures) if in_pictures else (self.step - pictures, conversations)
        at = (done + 1) / (total + 1)
        return min(1.0, at / _WARM_UP, (1 - at) / _DECAY)

    def _report(self, means: dict[str, float]) -> None:
        counts = {
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
        }
        with (self._folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(counts | means) + "\n")


def _metrics(result: BatchResult) -> dict[str, float]:
    found = {f"{name}_loss": loss.item() for name, loss in result.losses.items()} | result.right
    return {name: value for name, value in found.items() if not math.isnan(value)}
