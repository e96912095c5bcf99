"""Loads a checkpoint's model with transformers."""

from typing import Any

import torch
import transformers

from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import CannotLoad
from teacher_server.engines.exceptions import words_of
from teacher_server.settings import EngineSettings

_hf: Any = transformers  # its annotations are too incomplete to check against


def device_of(name: str) -> torch.device:
    """Returns the device that the setting `device` names.

    Raises:
        CannotLoad: the name is unknown, or the device is missing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise CannotLoad(f"`device` is {name!r}; it must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotLoad(f"`device` is {name!r}, and torch {torch.__version__} finds no CUDA GPU: use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CannotLoad(f"`device` is {name!r}, and there are {torch.cuda.device_count()} GPUs, from cuda:0")
    return device


def load_model(checkpoint: Checkpoint, settings: EngineSettings, device: torch.device) -> Any:
    """Returns the model on its device, with the checkpoint's weights or random ones.

    Raises:
        CannotLoad: the weights are incomplete, or the device has too little memory.
    """
    dtype = getattr(torch, checkpoint.served_dtype(settings, "transformers"))
    of_architecture = getattr(_hf, checkpoint.dimensions.architecture.name)
    _hf.utils.logging.disable_progress_bar()
    try:
        if settings.load_format == "dummy":
            config = of_architecture.config_class.from_pretrained(checkpoint.folder, local_files_only=True)
            # On the device itself: drawing billions of numbers takes a CPU minutes
            with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
                torch.manual_seed(settings.seed)
                model = of_architecture._from_config(config, dtype=dtype, attn_implementation="sdpa")
            return model.eval()
        model, report = of_architecture.from_pretrained(
            checkpoint.folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
        missing = sorted(report["missing_keys"])
        if missing:
            # transformers only warns, and would run with random weights in their place
            raise CannotLoad(f"{checkpoint.folder} lacks {len(missing)} of its weights, {missing[0]} first")
        return model.to(device).eval()
    except CannotLoad:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise CannotLoad(
                f"out of memory: {checkpoint.folder} in {dtype} does not fit on {device};"
                " take a smaller checkpoint, set `dtype` to bfloat16, or take another `device`"
            ) from error
        raise CannotLoad(f"{checkpoint.folder} cannot be loaded: {words_of(error)}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error says that memory, of a GPU or of this machine, ran out."""
    # torch's own class covers GPU memory only
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
