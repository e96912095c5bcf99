"""Quantised checkpoints: their method, their tensors, and which engine serves them."""

import re
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from teacher_server.checkpoints.architectures import Shapes

_MODULE = re.compile(
    r"model\.(language_model\.)?(layers\.\d+|embed_tokens)|(model\.)?visual\.[a-z_]+(\.\d+)?|lm_head"
)
# How AWQ, GPTQ, bitsandbytes, FP8, compressed-tensors and ModelOpt name the parts of a matrix
_PART = re.compile(
    r"\.(weight\.)?(qweight|qzeros|g_idx|scb|quant_state.*|weight_(shape|format|g_idx)"
    r"|.*(scales?(_inv|_\d+)?|absmax|quant_map|zero_point|packed|amax))"
)
_PLAIN = "use the checkpoint from before quantisation"


def quantisation_of(config: Mapping[str, Any]) -> str | None:
    """Returns the quantisation method that a config names, or None."""
    text = config.get("text_config")
    places = [config, text if isinstance(text, dict) else {}]
    entries = [place.get(key) for place in places for key in ("quantization_config", "compression_config")]
    entry = next((each for each in entries if each), None)
    if entry is None:
        return None
    method = entry.get("quant_method") if isinstance(entry, dict) else None
    return str(method or "an unnamed method")


def packed(found: Iterable[str], strange: Iterable[str], expected: Shapes) -> list[str]:
    """Returns the tensors that only a quantised checkpoint has: parts of its matrices, scales and the like.

    Args:
        found: names of all tensors in the files.
        strange: names of tensors of a type that plain weights do not have.
        expected: names and shapes of the weights before quantisation.
    """
    modules = {_module(name) for name in expected}
    parts = [name for name in found if name not in expected and _module(name) in modules and _is_part(name)]
    return sorted({*parts, *(name for name in strange if name in expected and not is_plain(name, expected))})


def absent(expected: Shapes, found: Collection[str]) -> list[str]:
    """Returns the weights that are missing in plain and in quantised form."""
    stems = {_stem(name) for name in found if name not in expected}
    return [
        name
        for name in expected
        if name not in found and (is_plain(name, expected) or _stem(name) not in stems)
    ]


def is_plain(name: str, expected: Shapes) -> bool:
    """Returns whether a weight is never quantised, as vectors and embeddings are."""
    return len(expected[name]) == 1 or "embed" in name


def _module(name: str) -> str | None:
    found = _MODULE.match(name)
    return found[0] if found else None


def _stem(name: str) -> str:
    """Returns the layer to which a tensor, or a part of one, belongs."""
    return name.split(".weight.", 1)[0] if ".weight." in name else name.rsplit(".", 1)[0]


def _is_part(name: str) -> bool:
    return _PART.fullmatch(name.removeprefix(_stem(name)).lower()) is not None


def engine_problems(method: str, engine: str, dtype: str) -> list[str]:
    """Returns why an engine does not serve weights of a quantisation method on this machine."""
    quantised = f"the weights are quantised by {method} (quantization_config in config.json)"
    if engine != "vllm":
        return [
            f"{quantised}, and the engine {engine} does not serve them: set `engine` to vllm, or {_PLAIN}"
        ]
    if find_spec("vllm") is None:
        return []  # reported elsewhere
    from vllm.model_executor.layers.quantization import (  # noqa: PLC0415 - seconds
        QUANTIZATION_METHODS,
        get_quantization_config,
    )
    from vllm.platforms import current_platform  # noqa: PLC0415

    if method not in QUANTIZATION_METHODS:
        known = ", ".join(sorted(QUANTIZATION_METHODS))
        return [f"{quantised}, which this vLLM does not know (it knows {known}): {_PLAIN}"]
    try:
        current_platform.verify_quantization(method)
        needs = get_quantization_config(method)
    except Exception as error:
        return [f"{quantised}, and vLLM refuses them here ({error}): {_PLAIN}"]
    found, least = [], needs.get_min_capability()
    if current_platform.is_cuda() and not current_platform.has_device_capability(least):
        has = current_platform.get_device_capability()
        lacks = f"needs a GPU of compute capability {least / 10:.1f}, and this one has {has}"
        found.append(f"{quantised}, which {lacks}: {_PLAIN}")
    try:
        served = [str(each).removeprefix("torch.") for each in needs.get_supported_act_dtypes()]
    except TypeError:  # some of vLLM's classes need an instance for this
        served = [dtype]
    if dtype not in served:
        types = " or ".join(served)
        found.append(
            f"{quantised}, which vLLM computes in {types}, not in {dtype}: set `dtype` to {served[0]}"
        )
    return found
