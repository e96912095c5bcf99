"""Reads a checkpoint's folder without loading its weights, and finds all problems with serving it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from teacher_api.schemas import TrainedOn
from teacher_api.validation import problems, sentence
from teacher_server.checkpoints.architectures import (
    ARCHITECTURES,
    FAMILIES,
    QWEN2_5,
    architecture_of,
)
from teacher_server.checkpoints.dimensions import ITEM_BYTES, Dimensions, config_dtype, config_problems
from teacher_server.checkpoints.folders import COPY_AGAIN, ONE_CHECKPOINT, Folder, Unusable, unusable
from teacher_server.checkpoints.memory import (
    Engine,
    Hardware,
    MemoryNeed,
    memory_need,
    need_problems,
    prefix_cache_bytes,
)
from teacher_server.checkpoints.processor import Bounds, own_bounds, processor_problems
from teacher_server.checkpoints.quantisation import engine_problems, quantisation_of
from teacher_server.checkpoints.training_record import read_record
from teacher_server.checkpoints.weights import DTYPES, INDEX, Tensor, read_weights
from teacher_server.prompting.chat_templates import (
    BadChatTemplate,
    ChatFormat,
    ChatTemplate,
    stages_of,
    template_of,
)
from teacher_server.prompting.readout import single_token_problems
from teacher_server.settings import EngineSettings

_TURN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
# Fields of config.json with token ids, and their defaults
_ID_FIELDS = {
    "<|image_pad|>": ("image_token_id", 151655),
    "<|vision_start|>": ("vision_start_token_id", 151652),
    "<|vision_end|>": ("vision_end_token_id", 151653),
}
_TRIAL: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": [{"type": "text", "text": "You look at pictures."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is here?"}]},
    {"role": "user", "content": [{"type": "text", "text": "And what next?"}]},
)
_SIDE_FILES = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


class BadCheckpoint(Exception):
    """The folder cannot be served; `problems` lists what is wrong and what to do."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose folder has been checked.

    Attributes:
        end_token_id: id of <|im_end|>.
        special_tokens: texts of all special tokens.
        weights: the safetensors files in use; empty if weights were not read.
        tensors: name, as in the published checkpoints -> tensor in these files.
        quantisation: the method that quantised the weights; None: they are not quantised.
        own_bounds: the picture processor's pixel bounds; no engine here applies them.
        trained_on: the record of `teacher train`, if that command made the checkpoint.
        files: all files that can change an answer.
    """

    folder: Path
    config: dict[str, Any]
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    image_token_id: int
    end_token_id: int
    special_tokens: tuple[str, ...]
    weights: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    dimensions: Dimensions
    own_bounds: Bounds | None
    quantisation: str | None
    trained_on: TrainedOn | None
    files: tuple[Path, ...]

    @property
    def chat_format(self) -> ChatFormat:
        """Writes conversations as token ids."""
        return ChatFormat(self.chat_template, self.tokenizer, self.special_tokens)

    def digest(self) -> str:
        """Returns the SHA-256, in hexadecimal, of the names and bytes of all files that can change an answer.

        Raises:
            BadCheckpoint: a file has been removed.
        """
        return self._digest

    def differs_in_weights_alone(self, other: "Checkpoint") -> bool:
        """Returns whether all other files that can change an answer are equal byte for byte."""
        return self._besides_weights() == other._besides_weights()

    def _besides_weights(self) -> dict[str, bytes]:
        weights = {*(path.name for path in self.weights), INDEX}
        return {path.name: path.read_bytes() for path in self.files if path.name not in weights}

    @cached_property
    def _digest(self) -> str:
        try:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                of_files = list(pool.map(_file_digest, self.files))
        except OSError as error:
            raise BadCheckpoint([f"{error.filename}: can no longer be read ({error.strerror})"]) from error
        names = [path.name for path in self.files]
        return hashlib.sha256(json.dumps([names, of_files]).encode()).hexdigest()

    def dtype(self) -> str:
        """Returns the dtype of the weights: float32, bfloat16 or float16."""
        kinds = [tensor.kind for tensor in self.tensors.values() if tensor.kind in DTYPES]
        most = max(sorted(set(kinds)), key=kinds.count, default="F32")
        return config_dtype(self.config) or DTYPES.get(most, "float32")

    def served_dtype(self, settings: EngineSettings, engine: str) -> str:
        """Returns the dtype in which an engine computes; onnx knows float32 alone."""
        auto = "float32" if engine == "onnx" else self.dtype()
        return auto if settings.dtype == "auto" else settings.dtype

    def weight_bytes(self, dtype: str) -> int:
        """Returns the bytes of all weights when served in a dtype."""
        if not self.tensors:
            return ITEM_BYTES[dtype] * self.dimensions.parameters()
        unread = "lm_head.weight" if self.dimensions.tied else None
        return sum(t.bytes_in(ITEM_BYTES[dtype]) for name, t in self.tensors.items() if name != unread)

    def memory_need(self, settings: EngineSettings, engine: Engine, hardware: Hardware) -> MemoryNeed:
        """Returns the memory that serving with these settings takes."""
        dtype = self.served_dtype(settings, engine)
        return memory_need(self.dimensions, self.weight_bytes(dtype), dtype, settings, engine, hardware)

    def prefix_cache_bytes(self, settings: EngineSettings, engine: Engine) -> int:
        """Returns the most bytes of keys and values that an engine keeps between stages."""
        dtype = self.served_dtype(settings, engine)
        return prefix_cache_bytes(self.dimensions, dtype, settings)


def read_checkpoint(folder: Path, *, weights: bool = True) -> Checkpoint:
    """Reads and checks a folder.

    Args:
        weights: False: neither read nor check the weights.

    Raises:
        BadCheckpoint: the folder cannot be served; it lists all problems.
    """
    try:
        opened = Folder(folder)
    except Unusable as error:
        raise BadCheckpoint(error.problems) from None
    checkpoint = _read(opened, weights=weights)
    if checkpoint is None or opened.problems:
        raise BadCheckpoint(opened.problems)
    return checkpoint


def label_problems(checkpoint: Checkpoint, labels: Mapping[str, str]) -> list[str]:
    """Returns problems with action labels: to be read in one step, each has to be a token of its own."""
    cut = {label: checkpoint.tokenizer.encode(label, add_special_tokens=False) for label in labels.values()}
    pieces = {label: list(zip(tokens.ids, tokens.tokens, strict=True)) for label, tokens in cut.items()}
    found = single_token_problems(labels, pieces, "this checkpoint")
    if found and checkpoint.trained_on is not None:
        prompts = checkpoint.trained_on.prompts
        found.append(f"this checkpoint was trained with the prompt set {prompts}: set `prompts` to {prompts}")
    return found


def serving_problems(checkpoint: Checkpoint, settings: EngineSettings, engine: Engine) -> list[str]:
    """Returns why an engine does not serve the checkpoint with these settings, apart from memory."""
    architecture, found = checkpoint.dimensions.architecture, []
    if engine == "onnx" and architecture != QWEN2_5:
        found.append(
            f"onnx serves {QWEN2_5.family} alone, and this checkpoint is a {architecture.family}: set"
            " `engine` to vllm or transformers"
        )
    found += processor_problems(checkpoint.own_bounds, engine)
    found += quantisation_problems(checkpoint, settings, engine)
    if engine == "onnx" and settings.dtype not in ("auto", "float32"):
        found.append(f"`dtype` is {settings.dtype}, and onnx computes in float32: leave it out")
    return found


def quantisation_problems(checkpoint: Checkpoint, settings: EngineSettings, engine: Engine) -> list[str]:
    """Returns why an engine does not serve the quantised weights on this machine; empty for plain weights."""
    if checkpoint.quantisation is None or settings.load_format == "dummy":
        return []
    dtype = checkpoint.served_dtype(settings, engine)
    return engine_problems(checkpoint.quantisation, engine, dtype)


def memory_problems(
    checkpoint: Checkpoint, settings: EngineSettings, engine: Engine, *, leaving: MemoryNeed | None = None
) -> list[str]:
    """Returns why the checkpoint does not fit on this machine with these settings, and what to do.

    Args:
        leaving: memory that is in use now and freed before the checkpoint is loaded.
    """
    hardware = Hardware.here(settings, engine)
    if leaving is not None:
        hardware = hardware.without(leaving)
    need = checkpoint.memory_need(settings, engine, hardware)
    return need_problems(need, checkpoint.dimensions, settings, engine, hardware)


def _read(folder: Folder, *, weights: bool) -> Checkpoint | None:
    """Reads all files, and continues after a problem, so that all problems are reported at once."""
    dimensions, tokenizer, template, bounds, record = None, None, None, None, None
    config = folder.json("config.json")
    configs = {name: folder.json(name, needed=name == "tokenizer_config.json") for name in _SIDE_FILES}
    for name, content in {"config.json": config, **configs}.items():
        if "auto_map" in content:
            folder.wrong(
                name,
                "asks for custom code (auto_map), which this service never runs: use a checkpoint without it",
            )
    if folder.has("adapter_config.json"):
        folder.wrong(
            "adapter_config.json",
            "belongs to an adapter: merge the adapter into the weights, then remove this file",
        )
    with folder.noting():
        dimensions = _dimensions(config) if config else None
    with folder.noting():
        tokenizer = _tokenizer(folder, config, dimensions)
    with folder.noting():
        template = _chat_template(folder, configs["tokenizer_config.json"])
    with folder.noting():
        record = read_record(folder.path)
    with folder.noting():
        bounds = own_bounds(folder, configs, dimensions)
    method = quantisation_of(config)
    paths, held = read_weights(folder, dimensions, quantisation=method) if weights else ((), {})
    if dimensions is None or tokenizer is None or template is None:
        return None
    image, end = tokenizer.token_to_id("<|image_pad|>"), tokenizer.token_to_id("<|im_end|>")
    if image is None or end is None:
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    return Checkpoint(
        folder=folder.path,
        config=config,
        tokenizer=tokenizer,
        chat_template=template,
        image_token_id=image,
        end_token_id=end,
        special_tokens=tuple(token.content for token in added if token.special),
        weights=paths,
        tensors=held,
        dimensions=dimensions,
        own_bounds=bounds,
        quantisation=method,
        trained_on=record,
        files=tuple(sorted(folder.used)),
    )


def _dimensions(config: Mapping[str, Any]) -> Dimensions:
    name = "config.json"
    architecture = architecture_of(config)
    if architecture is None:
        served = f"{', '.join(ARCHITECTURES)} are served: use a {FAMILIES} checkpoint"
        raise unusable(name, f"architectures is {config.get('architectures')!r}, and {served}")
    try:
        dimensions = Dimensions.of(config, architecture)
    except ValidationError as error:
        raise unusable(name, *(f"{sentence(each)}: {COPY_AGAIN}" for each in problems(error))) from None
    if whys := [*config_problems(config, dimensions)]:
        raise unusable(name, *whys)
    return dimensions


def _tokenizer(folder: Folder, config: Mapping[str, Any], dimensions: Dimensions | None) -> Tokenizer:
    name = "tokenizer.json"
    if not folder.has(name) and (older := [old for old in ("vocab.json", "merges.txt") if folder.has(old)]):
        of_base = "copy tokenizer.json from the checkpoint that this one was trained from"
        raise unusable(name, f"is missing, and the older format ({', '.join(older)}) is not read: {of_base}")
    content = folder.read(name)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise unusable(name, f"is not a tokenizer ({error}): {COPY_AGAIN}") from None
    # A training run may leave these on; they would cut or pad every prompt
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token in _TURN_TOKENS:
        token_id = tokenizer.token_to_id(token)
        if token_id is None or tokenizer.encode(token, add_special_tokens=False).ids != [token_id]:
            folder.wrong(
                name, f"lacks the special token {token}: use the tokenizer of a {FAMILIES} checkpoint"
            )
        elif config and token in _ID_FIELDS:
            field, usual = _ID_FIELDS[token]
            if (own := config.get(field, usual)) != token_id:
                folder.wrong(
                    name, f"{token} is {token_id}, and {field} in config.json is {own!r}: {ONE_CHECKPOINT}"
                )
    largest = max(tokenizer.get_vocab().values(), default=0)
    if dimensions is not None and largest >= (size := dimensions.text.vocab_size):
        folder.wrong(
            name, f"has ids up to {largest}, and vocab_size in config.json is {size}: {ONE_CHECKPOINT}"
        )
    return tokenizer


def _chat_template(folder: Folder, tokenizer_config: Mapping[str, Any]) -> ChatTemplate:
    # In the order of transformers
    if folder.has(name := "chat_template.jinja"):
        source: str | None = folder.read(name).decode(errors="replace")
    elif folder.has(name := "chat_template.json"):
        source = template_of(folder.json(name).get("chat_template"))
    else:
        name, source = "tokenizer_config.json", template_of(tokenizer_config.get("chat_template"))
    if source is None:
        raise unusable("chat_template.jinja", f"is missing, and {name} has no chat template: {COPY_AGAIN}")
    try:
        template = ChatTemplate(source, tokenizer_config)
        # Tried out, since the template of a text model has no place for pictures
        stages_of(template, _TRIAL[:-1], "THE-ANSWER", _TRIAL[-1])
    except BadChatTemplate as error:
        raise unusable(name, f"the chat template {error}: use that of a {FAMILIES} checkpoint") from None
    return template


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
