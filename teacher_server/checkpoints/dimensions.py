"""A Qwen2.5-VL model's dimensions by its config, and the names and shapes of its tensors."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from teacher_server.checkpoints.folders import COPY_AGAIN

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Pixels a side of a visual token: 2 x 2 patches of 14 x 14 pixels
_TOKEN_PIXELS = 28
_TEMPORAL_PATCH = 2

Shapes = dict[str, tuple[int, ...]]
_Count = Annotated[int, Field(gt=0, le=1024)]
_Size = Annotated[int, Field(gt=0, le=2**24)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Text(_Part):
    vocab_size: _Size = 152064
    hidden_size: _Size = 8192
    intermediate_size: _Size = 29568
    num_hidden_layers: _Count = 80
    num_attention_heads: _Count = 64
    num_key_value_heads: _Count | None = 8
    max_position_embeddings: _Size = 32768


class _Vision(_Part):
    depth: _Count = 32
    hidden_size: _Size = 3584
    intermediate_size: _Size = 3420
    num_heads: _Count = 16
    in_channels: _Count = 3
    patch_size: _Count = 14
    spatial_merge_size: _Count = 2
    temporal_patch_size: _Count = 2
    out_hidden_size: _Size = 3584


class Dimensions(_Part):
    """A model's dimensions; fields that the config omits have transformers' defaults."""

    text: _Text
    vision: _Vision
    tied: bool = False

    @staticmethod
    def of(config: Mapping[str, Any]) -> "Dimensions":
        """Reads a config with the text model's fields at the top, as published, or in text_config.

        Raises:
            pydantic.ValidationError: a field has an impossible value.
        """
        text = config.get("text_config") or config
        vision = config.get("vision_config") or {}
        tied = config.get("tie_word_embeddings") or (
            isinstance(text, dict) and text.get("tie_word_embeddings")
        )
        return Dimensions.model_validate({"text": text, "vision": vision, "tied": tied or False})

    @property
    def kv_heads(self) -> int:
        return self.text.num_key_value_heads or self.text.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.text.hidden_size // self.text.num_attention_heads

    def shapes(self) -> Shapes:
        """Returns published name -> shape of all tensors, without a tied lm_head."""
        text, vision = self.text, self.vision
        wide, queries, keys = (
            text.hidden_size,
            text.num_attention_heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        seen, merged = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
        shapes: Shapes = {"model.embed_tokens.weight": (text.vocab_size, wide), "model.norm.weight": (wide,)}
        if not self.tied:
            shapes["lm_head.weight"] = (text.vocab_size, wide)
        for i in range(text.num_hidden_layers):
            layer = f"model.layers.{i}"
            shapes |= _norms(wide, f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm")
            shapes |= _linear(f"{layer}.self_attn.q_proj", queries, wide, bias=True)
            shapes |= _linear(f"{layer}.self_attn.k_proj", keys, wide, bias=True)
            shapes |= _linear(f"{layer}.self_attn.v_proj", keys, wide, bias=True)
            shapes |= _linear(f"{layer}.self_attn.o_proj", wide, queries, bias=False)
            shapes |= _gated(f"{layer}.mlp", wide, text.intermediate_size, bias=False)
        patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        shapes["visual.patch_embed.proj.weight"] = (seen, *patch)
        for i in range(vision.depth):
            block = f"visual.blocks.{i}"
            shapes |= _norms(seen, f"{block}.norm1", f"{block}.norm2")
            shapes |= _linear(f"{block}.attn.qkv", 3 * seen, seen, bias=True)
            shapes |= _linear(f"{block}.attn.proj", seen, seen, bias=True)
            shapes |= _gated(f"{block}.mlp", seen, vision.intermediate_size, bias=True)
        shapes |= _norms(seen, "visual.merger.ln_q")
        shapes |= _linear("visual.merger.mlp.0", merged, merged, bias=True)
        return shapes | _linear("visual.merger.mlp.2", vision.out_hidden_size, merged, bias=True)

    def parameters(self) -> int:
        """Returns the number of parameters."""
        return sum(prod(shape) for shape in self.shapes().values())

    def kv_bytes(self, item_bytes: int, share: int = 1) -> int:
        """Returns the bytes of a token's keys and values on one of `share` GPUs, at least one head each."""
        heads = max(1, self.kv_heads // share)
        return 2 * self.text.num_hidden_layers * heads * self.head_dim * item_bytes


def _norms(width: int, *names: str) -> Shapes:
    return {f"{name}.weight": (width,) for name in names}


def _linear(name: str, rows: int, columns: int, *, bias: bool) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _gated(name: str, width: int, inner: int, *, bias: bool) -> Shapes:
    up = _linear(f"{name}.gate_proj", inner, width, bias=bias) | _linear(
        f"{name}.up_proj", inner, width, bias=bias
    )
    return up | _linear(f"{name}.down_proj", width, inner, bias=bias)


def config_problems(config: Mapping[str, Any], dimensions: Dimensions) -> Iterator[str]:
    """Yields contradictions between a config's fields."""
    text, vision = dimensions.text, dimensions.vision
    if text.hidden_size % text.num_attention_heads or text.num_attention_heads % dimensions.kv_heads:
        yield (
            f"hidden_size {text.hidden_size}, num_attention_heads {text.num_attention_heads} and"
            f" num_key_value_heads {dimensions.kv_heads} do not divide each other: {COPY_AGAIN}"
        )
    if (width := vision.hidden_size) % (heads := vision.num_heads):
        yield f"vision_config: hidden_size {width} is not a multiple of num_heads {heads}: {COPY_AGAIN}"
    if (width := vision.out_hidden_size) != text.hidden_size:
        yield f"vision_config: out_hidden_size {width} is not hidden_size {text.hidden_size}: {COPY_AGAIN}"
    for why in patch_problems(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size):
        yield f"vision_config: {why}"
    inner = config.get("text_config") or config
    rope = inner.get("rope_scaling") or inner.get("rope_parameters")
    sections = rope.get("mrope_section") if isinstance(rope, dict) else None
    half = dimensions.head_dim // 2
    if not isinstance(sections, list) or [type(section) for section in sections] != [int] * 3:
        yield f"mrope_section in rope_scaling is {sections!r}, not three integers: {COPY_AGAIN}"
    elif sum(sections) != half and text.hidden_size % text.num_attention_heads == 0:
        yield f"mrope_section {sections} does not add up to half of the head dimension, {half}: {COPY_AGAIN}"
    if config.get("tie_word_embeddings") is True and inner.get("tie_word_embeddings") is False:
        yield "tie_word_embeddings is true, and false in text_config: set both to what the weights are"
    if (dtype := config_dtype(config)) not in (None, *ITEM_BYTES):
        yield f"dtype is {dtype!r}, and {', '.join(ITEM_BYTES)} are served: convert the weights"


def patch_problems(patch: Any, merge: Any, temporal: Any) -> Iterator[str]:
    """Yields why patches of these sizes do not fit prepared pictures."""
    pixels = patch * merge if type(patch) is int and type(merge) is int else None
    if pixels != _TOKEN_PIXELS:
        yield (
            f"patch_size {patch!r} times merge_size {merge!r} has to be {_TOKEN_PIXELS} pixels, the size of a"
            " visual token: use a Qwen2.5-VL checkpoint"
        )
    if temporal != _TEMPORAL_PATCH:
        yield f"temporal_patch_size {temporal!r} has to be {_TEMPORAL_PATCH}: use a Qwen2.5-VL checkpoint"


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """Returns the dtype of the weights that a config names, or None."""
    inner = config.get("text_config") or {}
    named = [part.get(key) for part in (config, inner) for key in ("dtype", "torch_dtype")]
    return next((str(dtype).removeprefix("torch.") for dtype in named if dtype), None)
