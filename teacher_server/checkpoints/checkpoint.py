"""Reads a checkpoint's folder, without loading its weights, and finds all that keeps it from being served."""

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
from teacher_server.checkpoints.dimensions import ITEM_BYTES, Dimensions, config_problems, said_dtype
from teacher_server.checkpoints.folders import COPY_AGAIN, ONE_CHECKPOINT, Folder, Unusable, unusable
from teacher_server.checkpoints.memory import (
    Engine,
    Hardware,
    MemoryNeed,
    memory_need,
    need_problems,
    prefix_cache_bytes,
)
from teacher_server.checkpoints.processor import Bounds, own_bounds
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

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
_TURN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
# Fields of config.json with the ids of tokens, and what they are where it leaves them out
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
    """A folder that cannot be served; `problems` says all that is wrong, and what to do."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A Qwen2.5-VL model in a folder that has been looked over.

    Attributes:
        chat_template: how it writes conversations.
        end_token_id: of <|im_end|>.
        special_tokens: texts of all special tokens.
        weights: the safetensors files in use; none if weights were not asked for.
        tensors: what is in them, by the published names.
        quantisation: the method by which the weights are quantised, if they are.
        own_bounds: of pictures, by the picture processor's files; no engine here applies them.
        trained_on: by `teacher train`, where that made it.
        files: all that can change an answer.
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
        """How the checkpoint writes conversations as token ids."""
        return ChatFormat(self.chat_template, self.tokenizer, self.special_tokens)

    def digest(self) -> str:
        """SHA-256 in hexadecimal digits over names and bytes of all files that can change an answer.

        Raises:
            BadCheckpoint: a file is not there any more.
        """
        return self._digest

    def differs_in_weights_alone(self, other: "Checkpoint") -> bool:
        """Whether all other files of the two that can change an answer are the same, byte for byte."""
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
            raise BadCheckpoint([f"{error.filename}: cannot be read any more ({error.strerror})"]) from error
        names = [path.name for path in self.files]
        return hashlib.sha256(json.dumps([names, of_files]).encode()).hexdigest()

    def dtype(self) -> str:
        """The weights' own: float32, bfloat16 or float16."""
        kinds = [tensor.kind for tensor in self.tensors.values() if tensor.kind in DTYPES]
        most = max(sorted(set(kinds)), key=kinds.count, default="F32")
        return said_dtype(self.config) or DTYPES.get(most, "float32")

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all weights, served in a dtype."""
        if not self.tensors:
            return ITEM_BYTES[dtype] * self.dimensions.parameters()
        unread = "lm_head.weight" if self.dimensions.tied else None
        return sum(t.bytes_in(ITEM_BYTES[dtype]) for name, t in self.tensors.items() if name != unread)

    def memory_need(self, settings: EngineSettings, engine: Engine, hardware: Hardware) -> MemoryNeed:
        """What serving it as asked takes."""
        dtype = self.dtype() if settings.dtype == "auto" else settings.dtype
        return memory_need(self.dimensions, self.weight_bytes(dtype), dtype, settings, engine, hardware)

    def prefix_cache_bytes(self, settings: EngineSettings) -> int:
        """Of keys and values that transformers keeps between the stages of conversations, at most."""
        dtype = self.dtype() if settings.dtype == "auto" else settings.dtype
        return prefix_cache_bytes(self.dimensions, dtype, settings)


def read_checkpoint(folder: Path, *, weights: bool = True) -> Checkpoint:
    """Reads a folder; `weights` False looks at no weights.

    Raises:
        BadCheckpoint: with everything that is wrong with it.
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
    """Labels, of actions, that are not one token each of their own: only those can be read in one step."""
    cut = {label: checkpoint.tokenizer.encode(label, add_special_tokens=False) for label in labels.values()}
    pieces = {label: list(zip(tokens.ids, tokens.tokens, strict=True)) for label, tokens in cut.items()}
    found = single_token_problems(labels, pieces, "this checkpoint")
    if found and checkpoint.trained_on is not None:
        prompts = checkpoint.trained_on.prompts
        found.append(f"this checkpoint was trained with the prompt set {prompts}: take --prompts {prompts}")
    return found


def quantisation_problems(checkpoint: Checkpoint, settings: EngineSettings, engine: Engine) -> list[str]:
    """Why an engine does not serve quantised weights here; none where they are not quantised."""
    if checkpoint.quantisation is None or settings.load_format == "dummy":
        return []
    dtype = checkpoint.dtype() if settings.dtype == "auto" else settings.dtype
    return engine_problems(checkpoint.quantisation, engine, dtype)


