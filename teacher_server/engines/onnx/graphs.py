"""ONNX graphs of a Qwen2.5-VL checkpoint: the vision tower and the language model.

They are written operator by operator, with ONNX Runtime's fused operators (domain com.microsoft), because an
export of the torch model would neither share keys and values between calls nor keep a rotation that depends
on three positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from teacher_server.checkpoints.dimensions import Dimensions

_OPSET, _IR = 20, 10
_RUNTIME = "com.microsoft"
_VISION_EPSILON = 1e-6
"""Of the vision tower's normalisations; no config names it."""

Weights = dict[str, NDArray[np.float32]]
"""Published name -> tensor. A graph takes the matrices that it uses, so that they are in memory once."""


@dataclass(frozen=True)
class Graph:
    """A serialised graph, and the weights that it names without holding them.

    Attributes:
        weights: linear layers are transposed, so that they multiply from the right.
    """

    model: bytes
    weights: dict[str, NDArray[np.float32]]


class _Builder:
    """Collects nodes and weights; names are made up as it goes."""

    def __init__(self, source: Weights) -> None:
        self.source = source
        self.weights: dict[str, NDArray[np.float32]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._small: list[TensorProto] = []

    def op(
        self, kind: str, *inputs: str, outputs: int = 1, runtime: bool = False, **attributes: Any
    ) -> list[str]:
        """Adds a node; returns the names of its outputs."""
        names = [f"{kind}_{len(self._nodes)}_{i}" for i in range(outputs)]
        domain = _RUNTIME if runtime else ""
        self._nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names

    def one(self, kind: str, *inputs: str, runtime: bool = False, **attributes: Any) -> str:
        """Adds a node with one output."""
        return self.op(kind, *inputs, runtime=runtime, **attributes)[0]

    def integers(self, *values: int) -> str:
        """Adds a constant."""
        name = f"integers_{len(self._small)}"
        self._small.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def weight(self, name: str, value: NDArray[np.float32] | None = None) -> str:
        """Names a weight: one of the checkpoint's, or one made of several."""
        self.weights[name] = self.source[name] if value is None else value
        return name

    def linear(self, x: str, *names: str, bias: bool) -> str:
        """Multiplies by the checkpoint's linear layers of these names, side by side."""
        together = np.concatenate([self.source.pop(f"{name}.weight") for name in names])
        x = self.one("MatMul", x, self.weight(f"{'+'.join(names)}.weight", np.ascontiguousarray(together.T)))
        if bias:
            added = np.concatenate([self.source[f"{name}.bias"] for name in names])
            x = self.one("Add", x, self.weight(f"{'+'.join(names)}.bias", added))
        return x

    def split(self, x: str, *widths: int) -> list[str]:
        """Splits the last dimension."""
        return self.op("Split", x, self.integers(*widths), outputs=len(widths), axis=-1)

    def norm(self, x: str, name: str, epsilon: float) -> str:
        """Normalises by the root mean square."""
        scale = self.weight(f"{name}.weight")
        return self.one("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=epsilon, stash_type=1)

    def add_norm(self, x: str, added: str, name: str, epsilon: float) -> tuple[str, str]:
        """Returns x + added, and its normalisation."""
        scale = self.weight(f"{name}.weight")
        kind = "SkipSimplifiedLayerNormalization"
        found = self.op(kind, x, added, scale, outputs=4, runtime=True, epsilon=epsilon)
        return found[3], found[0]

    def gated(self, x: str, name: str, inner: int, *, bias: bool) -> str:
        """The feed-forward part: down(silu(gate x) * up x)."""
        gate, up = self.split(self.linear(x, f"{name}.gate_proj", f"{name}.up_proj", bias=bias), inner, inner)
        opened = self.one("QuickGelu", gate, runtime=True, alpha=1.0)
        return self.linear(self.one("Mul", opened, up), f"{name}.down_proj", bias=bias)

    def rotate(self, x: str) -> str:
        """Rotates by the inputs `cosines` and `sines`, of which each token takes the row in `rows`."""
        return self.one("RotaryEmbedding", x, "rows", "cosines", "sines", runtime=True)

    def build(self, inputs: list[onnx.ValueInfoProto], outputs: dict[str, str]) -> Graph:
        """Returns the graph; outputs are given as name -> the node's output."""
        named = {inner: name for name, inner in outputs.items()}
        for node in self._nodes:
            node.input[:] = [named.get(name, name) for name in node.input]
            node.output[:] = [named.get(name, name) for name in node.output]
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        elsewhere = [_elsewhere(name, array.shape) for name, array in self.weights.items()]
        graph = helper.make_graph(self._nodes, "graph", inputs, made, [*self._small, *elsewhere])
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_RUNTIME, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
        return Graph(model.SerializeToString(), self.weights)


def vision_graph(dimensions: Dimensions, config: Mapping[str, Any], source: Weights) -> Graph:
    """Returns the vision tower for one picture.

    Inputs, for P patches in N visual tokens, W windows of at most L patches, heads of D numbers:
        patches [P, pixels], rows [1, P] (0 to P - 1), cosines and sines [P, D / 2];
        windows [W, L]: the patches of each window, filled up with any; hidden [W, 1, L, L]: 0, or for a
        filled-up patch a large negative number; places [P]: where in the windows each patch is.
    Output: features [N, hidden size of the language model].
    """
    vision, own = dimensions.vision, config.get("vision_config") or {}
    whole = own.get("fullatt_block_indexes", [7, 15, 23, 31])
    wide, heads = vision.width, vision.num_heads
    g = _Builder(source)
    # A still picture is a film of equal frames
    weight = source.pop("visual.patch_embed.proj.weight").sum(2).reshape(wide, -1)
    flat = g.one("MatMul", "patches", g.weight("patches.weight", np.ascontiguousarray(weight.T)))
    x = g.one("Unsqueeze", flat, g.integers(0))
    for i in range(vision.depth):
        block = f"visual.blocks.{i}"
        normal = g.norm(x, f"{block}.norm1", _VISION_EPSILON)
        q, k, v = g.split(g.linear(normal, f"{block}.attn.qkv", bias=True), wide, wide, wide)
        q, k = g.rotate(q), g.rotate(k)
        if i in whole:
            seen = g.one("MultiHeadAttention", q, k, v, runtime=True, num_heads=heads)
        else:
            q, k, v = (
                g.one("Squeeze", g.one("Gather", each, "windows", axis=1), g.integers(0))
                for each in (q, k, v)
            )
            inputs = (q, k, v, "", "", "hidden")
            inside = g.one("MultiHeadAttention", *inputs, runtime=True, num_heads=heads)
            seen = g.one("Gather", g.one("Reshape", inside, g.integers(1, -1, wide)), "places", axis=1)
        x, normal = g.add_norm(
            x, g.linear(seen, f"{block}.attn.proj", bias=True), f"{block}.norm2", _VISION_EPSILON
        )
        x = g.one("Add", x, g.gated(normal, f"{block}.mlp", vision.inner, bias=True))
    merged = wide * vision.spatial_merge_size**2
    together = g.one("Reshape", g.norm(x, "visual.merger.ln_q", _VISION_EPSILON), g.integers(-1, merged))
    inner = g.one("Gelu", g.linear(together, "visual.merger.mlp.0", bias=True))
    return g.build(
        [
            _input("patches", "P", weight.shape[1]),
            _input("rows", 1, "P", kind=TensorProto.INT64),
            *(_input(name, "P", wide // heads // 2) for name in ("cosines", "sines")),
            _input("windows", "W", "L", kind=TensorProto.INT64),
            _input("hidden", "W", 1, "L", "L"),
            _input("places", "P", kind=TensorProto.INT64),
        ],
        {"features": g.linear(inner, "visual.merger.mlp.2", bias=True)},
    )


def language_graph(dimensions: Dimensions, epsilon: float, source: Weights) -> Graph:
    """Returns the language model for S new tokens in each of B sequences; S is 1, or B is 1.

    Inputs: embeddings [B, S, H]; rows [B, S] (0 to B S - 1), cosines and sines [B S, D / 2];
        last [B] int32: the place of each sequence's last token; total [] int32: the longest sequence;
        for each layer i the places keys_i and values_i [B, KV heads, T, D] of at most T tokens.
    Outputs: scores [B, V] after the last token, and new_keys_i and new_values_i, which have to be bound to
        the same memory as keys_i and values_i.
    """
    text, d = dimensions.text, dimensions.head_dim
    queries, pairs = text.num_attention_heads * d, dimensions.kv_heads * d
    g = _Builder(source)
    outputs: dict[str, str] = {}
    x = "embeddings"
    normal = g.norm(x, "model.layers.0.input_layernorm", epsilon)
    for i in range(text.num_hidden_layers):
        layer = f"model.layers.{i}"
        names = [f"{layer}.self_attn.{part}_proj" for part in "qkv"]
        q, k, v = g.split(g.linear(normal, *names, bias=True), queries, pairs, pairs)
        kept = (f"keys_{i}", f"values_{i}")
        inputs = (g.rotate(q), g.rotate(k), v, *kept, "last", "total")
        heads = {"num_heads": text.num_attention_heads, "kv_num_heads": dimensions.kv_heads}
        seen, *new = g.op("GroupQueryAttention", *inputs, outputs=3, runtime=True, **heads)
        outputs |= {f"new_{name}": inner for name, inner in zip(kept, new, strict=True)}
        attended = g.linear(seen, f"{layer}.self_attn.o_proj", bias=False)
        x, normal = g.add_norm(x, attended, f"{layer}.post_attention_layernorm", epsilon)
        following = i + 1 < text.num_hidden_layers
        after = f"model.layers.{i + 1}.input_layernorm" if following else "model.norm"
        x, normal = g.add_norm(
            x, g.gated(normal, f"{layer}.mlp", text.intermediate_size, bias=False), after, epsilon
        )
    at_end = g.one("Squeeze", g.one("Gather", normal, g.integers(-1), axis=1), g.integers(1))
    head = source["model.embed_tokens.weight"] if dimensions.tied else source.pop("lm_head.weight")
    scores = g.one("MatMul", at_end, g.weight("head", np.ascontiguousarray(head.T)))
    cells = [f"{kind}_{i}" for i in range(text.num_hidden_layers) for kind in ("keys", "values")]
    return g.build(
        [
            _input("embeddings", "B", "S", text.hidden_size),
            _input("rows", "B", "S", kind=TensorProto.INT64),
            *(_input(name, "R", d // 2) for name in ("cosines", "sines")),
            _input("last", "B", kind=TensorProto.INT32),
            _input("total", kind=TensorProto.INT32),
            *(_input(name, "B", dimensions.kv_heads, "T", d) for name in cells),
        ],
        {"scores": scores, **outputs},
    )


def _input(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _elsewhere(name: str, shape: tuple[int, ...]) -> TensorProto:
    """Returns a weight without its numbers, which the session gets apart: a graph holds at most 2 GB."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    return tensor
