"""Makes checkpoints of the served architectures with random weights, laid out like the published ones.

The tiny ones have under a million parameters. Those of the real dimensions, of Qwen2.5-VL, are for measuring
time and memory. To serve them, `weights=False` is enough, with `--load-format dummy`.
"""

import argparse
import json
import math
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from teacher_server.checkpoints.architectures import ARCHITECTURES, QWEN2, QWEN2_5, QWEN3, Architecture
from teacher_server.prompting.prompt_set import PromptSet
from teacher_tools.train.compact import PREPROCESSOR
from teacher_tools.train.tokenizer import SPECIAL_TOKENS

Size = Literal["tiny", "3b", "7b"]

# The pre-tokeniser of Qwen: words with one sign before them, single digits, line ends
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# One token each, at the start of a line and after a space
_WORDS = """
left right forward pick pickup drop toggle done turn move up down A B C D E F G agent row column heading
target hazards hazard lava wall walls goal ball key door doors box floor room cell cells grid red green blue
purple yellow grey facing front behind north south east west empty open closed locked unlock carrying the a
an of to in is are at and or not no on by it its you your one next action actions probability probabilities
sum each first then reasoning analysis mission picture image state position plan path safe obstacle
obstacles view answer only json name value number true false null none unknown with from that this which
there here must should can would will be has have what where when how before after step steps reach avoid go
get put near away toward straight ahead around object objects seen holds see model assistant user system
helpful white black triangle points tile tiles best most likely useful task question look describe short
sentence word words letter write give say shows show
"""

_SIGNS = ["{", "}", "[", "]", '"', ":", ",", ".", "?", "!", "(", ")", "-", "_", "/", "=", "\n", "\n\n"]
_SIGNS += [
    " {",
    " [",
    ' "',
    '":',
    '",',
    '"}',
    '{"',
    "},",
    "],",
    "]}",
    '": "',
    '": [',
    '": {',
    ".\n",
    ":\n",
    ",\n",
]

