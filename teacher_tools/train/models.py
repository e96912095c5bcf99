"""Who is taught: a compact model from scratch, or adapters beside the weights of a given checkpoint."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_tools.train.model import Heads, load_model, new_model, save_weights
from teacher_tools.train.optimizer import Optimizer


class Trainee(Protocol):
    """A model in training."""

    @property
    def model(self) -> Any:
        """A Qwen2_5_VLForConditionalGeneration."""

    @property
    def heads(self) -> Heads | None:
        """What a model from scratch is taught with besides; None where there is a vision tower to keep."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained."""

    def optimizer(self, learning_rate: float) -> Optimizer:
        """Moves the parameters."""

    def state(self) -> dict[str, Any]:
        """What has been learned so far."""

    def load(self, state: dict[str, Any]) -> None:
        """Goes back to a state."""

    def export(self, weights: Path) -> None:
        """Writes the weights as they are served, whole or not at all."""


class Compact:
    """A small model from random weights.

    Args:
        folder: with its config.
    """

    def __init__(self, folder: Path, seed: int, device: torch.device) -> None:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.model = new_model(folder, device)
            self.heads = Heads(self.model.config.vision_config.out_hidden_size).to(device)

    def parameters(self) -> list[torch.nn.Parameter]:
        """All there are."""
        return [*self.model.parameters(), *self.heads.parameters()]

    def optimizer(self, learning_rate: float) -> Optimizer:
        """With Muon for the matrices of all blocks."""
        blocks = [*self.model.model.visual.blocks, *self.model.model.language_model.layers]
        matrices = [weight for block in blocks for weight in block.parameters() if weight.ndim == 2]
        known = set(map(id, matrices))
        rest = [weight for weight in self.parameters() if id(weight) not in known]
        return Optimizer(matrices, rest, learning_rate)

    def state(self) -> dict[str, Any]:
        """All weights."""
        return {"model": self.model.state_dict(), "heads": self.heads.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Takes all weights over."""
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])

    def export(self, weights: Path) -> None:
        """Writes the model's weights in half their size: bfloat16, in which it was taught to multiply."""
        save_weights(self.model, weights, torch.bfloat16)


class Adapted:
    """A checkpoint with low-rank adapters (LoRA) at all products of its language model.

    Raises:
        ImportError: peft is not installed.
    """

    heads = None

    def __init__(self, base: Checkpoint, rank: int, seed: int, device: torch.device) -> None:
        self._base, self._rank = base, rank
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self._adapters = self._with_adapters(device)
        self.model = self._adapters.get_base_model()

    def parameters(self) -> list[torch.nn.Parameter]:
        """Those of the adapters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def optimizer(self, learning_rate: float) -> Optimizer:
        """AdamW alone: an adapter's two matrices are no weight by themselves."""
        return Optimizer([], self.parameters(), learning_rate)

    def state(self) -> dict[str, Any]:
        """The adapters' weights."""
        return {"adapters": _peft().get_peft_model_state_dict(self._adapters)}

    def load(self, state: dict[str, Any]) -> None:
        """Takes the adapters' weights over."""
        _peft().set_peft_model_state_dict(self._adapters, state["adapters"])

    def export(self, weights: Path) -> None:
        """Merges the adapters into a fresh copy of the base and writes that."""
        fresh = self._with_adapters(torch.device("cpu"))
        _peft().set_peft_model_state_dict(fresh, self.state()["adapters"])
        save_weights(fresh.merge_and_unload(), weights)

    def _with_adapters(self, device: torch.device) -> Any:
        model = load_model(self._base.folder, device, getattr(torch, self._base.dtype()))
        products = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
        config = _peft().LoraConfig(r=self._rank, lora_alpha=2 * self._rank, target_modules=products)
        return _peft().get_peft_model(model, config)


def copy_folder(base: Checkpoint, folder: Path) -> None:
    """Copies all files of a checkpoint that can change an answer, but for its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in _besides_weights(base):
        shutil.copyfile(path, folder / path.name)


def _besides_weights(base: Checkpoint) -> Iterable[Path]:
    return (path for path in base.files if "safetensors" not in path.name)


def _peft() -> Any:
    import peft  # noqa: PLC0415 - takes seconds, and is needed for adapters alone

    return peft
