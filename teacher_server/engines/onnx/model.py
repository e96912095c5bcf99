"""A Qwen2.5-VL checkpoint in ONNX Runtime, on the CPU in float32."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

from teacher_server.checkpoints.architectures import QWEN2_5
from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import CannotLoad
from teacher_server.engines.exceptions import words_of
from teacher_server.engines.onnx.graphs import Graph, Weights, language_graph, vision_graph
from teacher_server.engines.onnx.inputs import VisionInputs, language_rotation
from teacher_server.settings import EngineSettings

_Value = onnxruntime.OrtValue


class OnnxModel:
    """The vision tower and the language model; its methods may run in several threads at once.

    Raises:
        CannotLoad: the weights cannot be read, or the config asks for what this engine does not compute.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings, threads: int) -> None:
        config, self._dimensions = checkpoint.config, checkpoint.dimensions
        text = config.get("text_config") or config
        vision = config.get("vision_config") or {}
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        if problems := _problems(text, vision, rope):
            raise CannotLoad(f"{'; '.join(problems)}: set `engine` to transformers")
        weights = _weights(checkpoint, settings)
        self._embedding_VH = weights["model.embed_tokens.weight"]
        self._vision_inputs = VisionInputs(self._dimensions, int(vision.get("window_size", 112)))
        theta = float(rope.get("rope_theta") or text.get("rope_theta") or 1e6)
        self.rotation = language_rotation(self._dimensions, rope, theta)
        self._vision = _session(vision_graph(self._dimensions, config, weights), threads)
        epsilon = float(text.get("rms_norm_eps", 1e-5))
        self._language = _session(language_graph(self._dimensions, epsilon, weights), threads)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that are scored."""
        return len(self._embedding_VH)

    def features(self, image: Image.Image) -> NDArray[np.float32]:
        """Returns a picture's visual tokens, row by row, as the language model gets them [N, H]."""
        features_NH: NDArray[np.float32] = self._vision.run(None, self._vision_inputs.of(image))[0]
        return features_NH

    def embeddings(self, token_ids: Any) -> NDArray[np.float32]:
        """Returns the embeddings of tokens [..., H]."""
        found: NDArray[np.float32] = self._embedding_VH[np.asarray(token_ids)]
        return found

    def memory(self, sequences: int, tokens: int) -> "KeysValues":
        """Returns room for keys and values; memory is only taken as it is written to."""
        layers = self._dimensions.text.num_hidden_layers
        shape = (2, layers, sequences, self._dimensions.kv_heads, tokens, self._dimensions.head_dim)
        scores = np.empty((sequences, self.vocabulary), np.float32)
        return KeysValues(np.empty(shape, np.float32), scores, self._language)

    def scores(
        self,
        embeddings_BSH: NDArray[np.float32],
        positions_3R: NDArray[np.int64],
        lengths_B: NDArray[np.int64],
        kept: "KeysValues",
        first: int,
    ) -> NDArray[np.float32]:
        """Runs S new tokens of each of B sequences; returns the scores after the last one [B, V].

        The scores lie in `kept`, until the next call for the same places.

        Args:
            positions_3R: of all B S tokens, sequence by sequence.
            lengths_B: tokens of each sequence with the new ones.
            kept: keys and values; those of the new tokens are written to it.
            first: the place in `kept` of the first sequence; the others follow.
        """
        count, new = embeddings_BSH.shape[:2]
        binding = kept.bound(first, count)
        inputs = {
            "embeddings": embeddings_BSH,
            "rows": np.arange(count * new).reshape(count, new),
            **self.rotation.of(positions_3R),
            "last": (lengths_B - 1).astype(np.int32),
            "total": np.array(lengths_B.max(), np.int32),
        }
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        self._language.run_with_iobinding(binding)
        return kept.scores[first : first + count]


class KeysValues:
    """Keys and values of sequences, and the scores of their next tokens; use it in one thread.

    Attributes:
        all: keys and values, [2, layers, sequences, heads, tokens, width].
        scores: [sequences, vocabulary].
    """

    def __init__(self, all_2LBHTD: NDArray[np.float32], scores_BV: NDArray[np.float32], session: Any) -> None:
        self.all, self.scores = all_2LBHTD, scores_BV
        self._session = session
        self._bound: dict[tuple[int, int], Any] = {}

    def bound(self, first: int, count: int) -> Any:
        """Returns a binding of the session to `count` sequences of this memory."""
        if (first, count) not in self._bound:
            binding = self._session.io_binding()
            for kind, layers in zip(("keys", "values"), self.all, strict=True):
                for i, layer in enumerate(layers):
                    value = _Value.ortvalue_from_numpy(layer[first : first + count])
                    binding.bind_ortvalue_input(f"{kind}_{i}", value)
                    binding.bind_ortvalue_output(f"new_{kind}_{i}", value)
            scores_BV = self.scores[first : first + count]
            binding.bind_ortvalue_output("scores", _Value.ortvalue_from_numpy(scores_BV))
            self._bound[first, count] = binding
        return self._bound[first, count]


def _session(graph: Graph, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A waiting thread that spins takes the processor from whatever else runs there
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    options.add_external_initializers(
        list(graph.weights), [_Value.ortvalue_from_numpy(array) for array in graph.weights.values()]
    )
    return onnxruntime.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])


def _problems(text: Mapping[str, Any], vision: Mapping[str, Any], rope: Mapping[str, Any]) -> list[str]:
    """Returns what the config asks for and the graphs do not compute."""
    found = []
    for part, name in ((text, "hidden_act"), (vision, "vision_config: hidden_act")):
        if (act := part.get("hidden_act", "silu")) != "silu":
            found.append(f"{name} is {act!r}, and onnx computes silu alone")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        found.append(f"the rotary embedding is of type {kind!r}, and onnx computes mrope alone")
    sliding = text.get("use_sliding_window") and text.get("sliding_window") is not None
    if sliding and int(text.get("max_window_layers", 80)) < int(text.get("num_hidden_layers", 80)):
        found.append("use_sliding_window is true, and onnx computes full attention alone")
    return found


def _weights(checkpoint: Checkpoint, settings: EngineSettings) -> Weights:
    """Returns all weights in float32: the checkpoint's, or random ones."""
    if settings.load_format == "dummy":
        rng = np.random.default_rng(settings.seed)
        shapes = checkpoint.dimensions.shapes()
        return {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    found: dict[str, NDArray[np.float32]] = {}
    try:
        for file in checkpoint.weights:
            with safe_open(file, "pt") as opened:  # numpy has no bfloat16
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    found[QWEN2_5.published(name)] = opened.get_tensor(name).float().numpy()
    except Exception as error:
        raise CannotLoad(f"the weights cannot be read: {words_of(error)}") from error
    return found