CHAT_TEMPLATE = """\
{%- if not messages or messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type in ('image', 'image_url') or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# What differs from Qwen2.5-VL's tiny checkpoint; the fields of the text model lie at the top, or for Qwen3-VL
# in text_config
_TINY: dict[Architecture, dict[str, Any]] = {
    QWEN2: {
        "vision_config": {
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 128,
            "mlp_ratio": 2,
            "num_heads": 2,
            "hidden_act": "quick_gelu",
        }
    },
    QWEN3: {
        "head_dim": 96,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [18, 15, 15]},
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
            "hidden_act": "gelu_pytorch_tanh",
            "patch_size": 16,
        },
    },
}
_VISION_REAL: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_VISION_REAL |= {"fullatt_block_indexes": [7, 15, 23, 31]}
_SIZES: dict[Size, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": True,
        # vLLM on a CPU dies in bfloat16
        "torch_dtype": "float32",
        "vision_config": {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 128,
        },
    },
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 151936,
        "vision_config": {**_VISION_REAL, "out_hidden_size": 2048},
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 152064,
        "vision_config": {**_VISION_REAL, "out_hidden_size": 3584},
    },
}


# Attention that looks at some places more than at others, and layers that outweigh the embedding
_GAINS: dict[str, float] = {
    "q_proj": 2.0,
    "k_proj": 2.0,
    "o_proj": 2.0,
    "down_proj": 2.0,
    "merger.mlp.2": 2.0,
    "linear_fc2": 2.0,
    "q_norm": 2.0,
    "k_norm": 2.0,
}

# Tokens that come up more often than the others: labels have a share worth reading, and texts come to an end
_LOUD = [
    "left",
    "right",
    "forward",
    "pick",
    "pickup",
    "drop",
    "toggle",
    "done",
    '"',
    '",',
    '"}',
    "<|im_end|>",
]
_LOUD += ["A", "B", "C", "D", "E", "F", "G"]


def make_checkpoint(
    folder: Path,
    *,
    size: Size = "tiny",
    architecture: Architecture = QWEN2_5,
    seed: int = 0,
    weights: bool = True,
    config_changes: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a checkpoint into a folder, which is made if it is not there.

    Args:
        size: tiny, or for Qwen2.5-VL the dimensions of the published models of 3 or 7 billion parameters.
        seed: of the weights of a tiny one; the same one gives the same bytes.
        weights: False leaves the weights away.
        config_changes: laid over config.json; `vision_config` is laid over the one that is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = _config(size, architecture, tokenizer, config_changes or {})
    _write(folder / "config.json", config)
    _write(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))
    _write(folder / "preprocessor_config.json", _preprocessor(architecture, config["vision_config"]))
    _write(folder / "generation_config.json", _generation_config(tokenizer))
    # Qwen3-VL's writes no system message of its own
    template = CHAT_TEMPLATE.partition("{%- endif -%}\n")[2] if architecture is QWEN3 else CHAT_TEMPLATE
    (folder / "chat_template.jinja").write_text(template)
    if weights:
        _write_weights(folder, size, architecture, config, tokenizer, seed)
    return folder


def shortened(prompts: PromptSet, copy: Path) -> Path:
    """Copies a prompt set with strings of a tenth of their length and lists of at most two items.

    Random weights write until the schema stops them, one or two letters a token. With the short schema an
    analysis has about as many tokens as that of a worked example: 100 to 130.
    """

    def shorter(schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        cut = {key: shorter(value) for key, value in schema.items()}
        if "maxLength" in cut:
            cut["maxLength"] = math.ceil(cut["maxLength"] / 10)
        if "maxItems" in cut:
            cut["maxItems"] = max(cut.get("minItems", 0), min(cut["maxItems"], 2))
        return cut

    def fitting(value: Any, schema: dict[str, Any]) -> Any:
        if isinstance(value, dict):
            return {key: fitting(part, schema["properties"][key]) for key, part in value.items()}
        if isinstance(value, list):
            return [fitting(part, schema["items"]) for part in value[: schema["maxItems"]]]
        return value[: schema["maxLength"]] if "maxLength" in schema else value

    shutil.copytree(prompts.folder, copy)
    schema = shorter(prompts.schema)
    (copy / "analysis.schema.json").write_text(json.dumps(schema))
    for file in copy.glob("examples/*/*.json"):
        example = json.loads(file.read_text())
        file.write_text(json.dumps(example | {"analysis": fitting(example["analysis"], schema)}))
    return copy


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE like Qwen's, of a small vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    words = _WORDS.split()
    words += [word.capitalize() for word in words]
    texts = [text for word in words for text in (f"{word}\n", f" {word}")] + _SIGNS
    tokenizer.train_from_iterator(texts * 4, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _config(
    size: Size, architecture: Architecture, tokenizer: Tokenizer, changes: Mapping[str, Any]
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_token_id": tokenizer.token_to_id("<|vision_pad|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": 70,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_cache": True,
        "use_sliding_window": False,
        # A few more than the tokenizer has, like the published ones
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
    }
    vision = {
        "hidden_act": "silu",
        "in_chans": 3,
        "patch_size": 14,
        "spatial_patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    }
    dimensions = _SIZES[size] | _TINY.get(architecture, {})
    vision |= {**dimensions["vision_config"], **changes.get("vision_config", {})}
    config |= {**dimensions, **changes, "vision_config": vision}
    if architecture is QWEN3:
        top = ("architectures", "model_type", "vision_config", "tie_word_embeddings")
        text = {name: value for name, value in config.items() if name not in top and "token_id" not in name}
        config = {name: value for name, value in config.items() if name not in text} | {"text_config": text}
    return config


def _preprocessor(architecture: Architecture, vision: Mapping[str, Any]) -> dict[str, Any]:
    return PREPROCESSOR | {
        "patch_size": vision["patch_size"],
        "image_mean": list(architecture.image_mean),
        "image_std": list(architecture.image_std),
        "processor_class": architecture.name.replace("ForConditionalGeneration", "Processor"),
    }


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in SPECIAL_TOKENS}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    return {"bos_token_id": pad, "pad_token_id": pad, "do_sample": False, "eos_token_id": [end, pad]}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_weights(
    folder: Path,
    size: Size,
    architecture: Architecture,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    seed: int,
) -> None:
    import torch  # noqa: PLC0415 - seconds, and not needed without weights
    import transformers  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    of_architecture: Any = getattr(transformers, architecture.name)
    with torch.device("meta"):
        model = of_architecture(of_architecture.config_class.from_pretrained(folder))
    shapes = {architecture.published(name): tuple(value.shape) for name, value in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    text = config.get("text_config", config)
    dtype = getattr(torch, text["torch_dtype"])
    loud = [i for i in map(tokenizer.token_to_id, _LOUD) if i is not None]
    tensors = {}
    for name, shape in shapes.items():
        if size != "tiny":
            tensors[name] = _draw_quickly(name, shape, dtype)
            continue
        drawn = _draw(name, shape, seed)
        if shape[0] == text["vocab_size"]:
            drawn[loud] *= 2
        tensors[name] = torch.from_numpy(drawn).to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _draw_quickly(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """Weights of one tensor of billions, on a GPU if there is one; they depend on nothing but chance."""
    import torch  # noqa: PLC0415

    if "norm" in name or "ln_q" in name:
        return torch.ones(shape, dtype=dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.randn(shape, dtype=dtype, device=device).mul_(0.02).cpu()


def _draw(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Weights of one tensor: such that the next token depends clearly on the pictures and on the text."""
    gain = next((gain for part, gain in _GAINS.items() if part in name), 1.0)
    if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
        return np.full(shape, gain, np.float32)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = random.standard_normal(shape, np.float32)
    if name.endswith("bias"):
        return drawn * np.float32(0.1)
    if "embed_tokens" in name or "lm_head" in name:
        # Logits are products with a state of unit variance: a standard deviation of 2
        return drawn * np.float32(2 / shape[-1] ** 0.5)
    return drawn * np.float32(gain / np.prod(shape[1:]) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.random_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(_SIZES), default="tiny")
    parser.add_argument(
        "--architecture",
        choices=list(families := {each.family: each for each in ARCHITECTURES.values()}),
        default=QWEN2_5.family,
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--no-weights", action="store_true", help="config, tokenizer and processor only")
    flags = parser.parse_args()
    architecture = families[flags.architecture]
    if architecture is not QWEN2_5 and flags.size != "tiny":
        parser.error(f"--size {flags.size} is for {QWEN2_5.family} alone")
    made = make_checkpoint(
        flags.folder,
        size=flags.size,
        architecture=architecture,
        seed=flags.seed,
        weights=not flags.no_weights,
    )
    print(f"wrote {made}")


if __name__ == "__main__":
    main()
