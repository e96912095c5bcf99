"""The served architectures, and all that sets them apart: sizes, tensors, positions, normalisation."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Shapes = dict[str, tuple[int, ...]]
_Count = Annotated[int, Field(gt=0, le=1024)]
_Size = Annotated[int, Field(gt=0, le=2**24)]


class Part(BaseModel):
    """Fields of a config; those that the config omits have transformers' defaults."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Text(Part):
    """The language model of Qwen2-VL and Qwen2.5-VL."""

    vocab_size: _Size = 152064
    hidden_size: _Size = 8192
    intermediate_size: _Size = 29568
    num_hidden_layers: _Count = 80
    num_attention_heads: _Count = 64
    num_key_value_heads: _Count | None = 8
    max_position_embeddings: _Size = 32768

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def divides(self) -> bool:
        """Whether each head gets the same share of what the heads divide."""
        return not (self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.kv_heads)

    def shapes(self) -> Shapes:
        """Returns name within the language model -> shape of all tensors, without the output layer."""
        wide = self.hidden_size
        shapes: Shapes = {"embed_tokens.weight": (self.vocab_size, wide), "norm.weight": (wide,)}
        for i in range(self.num_hidden_layers):
            layer = f"layers.{i}"
            shapes |= _norm(f"{layer}.input_layernorm", wide)
            shapes |= _norm(f"{layer}.post_attention_layernorm", wide)
            shapes |= self._attention(f"{layer}.self_attn")
            shapes |= _gated(f"{layer}.mlp", wide, self.intermediate_size, bias=False)
        return shapes

    def _attention(self, name: str, *, bias: bool = True) -> Shapes:
        wide, queries = self.hidden_size, self.num_attention_heads * self.head_size
        keys = self.kv_heads * self.head_size
        shapes = _linear(f"{name}.q_proj", queries, wide, bias=bias)
        shapes |= _linear(f"{name}.k_proj", keys, wide, bias=bias)
        shapes |= _linear(f"{name}.v_proj", keys, wide, bias=bias)
        return shapes | _linear(f"{name}.o_proj", wide, queries, bias=False)


class _Text3(Text):
    """The language model of Qwen3-VL: the size of its heads is free, and it normalises queries and keys."""

    vocab_size: _Size = 151936
    hidden_size: _Size = 4096
    intermediate_size: _Size = 22016
    num_hidden_layers: _Count = 32
    num_attention_heads: _Count = 32
    num_key_value_heads: _Count | None = 32
    max_position_embeddings: _Size = 128000
    head_dim: _Size = 128
    attention_bias: Literal[False] = False

    @property
    def head_size(self) -> int:
        return self.head_dim

    @property
    def divides(self) -> bool:
        return not self.num_attention_heads % self.kv_heads

    def _attention(self, name: str, *, bias: bool = False) -> Shapes:
        shapes = super()._attention(name, bias=bias)
        return shapes | _norm(f"{name}.q_norm", self.head_dim) | _norm(f"{name}.k_norm", self.head_dim)


class Vision(Part):
    """A vision tower.

    Attributes:
        width_field: the field with the numbers of a patch.
        out_field: the field with the numbers of a visual token.
        norm_bias: whether norms have a bias.
    """

    depth: _Count = 32
    num_heads: _Count = 16
    in_channels: _Count = 3
    patch_size: _Count = 14
    spatial_merge_size: _Count = 2
    temporal_patch_size: _Count = 2
    width_field: ClassVar[str] = "hidden_size"
    out_field: ClassVar[str] = "out_hidden_size"
    norm_bias: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """Numbers of a patch."""
        return int(getattr(self, self.width_field))

    @property
    def token_width(self) -> int:
        """Numbers of a visual token."""
        return int(getattr(self, self.out_field))

    @property
    @abstractmethod
    def inner(self) -> int:
        """Numbers of the hidden layer in a block."""

    @property
    def token_side(self) -> int:
        """Pixels a side of a visual token."""
        return self.patch_size * self.spatial_merge_size

    @property
    def levels(self) -> list[int]:
        """The blocks whose features are added to the first layers of the language model, one to each."""
        return []

    def shapes(self) -> Shapes:
        """Returns name within the vision tower -> shape of all tensors."""
        seen = self.width
        patch = (self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size)
        shapes: Shapes = {"patch_embed.proj.weight": (seen, *patch)}
        for i in range(self.depth):
            shapes |= self._norm(f"blocks.{i}.norm1", seen) | self._norm(f"blocks.{i}.norm2", seen)
            shapes |= _linear(f"blocks.{i}.attn.qkv", 3 * seen, seen)
            shapes |= _linear(f"blocks.{i}.attn.proj", seen, seen)
            shapes |= self._mlp(f"blocks.{i}.mlp")
        return shapes | self._mergers()

    def _norm(self, name: str, width: int) -> Shapes:
        return _norm(name, width, bias=self.norm_bias)

    @abstractmethod
    def _mlp(self, name: str) -> Shapes: ...

    def _mergers(self) -> Shapes:
        merged = self.width * self.spatial_merge_size**2
        shapes = self._norm("merger.ln_q", self.width)
        shapes |= _linear("merger.mlp.0", merged, merged)
        return shapes | _linear("merger.mlp.2", self.token_width, merged)


