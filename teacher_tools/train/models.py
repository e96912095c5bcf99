"""The models that can be trained: a compact one from scratch, and a checkpoint with LoRA adapters."""

import logging
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from teacher_server.checkpoints.architectures import ARCHITECTURES, QWEN2_5
from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_tools.train.losses import AuxiliaryHeads
from teacher_tools.train.optimizer import Optimizer

_hf: Any = transformers  # its annotations are too incomplete for strict checks
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a faster kernel that is not there


class TrainableModel(Protocol):
    """A model in training."""

    @property
    def model(self) -> Any:
        """A model of one of the served architectures."""

    @property
    def heads(self) -> AuxiliaryHeads | None:
        """Auxiliary heads of a model trained from scratch; None where the vision tower is not trained."""

    def parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that are trained."""

    def optimizer(self, learning_rate: float) -> Optimizer:
        """Returns an optimizer of the parameters."""

    def state(self) -> dict[str, Any]:
        """Returns the trained weights."""

    def load(self, state: dict[str, Any]) -> None:
        """Restores weights that `state` returned."""

    def export(self, weights: Path) -> None:
        """Writes the weights to be served; replaces the file atomically."""


class CompactModel:
    """A small model with random initial weights.

    Args:
        folder: holds the model's config.
    """

    def __init__(self, folder: Path, seed: int, device: torch.device) -> None:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.model = _new_model(folder, device)
            self.heads = AuxiliaryHeads(self.model.config.vision_config.out_hidden_size).to(device)

    def parameters(self) -> list[nn.Parameter]:
        """Returns all parameters of the model and the heads."""
        return [*self.model.parameters(), *self.heads.parameters()]

    def optimizer(self, learning_rate: float) -> Optimizer:
        """Returns an optimizer that uses Muon for the weight matrices of all blocks."""
        blocks = [*self.model.model.visual.blocks, *self.model.model.language_model.layers]
        matrices = [weight for block in blocks for weight in block.parameters() if weight.ndim == 2]
        known = set(map(id, matrices))
        rest = [weight for weight in self.parameters() if id(weight) not in known]
        return Optimizer(matrices, rest, learning_rate)

    def state(self) -> dict[str, Any]:
        """Returns the weights of the model and the heads."""
        return {"model": self.model.state_dict(), "heads": self.heads.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Restores weights that `state` returned."""
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])

    def export(self, weights: Path) -> None:
        """Writes the weights in bfloat16: half the size, and the precision of the products in training."""
        _save_weights(self.model, weights, torch.bfloat16)


class LoraModel:
    """A checkpoint with LoRA adapters on all linear layers of its language model.

    Args:
        four_bit: hold the language model in 4 bits.

    Raises:
        ImportError: peft is not installed, or bitsandbytes where it is needed.
    """

    heads = None

    def __init__(
        self, base: Checkpoint, rank: int, seed: int, device: torch.device, *, four_bit: bool = False
    ) -> None:
        self._base, self._rank = base, rank
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self._adapters = self._with_adapters(device, four_bit=four_bit)
        self.model = self._adapters.get_base_model()

    def parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the adapters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def optimizer(self, learning_rate: float) -> Optimizer:
        """Returns AdamW alone: Muon suits whole weights, and an adapter's matrices are factors of one."""
        return Optimizer([], self.parameters(), learning_rate)

    def state(self) -> dict[str, Any]:
        """Returns the weights of the adapters."""
        return {"adapters": _peft().get_peft_model_state_dict(self._adapters)}

    def load(self, state: dict[str, Any]) -> None:
        """Restores weights that `state` returned."""
        _peft().set_peft_model_state_dict(self._adapters, state["adapters"])

    def export(self, weights: Path) -> None:
        """Merges the adapters into a fresh copy of the base and writes the merged weights."""
        fresh = self._with_adapters(torch.device("cpu"))
        _peft().set_peft_model_state_dict(fresh, self.state()["adapters"])
        _save_weights(fresh.merge_and_unload(), weights)

    def _with_adapters(self, device: torch.device, *, four_bit: bool = False) -> Any:
        model = load_model(self._base, device, getattr(torch, self._base.dtype()), four_bit=four_bit)
        layers = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
        config = _peft().LoraConfig(r=self._rank, lora_alpha=2 * self._rank, target_modules=layers)
        return _peft().get_peft_model(model, config)


def copy_folder(base: Checkpoint, folder: Path) -> None:
    """Copies a checkpoint's files that can change an answer, except the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in base.files:
        if "safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)


def load_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, four_bit: bool = False
) -> Any:
    """Returns a checkpoint's model.

    Args:
        four_bit: hold the language model's products in 4 bits, as QLoRA does (arXiv:2305.14314): NF4 with
            scales that are quantised too, calculated with in bfloat16.
    """
    _hf.utils.logging.disable_progress_bar()
    quantized: dict[str, Any] = {}
    if four_bit:
        import bitsandbytes  # noqa: F401, PLC0415 - an optional extra; transformers' own message is long

        quantized["device_map"] = {"": device}  # moved afterwards, they would be packed twice
        quantized["quantization_config"] = _hf.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["visual", "lm_head"],
        )
    model = getattr(_hf, checkpoint.dimensions.architecture.name).from_pretrained(
        checkpoint.folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=dtype,
        attn_implementation=_attention(device),
        **quantized,
    )
    return _with_fast_patches(model if four_bit else model.to(device))


def keep_few_activations(model: Any) -> None:
    """Has the language model's layers calculate their activations again in the backward pass."""
    model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model.language_model.train()  # in evaluation, transformers ignores it; there is no dropout


def compile_layers(model: Any) -> None:
    """Makes PyTorch compile the language model's layers, all to the same code."""
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)


def _new_model(folder: Path, device: torch.device) -> Any:
    """Returns a model of the config in a folder, with random weights from torch's seed."""
    of_architecture = getattr(_hf, QWEN2_5.name)
    config = of_architecture.config_class.from_pretrained(folder, local_files_only=True)
    model = of_architecture._from_config(config, dtype=torch.float32, attn_implementation=_attention(device))
    return _with_fast_patches(model).to(device)


def _attention(device: torch.device) -> str:
    # On a CPU, the backward pass of torch's own attention in bfloat16 is slower than plain products
    return "eager" if device.type == "cpu" else "sdpa"


class _PatchProduct(nn.Module):
    """The patch embedding as a matrix product; as a convolution it is many times slower on a CPU."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.proj = convolution

    def forward(self, patches_PX: torch.Tensor) -> torch.Tensor:
        kernel_HX = self.proj.weight.flatten(1)
        return functional.linear(patches_PX.to(kernel_HX.dtype), kernel_HX, self.proj.bias)


def _with_fast_patches(model: Any) -> Any:
    visual = model.model.visual
    visual.patch_embed = _PatchProduct(visual.patch_embed.proj)
    return model


def _save_weights(model: Any, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes a model's weights under their published names; replaces the file atomically.

    Args:
        dtype: the written precision; None: each weight's own.
    """
    published = ARCHITECTURES[type(model).__name__].published
    tensors = {
        published(name): value.detach().to("cpu", dtype or value.dtype).contiguous()
        for name, value in model.state_dict().items()
    }
    if model.lm_head.weight is model.get_input_embeddings().weight:
        del tensors["lm_head.weight"]  # tied: the engines take the embedding
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(path)


def _peft() -> Any:
    import peft  # noqa: PLC0415 - takes seconds to import, and only adapters need it

    return peft
