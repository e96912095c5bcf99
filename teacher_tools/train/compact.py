"""The files of a compact checkpoint besides its weights: config, tokenizer, chat template, processor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from teacher_server.checkpoints.architectures import QWEN2_5
from teacher_server.prompting.prompt_set import PromptSet
from teacher_tools.train.tokenizer import SPECIAL_TOKENS, make_tokenizer

_TEXT = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 32768,
    # Rows and columns get the slow sections: the visual tokens encode their position already
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    # Untied, so that vLLM can load other weights in place
    "tie_word_embeddings": False,
    # vLLM on a CPU needs float32
    "torch_dtype": "float32",
}
_VISION = {
    "depth": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": _TEXT["hidden_size"],
    # Attention over the whole picture, from which each visual token can infer its position
    "fullatt_block_indexes": [0, 1],
    "hidden_act": "silu",
    "in_chans": 3,
    "initializer_range": 0.06,
    "patch_size": 14,
    "spatial_patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
}
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type in ('image', 'image_url') -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
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


def write_folder(folder: Path, prompts: PromptSet) -> None:
    """Writes the files of a compact checkpoint, except weights and card; creates the folder if missing.

    Args:
        prompts: the prompt set whose words the tokenizer gets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(prompts)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "config.json", _config(tokenizer))
    _write(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))
    _write(folder / "preprocessor_config.json", PREPROCESSOR)
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    _write(
        folder / "generation_config.json",
        {"bos_token_id": pad, "pad_token_id": pad, "do_sample": False, "eos_token_id": [end, pad]},
    )
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "architectures": [QWEN2_5.name],
        "model_type": QWEN2_5.model_type,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_token_id": tokenizer.token_to_id("<|vision_pad|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "hidden_act": "silu",
        # 0.02 suits hidden sizes of thousands; here it slows down the start of the training
        "initializer_range": 0.06,
        "max_window_layers": 70,
        "rms_norm_eps": 1e-06,
        "sliding_window": 32768,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        **_TEXT,
        "vision_config": _VISION,
    }


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in SPECIAL_TOKENS
        },
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        # Loads tokenizer.json unchanged; Qwen2Tokenizer would split words in its own way
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
