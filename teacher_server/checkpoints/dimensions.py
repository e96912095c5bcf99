"""A model's dimensions by its config, and the names and shapes of its tensors."""

from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from typing import Any

from pydantic import create_model

from teacher_server.checkpoints.architectures import Architecture, Part, Shapes, Text, Vision
from teacher_server.checkpoints.folders import COPY_AGAIN

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TEMPORAL_PATCH = 2


class Dimensions(Part):
    """The dimensions of a model of one architecture."""

    architecture: Architecture
    text: Text
    vision: Vision
    tied: bool = False

    @staticmethod
    def of(config: Mapping[str, Any], architecture: Architecture) -> "Dimensions":
        """Reads a config with the text model's fields in text_config or, as in older ones, at the top.

        Raises:
            pydantic.ValidationError: a field has an impossible value.
        """
        text = config.get("text_config") or config
        vision = config.get("vision_config") or {}
        tied = config.get("tie_word_embeddings") or (
            isinstance(text, dict) and text.get("tie_word_embeddings")
        )
        parts = {"architecture": architecture, "text": text, "vision": vision, "tied": tied or False}
        return _model(architecture).model_validate(parts)

    @property
    def kv_heads(self) -> int:
        return self.text.kv_heads

    @property
    def head_dim(self) -> int:
        return self.text.head_size

    def shapes(self) -> Shapes:
        """Returns published name -> shape of all tensors, without a tied lm_head."""
        architecture, text = self.architecture, self.text
        shapes = {f"{architecture.text_prefix}{name}": shape for name, shape in text.shapes().items()}
        if not self.tied:
            shapes["lm_head.weight"] = (text.vocab_size, text.hidden_size)
        seen = self.vision.shapes().items()
        return shapes | {f"{architecture.vision_prefix}{name}": shape for name, shape in seen}

    def parameters(self) -> int:
        """Returns the number of parameters."""
        return sum(prod(shape) for shape in self.shapes().values())

    def kv_bytes(self, item_bytes: int, share: int = 1) -> int:
        """Returns the bytes of a token's keys and values on one of `share` GPUs, at least one head each."""
        heads = max(1, self.kv_heads // share)
        return 2 * self.text.num_hidden_layers * heads * self.head_dim * item_bytes


@cache
def _model(architecture: Architecture) -> type[Dimensions]:
    parts: dict[str, Any] = {"text": (architecture.text, ...), "vision": (architecture.vision, ...)}
    return create_model("Dimensions", __base__=Dimensions, **parts)


def config_problems(config: Mapping[str, Any], dimensions: Dimensions) -> Iterator[str]:
    """Yields contradictions between a config's fields."""
    architecture, text, vision = dimensions.architecture, dimensions.text, dimensions.vision
    if (kind := config.get("model_type")) != architecture.model_type:
        yield f"model_type is {kind!r}, not {architecture.model_type!r}, that of {architecture.name}"
    if not text.divides:
        yield (
            f"hidden_size {text.hidden_size}, num_attention_heads {text.num_attention_heads} and"
            f" num_key_value_heads {text.kv_heads} do not divide each other: {COPY_AGAIN}"
        )
    if vision.width % (heads := vision.num_heads):
        name = vision.width_field
        yield f"vision_config: {name} {vision.width} is not a multiple of num_heads {heads}: {COPY_AGAIN}"
    if (width := vision.token_width) != text.hidden_size:
        name = vision.out_field
        yield f"vision_config: {name} {width} is not hidden_size {text.hidden_size}: {COPY_AGAIN}"
    if (temporal := vision.temporal_patch_size) != _TEMPORAL_PATCH:
        yield f"vision_config: temporal_patch_size {temporal} has to be {_TEMPORAL_PATCH}: {COPY_AGAIN}"
    if levels := vision.levels:
        in_order = levels == sorted(set(levels)) and levels[-1] < vision.depth
        if not in_order or len(levels) > text.num_hidden_layers:
            yield (
                f"vision_config: deepstack_visual_indexes {levels} are not blocks in order, below depth"
                f" {vision.depth} and at most one for each of {text.num_hidden_layers} layers: {COPY_AGAIN}"
            )
    inner = config.get("text_config") or config
    rope = inner.get("rope_scaling") or inner.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    sections, half = rope.get("mrope_section"), text.head_size // 2
    if not isinstance(sections, list) or [type(section) for section in sections] != [int] * 3:
        yield f"mrope_section in rope_scaling is {sections!r}, not three integers: {COPY_AGAIN}"
    elif sum(sections) != half and text.divides:
        yield f"mrope_section {sections} does not add up to half of the head dimension, {half}: {COPY_AGAIN}"
    if (interleaved := rope.get("mrope_interleaved", False)) != architecture.interleaved:
        yield (
            f"mrope_interleaved in rope_scaling is {interleaved!r}, and {architecture.family} needs"
            f" {architecture.interleaved!r}: {COPY_AGAIN}"
        )
    if config.get("tie_word_embeddings") is True and inner.get("tie_word_embeddings") is False:
        yield "tie_word_embeddings is true, and false in text_config: set both to what the weights are"
    if (dtype := config_dtype(config)) not in (None, *ITEM_BYTES):
        yield f"dtype is {dtype!r}, and {', '.join(ITEM_BYTES)} are served: convert the weights"


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """Returns the dtype of the weights that a config names, or None."""
    inner = config.get("text_config") or {}
    named = [part.get(key) for part in (config, inner) for key in ("dtype", "torch_dtype")]
    return next((str(dtype).removeprefix("torch.") for dtype in named if dtype), None)
