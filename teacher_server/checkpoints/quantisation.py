"""Quantised checkpoints: the method, whether all weights are there, and which engine serves them."""

import re
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from teacher_server.checkpoints.dimensions import Shapes

_MODULE = re.compile(r"model\.layers\.\d+|visual\.[a-z_]+(\.\d+)?|lm_head|model\.embed_tokens")
# As AWQ, GPTQ, bitsandbytes, FP8, compressed-tensors and ModelOpt name what they store beside or for a matrix
_PART = re.compile(
    r"\.(weight\.)?(qweight|qzeros|g_idx|scb|quant_state.*|weight_(shape|format|g_idx)"
    r"|.*(scales?(_inv|_\d+)?|absmax|quant_map|zero_point|packed|amax))"
)
_PLAIN = "take the checkpoint as it was before it was quantised"


def quantisation_of(config: Mapping[str, Any]) -> str | None:
    """The name of the method that a config says the weights are quantised by."""
    text = config.get("text_config")
    places = [config, text if isinstance(text, dict) else {}]
    said = [place.get(key) for place in places for key in ("quantization_config", "compression_config")]
    told = next((each for each in said if each), None)
    if told is None:
        return None
    method = told.get("quant_method") if isinstance(told, dict) else None
    return str(method or "a method that it does not name")


def packed(found: Iterable[str], strange: Iterable[str], expected: Shapes) -> list[str]:
    """Tensors that only a quantised checkpoint has: parts of its matrices, and what their numbers mean.

    Args:
        found: the names of all tensors in the files.
        strange: those of a type that weights do not have.
        expected: names and shapes of the weights before they were quantised.
    """
    modules = {_module(name) for name in expected}
    parts = [name for name in found if name not in expected and _module(name) in modules and _is_part(name)]
    return sorted({*parts, *(name for name in strange if name in expected and not is_plain(name, expected))})


def absent(expected: Shapes, found: Collection[str]) -> list[str]:
    """Weights of which neither they themselves nor a quantised form is there."""
    stems = {_stem(name) for name in found if name not in expected}
    return [
        name
        for name in expected
        if name not in found and (is_plain(name, expected) or _stem(name) not in stems)
    ]


def is_plain(name: str, expected: Shapes) -> bool:
    """Whether a weight is never quantised: a vector, or an embedding."""
    return len(expected[name]) == 1 or "embed" in name


def _module(name: str) -> str | None:
    found = _MODULE.match(name)
    return found[0] if found else None


def _stem(name: str) -> str:
    """The layer that a tensor, or a part of it, belongs to."""
    return name.split(".weight.", 1)[0] if ".weight." in name else name.rsplit(".", 1)[0]


def _is_part(name: str) -> bool:
    return _PART.fullmatch(name.removeprefix(_stem(name)).lower()) is not None


def engine_problems(method: str, engine: str, dtype: str) -> list[str]:
    """Why an engine does not serve weights that are quantised by a method, on this machine."""
    told = f"the weights are quantised by {method} (quantization_config in config.json)"
    if engine != "vllm":
        return [f"{told}, and the engine {engine} serves none that are: take --engine vllm, or {_PLAIN}"]
    if find_spec("vllm") is None:
        return []  # that it is not here is told anyway
    from vllm.model_executor.layers.quantization import (  # noqa: PLC0415 - seconds
        QUANTIZATION_METHODS,
        get_quantization_config,
    )
    from vllm.platforms import current_platform  # noqa: PLC0415

    if method not in QUANTIZATION_METHODS:
        known = ", ".join(sorted(QUANTIZATION_METHODS))
        return [f"{told}, which this vLLM does not know (it knows {known}): {_PLAIN}"]
    try:
        current_platform.verify_quantization(method)
        needs = get_quantization_config(method)
    except Exception as error:
        return [f"{told}, and vLLM refuses that here ({error}): {_PLAIN}"]
    found, least = [], needs.get_min_capability()
    if current_platform.is_cuda() and not current_platform.has_device_capability(least):
        has = current_platform.get_device_capability()
        lacks = f"needs a GPU of compute capability {least / 10:.1f}, and this one has {has}"
        found.append(f"{told}, which {lacks}: {_PLAIN}")
    try:
        served = [str(each).removeprefix("torch.") for each in needs.get_supported_act_dtypes()]
    except TypeError:  # some of vLLM's classes tell it of an instance alone
        served = [dtype]
    if dtype not in served:
        types = " or ".join(served)
        found.append(f"{told}, which vLLM computes in {types}, not in {dtype}: add --dtype {served[0]}")
    return found