def memory_problems(
    checkpoint: Checkpoint, settings: EngineSettings, engine: Engine, *, leaving: MemoryNeed | None = None
) -> list[str]:
    """Why it cannot be served on this machine as asked, and what to do.

    Args:
        leaving: what takes memory now and is closed before.
    """
    hardware = Hardware.here(settings, engine)
    if leaving is not None:
        hardware = hardware.without(leaving)
    need = checkpoint.memory_need(settings, engine, hardware)
    return need_problems(need, checkpoint.dimensions, settings, engine, hardware)


def _read(folder: Folder, *, weights: bool) -> Checkpoint | None:
    """Goes on after a problem, so that all of them are told at once."""
    dimensions, tokenizer, template, bounds, record = None, None, None, None, None
    config = folder.json("config.json")
    said = {name: folder.json(name, needed=name == "tokenizer_config.json") for name in _SIDE_FILES}
    for name, content in {"config.json": config, **said}.items():
        if "auto_map" in content:
            folder.wrong(
                name, "asks for code of its own (auto_map), which is never run here: take one without"
            )
    if folder.has("adapter_config.json"):
        folder.wrong(
            "adapter_config.json", "belongs to an adapter: merge it into the weights, then remove it"
        )
    with folder.noting():
        dimensions = _dimensions(config) if config else None
    with folder.noting():
        tokenizer = _tokenizer(folder, config, dimensions)
    with folder.noting():
        template = _chat_template(folder, said["tokenizer_config.json"])
    with folder.noting():
        record = read_record(folder.path)
    with folder.noting():
        bounds = own_bounds(folder, said, dimensions)
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
    if (named := config.get("architectures")) != [ARCHITECTURE]:
        served = f"only [{ARCHITECTURE!r}] is served: take a Qwen2.5-VL checkpoint"
        raise unusable(name, f"architectures is {named!r}, and {served}")
    try:
        dimensions = Dimensions.of(config)
    except ValidationError as error:
        raise unusable(name, *(f"{sentence(each)}: {COPY_AGAIN}" for each in problems(error))) from None
    if whys := [*config_problems(config, dimensions)]:
        raise unusable(name, *whys)
    return dimensions


def _tokenizer(folder: Folder, config: Mapping[str, Any], dimensions: Dimensions | None) -> Tokenizer:
    name = "tokenizer.json"
    if not folder.has(name) and (older := [old for old in ("vocab.json", "merges.txt") if folder.has(old)]):
        of_base = "take tokenizer.json of the Qwen2.5-VL that the checkpoint was trained from"
        raise unusable(name, f"is missing, and its older form, {' and '.join(older)}, is not read: {of_base}")
    content = folder.read(name)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no narrower one
        raise unusable(name, f"is no tokenizer ({error}): {COPY_AGAIN}") from None
    # Left there by a training run; they would cut or pad every prompt
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token in _TURN_TOKENS:
        token_id = tokenizer.token_to_id(token)
        if token_id is None or tokenizer.encode(token, add_special_tokens=False).ids != [token_id]:
            folder.wrong(
                name, f"lacks the special token {token}: take the tokenizer of a Qwen2.5-VL checkpoint"
            )
        elif config and token in _ID_FIELDS:
            field, usual = _ID_FIELDS[token]
            if (said := config.get(field, usual)) != token_id:
                folder.wrong(
                    name, f"{token} is {token_id}, and {field} in config.json {said!r}: {ONE_CHECKPOINT}"
                )
    largest = max(tokenizer.get_vocab().values(), default=0)
    if dimensions is not None and largest >= (size := dimensions.text.vocab_size):
        folder.wrong(
            name, f"has ids up to {largest}, and vocab_size in config.json is {size}: {ONE_CHECKPOINT}"
        )
    return tokenizer


def _chat_template(folder: Folder, tokenizer_config: Mapping[str, Any]) -> ChatTemplate:
    # In the order that transformers looks in
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
        # Tried, since one of a text model knows no pictures
        stages_of(template, _TRIAL[:-1], "THE-ANSWER", _TRIAL[-1])
    except BadChatTemplate as error:
        raise unusable(name, f"the chat template {error}: take that of a Qwen2.5-VL checkpoint") from None
    return template


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
