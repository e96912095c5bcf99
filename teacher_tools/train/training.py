"""A training run: steps over endless samples, kept in a folder, from which the run resumes bit for bit."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacher_api.interrupts import Interrupted, Interrupts
from teacher_api.terminal import Bar
from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_tools.train.batches import Batch, Patches, batches_by_length, parts_by_tokens
from teacher_tools.train.examples import ExampleBlocks, TrainingExample
from teacher_tools.train.losses import conversation_losses, picture_losses
from teacher_tools.train.models import TrainableModel, compile_layers, keep_few_activations
from teacher_tools.train.processes import Processes
from teacher_tools.train.settings import TrainingSettings

STATE, METRICS, WEIGHTS = "training.pt", "metrics.jsonl", "model.safetensors"
_BATCHES_PER_BLOCK = 8
"""Samples are made, and sorted by length, in blocks of this many batches."""
_WARM_UP, _DECAY = 0.02, 0.5
"""The shares of a phase's steps in which the learning rate rises at its start and falls at its end."""
REPORT_EVERY = 20
"""Steps that a line of metrics.jsonl averages."""
_MAX_GRADIENT_NORM = 1.0
_LOSSES = ("tiles", "analysis", "actions", "numbers", "places", "roles")
_SHARES = ("tile", "value", "whole", "action", "place", "role")
_SUMMED = ("interrupted", *_LOSSES, *(f"{what} {name}" for what in ("right", "of") for name in _SHARES))
"""What a step's passes and processes add to: losses, right predictions, and all predictions."""


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
        processes: Processes,
    ) -> None:
        self._folder, self._settings, self._checkpoint = folder, settings, checkpoint
        self._trainable, self._processes, self.device = trainable, processes, processes.device
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
        if settings.gradient_checkpointing:
            keep_few_activations(trainable.model)
        if settings.compile:
            compile_layers(trainable.model)
        self.step = 0
        """Steps done."""
        self.seconds = 0.0
        """Time spent on these steps."""
        if (folder / STATE).exists():
            self._load()
        processes.share_weights(trainable.parameters())

    @property
    def samples(self) -> int:
        """Samples learned from."""
        return self.step * self._settings.batch_size

    def train(self) -> None:
        """Takes the steps up to the settings' last one; saves every `save_s` seconds and at the end.

        Raises:
            Interrupted: SIGINT or SIGTERM came to a process; the run is saved.
        """
        last = self._settings.last_step
        if self.step >= last:
            return
        values = defaultdict[str, list[float]](list)
        saved = began = time.monotonic()
        phase, first, of = self._phase()
        is_first = self._processes.rank == 0
        bar = Bar(of, "samples", name=phase, done=first, shown=self._settings.progress and is_first)
        interrupts = Interrupts()
        with bar, interrupts.handled():
            for examples in self._batches():
                figures = self._learn(examples, interrupts)
                interrupted = figures.pop("interrupted") > 0
                now = time.monotonic()
                self.seconds, began = self.seconds + now - began, now
                for name, value in figures.items():
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
                    if is_first:
                        self._report(means)
                    shown = ("tile", "value", "whole", "action")
                    bar.update(figures={name: f"{means[name]:.3f}" for name in shown if name in means})
                if is_first and (interrupted or done or now - saved > self._settings.save_s):
                    self.save()
                    saved = time.monotonic()
                if done:
                    return
                if interrupted:
                    raise Interrupted

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

    def _batches(self) -> Iterator[list[TrainingExample]]:
        """Yields the examples of each remaining step; they depend on the seed and the step alone."""
        first, skipped = divmod(self.step, _BATCHES_PER_BLOCK)
        for number, examples in enumerate(self._blocks.starting_at(first, self._settings.workers), first):
            order = np.random.default_rng([self._settings.seed, number, 1])
            for i, batch in enumerate(batches_by_length(examples, self._settings.batch_size, order)):
                if i >= skipped:
                    yield batch
            skipped = 0

    def _learn(self, examples: list[TrainingExample], interrupts: Interrupts) -> dict[str, float]:
        """Takes a step with this process's part of the examples.

        Returns:
            The step's losses and shares, and as `interrupted` how many processes are to stop after it.
        """
        settings, processes = self._settings, self._processes
        pictures_alone = self.step < settings.steps[0]
        mine = examples[processes.rank :: processes.count]
        parts = [self._batch(part) for part in parts_by_tokens(mine, settings.batch_tokens)]
        targets = [part.targets for part in parts]
        of = processes.sum({name: sum(each[name] for each in targets) for name in _LOSSES})
        model, heads = self._trainable.model, self._trainable.heads
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
        figures = dict.fromkeys(_SUMMED, 0.0)
        for part in parts:
            batch = part.to(self.device)
            with autocast:
                if pictures_alone and heads:
                    result = picture_losses(model, heads, batch, of)
                else:
                    result = conversation_losses(model, heads, batch, of)
            result.loss.backward()  # type: ignore[no-untyped-call]
            for name, loss in result.losses.items():
                figures[name] += loss.item()
            for name, (right, predicted) in result.right.items():
                figures[f"right {name}"] += right
                figures[f"of {name}"] += predicted
        processes.add_gradients(self._trainable.parameters())
        torch.nn.utils.clip_grad_norm_(self._trainable.parameters(), _MAX_GRADIENT_NORM)
        self._optimizer.step(self._schedule())
        self.step += 1
        figures["interrupted"] = interrupts.signalled
        figures = processes.sum(figures)
        losses = {f"{name}_loss": figures[name] for name in _LOSSES if figures[name]}
        shares = {
            name: figures[f"right {name}"] / figures[f"of {name}"]
            for name in _SHARES
            if figures[f"of {name}"]
        }
        return {"interrupted": figures["interrupted"], **losses, **shares}

    def _batch(self, examples: list[TrainingExample]) -> Batch:
        return Batch.of(
            examples,
            self._patches,
            vocabulary=self._checkpoint.dimensions.text.vocab_size,
            padding=self._checkpoint.end_token_id,
        )

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
        if self.device.type == "cuda":
            counts["memory_gib"] = torch.cuda.max_memory_reserved(self.device) / 2**30
        with (self._folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(counts | means) + "\n")