class _Vision2(Vision):
    """The vision tower of Qwen2-VL."""

    embed_dim: _Size = 1280
    hidden_size: _Size = 3584
    mlp_ratio: _Count = 4
    width_field: ClassVar[str] = "embed_dim"
    out_field: ClassVar[str] = "hidden_size"

    @property
    def inner(self) -> int:
        return self.embed_dim * self.mlp_ratio

    def _mlp(self, name: str) -> Shapes:
        return _two_layers(name, self.width, self.inner, "fc1", "fc2")


class _Vision25(Vision):
    """The vision tower of Qwen2.5-VL."""

    hidden_size: _Size = 3584
    intermediate_size: _Size = 3420
    out_hidden_size: _Size = 3584
    norm_bias: ClassVar[bool] = False

    @property
    def inner(self) -> int:
        return self.intermediate_size

    def _mlp(self, name: str) -> Shapes:
        return _gated(name, self.width, self.inner, bias=True)


class _Vision3(_Vision25):
    """The vision tower of Qwen3-VL: learned positions, and features of several blocks (DeepStack)."""

    depth: _Count = 27
    patch_size: _Count = 16
    hidden_size: _Size = 1152
    intermediate_size: _Size = 4304
    num_position_embeddings: _Size = 2304
    deepstack_visual_indexes: list[Annotated[int, Field(ge=0)]] = [8, 16, 24]
    norm_bias: ClassVar[bool] = True

    @property
    def levels(self) -> list[int]:
        return self.deepstack_visual_indexes

    def shapes(self) -> Shapes:
        places = {"pos_embed.weight": (self.num_position_embeddings, self.width)}
        return super().shapes() | {"patch_embed.proj.bias": (self.width,)} | places

    def _mlp(self, name: str) -> Shapes:
        return _two_layers(name, self.width, self.inner, "linear_fc1", "linear_fc2")

    def _mergers(self) -> Shapes:
        merged = self.width * self.spatial_merge_size**2
        names = ["merger", *(f"deepstack_merger_list.{i}" for i in range(len(self.levels)))]
        shapes: Shapes = {}
        for name in names:
            shapes |= self._norm(f"{name}.norm", self.width if name == "merger" else merged)
            shapes |= _linear(f"{name}.linear_fc1", merged, merged)
            shapes |= _linear(f"{name}.linear_fc2", self.token_width, merged)
        return shapes


def _norm(name: str, width: int, *, bias: bool = False) -> Shapes:
    return {f"{name}.{part}": (width,) for part in (("weight", "bias") if bias else ("weight",))}


def _linear(name: str, rows: int, columns: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _two_layers(name: str, width: int, inner: int, first: str, second: str) -> Shapes:
    return _linear(f"{name}.{first}", inner, width) | _linear(f"{name}.{second}", width, inner)


def _gated(name: str, width: int, inner: int, *, bias: bool) -> Shapes:
    up = _linear(f"{name}.gate_proj", inner, width, bias=bias)
    up |= _linear(f"{name}.up_proj", inner, width, bias=bias)
    return up | _linear(f"{name}.down_proj", width, inner, bias=bias)


@dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        name: the class, of the same name in transformers and in vLLM, that config.json names.
        family: the name of its published checkpoints.
        model_type: config.json's other name for it.
        image_mean, image_std: the normalisation of the pictures that the vision tower was trained with.
        interleaved: whether the numbers of a head take turns in encoding time, row and column.
        text_prefix, vision_prefix: of the names of tensors in published checkpoints. Newer versions of
            transformers save those of Qwen3-VL for all.
    """

    name: str
    family: str
    model_type: str
    text: type[Text]
    vision: type[Vision]
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interleaved: bool = False
    text_prefix: str = "model."
    vision_prefix: str = "visual."

    @property
    def embedding(self) -> str:
        """The published name of the embedding."""
        return f"{self.text_prefix}embed_tokens.weight"

    def published(self, name: str) -> str:
        """Returns a tensor's name as in the published checkpoints."""
        for saved, prefix in (
            ("model.language_model.", self.text_prefix),
            ("model.visual.", self.vision_prefix),
        ):
            if name.startswith(saved):
                return prefix + name.removeprefix(saved)
        return name


QWEN2 = Architecture("Qwen2VLForConditionalGeneration", "Qwen2-VL", "qwen2_vl", Text, _Vision2)
QWEN2_5 = Architecture("Qwen2_5_VLForConditionalGeneration", "Qwen2.5-VL", "qwen2_5_vl", Text, _Vision25)
QWEN3 = Architecture(
    "Qwen3VLForConditionalGeneration",
    "Qwen3-VL",
    "qwen3_vl",
    _Text3,
    _Vision3,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    interleaved=True,
    text_prefix="model.language_model.",
    vision_prefix="model.visual.",
)
ARCHITECTURES = {each.name: each for each in (QWEN2, QWEN2_5, QWEN3)}
FAMILIES = "Qwen2-VL, Qwen2.5-VL or Qwen3-VL"
"""The families in words."""


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """Returns the architecture that a config names, or None if it is not served."""
    named = config.get("architectures")
    return next((each for each in ARCHITECTURES.values() if named == [each.name]), None)
