"""The run: steps over endless samples, kept in a folder from which it goes on as if it had never stopped."""

import json
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacher_api.terminal import Bar
from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_tools.train.batches import Batch, Patches, in_batches
from teacher_tools.train.blocks import School
from teacher_tools.train.model import Outcome, compile_layers, see, speak
from teacher_tools.train.models import Trainee
from teacher_tools.train.settings import ForgeSettings

STATE, METRICS, WEIGHTS = "training.pt", "metrics.jsonl", "model.safetensors"
_BATCHES_IN_A_BLOCK = 8
"""Samples are made and sorted by their length in blocks of so many batches."""
_RISE, _FALL = 0.02, 0.5
"""Shares of a phase's steps in which the learning rate rises at its beginning, and falls at its end."""
REPORT_EVERY = 20
"""Steps in a line of metrics.jsonl."""
_LARGEST_GRADIENT = 1.0


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, but for a last one that was cut off in the writing."""
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Run:
    """One model in training.

    Args:
        folder: of the run; a state in it is gone on from.
        checkpoint: the folder that is trained for, with or without weights.
    """

    def __init__(
        self,
        folder: Path,
        settings: ForgeSettings,
        checkpoint: Checkpoint,
        trainee: Trainee,
        processor: Any,
        device: torch.device,
    ) -> None:
        self._folder, self._settings, self._checkpoint = folder, settings, checkpoint
        self._trainee, self.device = trainee, device
        self._patches = Patches(processor)
        size = settings.batch_size * _BATCHES_IN_A_BLOCK
        self._school = School(
            checkpoint.folder, settings.prompts, settings.env, settings.task, settings.seed, size
        )
        self._optimizer = trainee.optimizer(settings.learning_rate)
        if settings.compile:
            compile_layers(trainee.model)
        self.step = 0
        """Steps done."""
        self.seconds = 0.0
        """Spent on them."""
        if (folder / STATE).exists():
            self._load()

    @property
    def over(self) -> bool:
        """Whether all steps are done."""
        return self.step >= sum(self._settings.steps)

    def go_on(self) -> None:
        """Does the steps that are left, and saves now and then and at the end.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM came; the run is saved.
        """
        if self.over:
            return
        total = sum(self._settings.steps)
        parts = defaultdict[str, list[float]](list)
        saved = began = time.monotonic()
        phase, first, of = self._phase()
        bar = Bar(of, "samples", name=phase, done=first, shown=self._settings.progress)
        with bar, _asked_to_stop() as stop:
            for batch in self._batches():
                outcome = self._learn(batch)
                now = time.monotonic()
                self.seconds, began = self.seconds + now - began, now
                for name, value in _figures(outcome).items():
                    parts[name].append(value)
                done = self.step == total
                before, (phase, samples, of) = phase, self._phase()
                if phase == before:
                    bar.update(samples)
                else:
                    bar.update(self._settings.pictures)
                    bar.begin(of, name=phase)
                if self.step % REPORT_EVERY == 0 or done:
                    means = {name: float(np.mean(values)) for name, values in parts.items()}
                    parts.clear()
                    self._report(means)
                    shown = ("tile", "value", "whole", "action")
                    bar.update(figures={name: f"{means[name]:.3f}" for name in shown if name in means})
                if stop or done or now - saved > self._settings.save_s:
                    self.save()
                    saved = time.monotonic()
                if done:
                    return
                if stop:
                    raise KeyboardInterrupt

    def _phase(self) -> tuple[str, int, int]:
        """What the next step is of, and how many of its samples are done, of how many."""
        settings = self._settings
        pictures, _ = settings.steps
        if self.step < pictures:
            return "pictures", self.step * settings.batch_size, settings.pictures
        done = (self.step - pictures) * settings.batch_size
        return "conversations", min(done, settings.samples), settings.samples

    def save(self) -> None:
        """Writes the checkpoint's weights and the run's state, each whole or not at all."""
        self._trainee.export(self._checkpoint.folder / WEIGHTS)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "trainee": self._trainee.state(),
            "optimizer": self._optimizer.state_dict(),
        }
        unfinished = self._folder / f"{STATE}.unfinished"
        torch.save(state, unfinished)
        unfinished.replace(self._folder / STATE)

    def _load(self) -> None:
        state = torch.load(self._folder / STATE, map_location=self.device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self._trainee.load(state["trainee"])
        self._optimizer.load_state_dict(state["optimizer"])
        kept = [line for line in read_metrics(self._folder) if line["step"] <= self.step]
        (self._folder / METRICS).write_text(
            "".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8"
        )

    def _batches(self) -> Iterator[Batch]:
        """Those of the steps that are left: each block of samples follows from its number alone."""
        first, skipped = divmod(self.step, _BATCHES_IN_A_BLOCK)
        for number, lessons in enumerate(self._school.blocks(first, self._settings.workers), first):
            order = np.random.default_rng([self._settings.seed, number, 1])
            for i, batch in enumerate(in_batches(lessons, self._settings.batch_size, order)):
                if i >= skipped:
                    yield Batch.of(
                        batch,
                        self._patches,
                        vocabulary=self._checkpoint.dimensions.text.vocab_size,
                        padding=self._checkpoint.end_token_id,
                    )
            skipped = 0

    def _learn(self, batch: Batch) -> Outcome:
        seeing = self.step < self._settings.steps[0]
        batch = batch.to(self.device)
        model, heads = self._trainee.model, self._trainee.heads
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self._settings.precision == "bfloat16"
        )
        with autocast:
            outcome = see(model, heads, batch) if seeing and heads else speak(model, heads, batch)
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trainee.parameters(), _LARGEST_GRADIENT)
        self._optimizer.step(self._rate())
        self.step += 1
        return outcome

    def _rate(self) -> float:
        """The share of the learning rate at this step: up, along, down, in each of the two phases."""
        pictures, conversations = self._settings.steps
        seeing = self.step < pictures
        done, total = (self.step, pictures) if seeing else (self.step - pictures, conversations)
        at = (done + 1) / (total + 1)
        return min(1.0, at / _RISE, (1 - at) / _FALL)

    def _report(self, means: dict[str, float]) -> None:
        told = {"step": self.step, "samples": self.step * self._settings.batch_size, "seconds": self.seconds}
        with (self._folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(told | means) + "\n")


def _figures(outcome: Outcome) -> dict[str, float]:
    return {f"{name}_loss": loss.item() for name, loss in outcome.losses.items()} | outcome.right


class _Stop:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self._came = False

    def __bool__(self) -> bool:
        return self._came

    def come(self, *_: object) -> None:
        """A signal handler: a step in hand is finished first."""
        self._came = True


@contextmanager
def _asked_to_stop() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop.come) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
