"""An exported student: one ONNX file with all that playing needs, run by onnxruntime without torch."""

import importlib.metadata
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from teacher_api.command_line import CannotStart
from teacher_api.validation import in_words
from worlds.registry import world_of
from worlds.world import World

FORMAT = "lvlm2p-student-1"
"""The format of exported files; the number is raised when older files can no longer be read."""
INPUT, LOGITS, VALUES = "observations", "logits", "values"
"""Names in the graph: observations uint8 [B, K], logits float32 [B, A], values float32 [B]."""

_Listed = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda text: text.split() if isinstance(text, str) else text),
    PlainSerializer(" ".join),
]
"""Words without spaces; in the file one line, separated by spaces."""


class BadExport(CannotStart):
    """A file cannot be written or played: the message says why and what to do."""


class About(BaseModel):
    """The description of an exported student; each field is an entry of ONNX's metadata_props."""

    model_config = ConfigDict(frozen=True)

    format: str = FORMAT
    env: str
    height: int = Field(ge=0, description="rows of the grid; 0: the environment has none")
    width: int = Field(ge=0)
    actions: _Listed = Field(min_length=1)
    words: _Listed = Field(description="the vocabulary; the ids of the words are 1, 2, ...")
    success_above: float = Field(
        default=0.0, description="an episode is a success if its return is above this"
    )
    algorithm: str
    seed: int
    frames: int
    teacher: str = Field(description="the identity of the student's teacher, or none")
    version: str = Field(default_factory=lambda: importlib.metadata.version("lvlm2p"))

    def lines(self) -> dict[str, str]:
        """Returns the entries of metadata_props."""
        return {name: str(value) for name, value in self.model_dump().items()}


@dataclass(frozen=True)
class ExportedStudent:
    """A student that can play; `session` is an onnxruntime.InferenceSession."""

    about: About
    world: World
    session: Any

    def policy(self, obs_BK: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns log-probabilities [B, A] for observations [B, K]."""
        logits_BA: NDArray[np.float32] = self.session.run([LOGITS], {INPUT: obs_BK})[0]
        shifted_BA = logits_BA - logits_BA.max(1, keepdims=True)
        log_probs_BA: NDArray[np.float32] = shifted_BA - np.log(np.exp(shifted_BA).sum(1, keepdims=True))
        return log_probs_BA

    def judge(self, obs_BK: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the graph's logits [B, A] and values [B]."""
        logits_BA, values_B = self.session.run([LOGITS, VALUES], {INPUT: obs_BK})
        return logits_BA, values_B


def open_exported(file: Path) -> ExportedStudent:
    """Returns the student of an exported file; it plays on one thread.

    Raises:
        BadExport: the extra `export` is not installed, or `student export` did not write the file.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadExport(f"{file} cannot be read: {error.strerror}") from error
    return load_exported(content, str(file))


def load_exported(content: bytes, name: str) -> ExportedStudent:
    """Returns the student of a file's content; error messages call the file `name`.

    Raises:
        BadExport: see `open_exported`.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised; without this they are printed too
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BadExport(f"{name} cannot be read as an ONNX file: {error}".splitlines()[0]) from error
    lines = session.get_modelmeta().custom_metadata_map
    written_in = lines.get("format", "")
    if not written_in.startswith(FORMAT.rstrip("0123456789")):
        raise BadExport(f"{name} is not an exported student; `student export RUN` writes one")
    if written_in != FORMAT:
        raise BadExport(
            f"{name} has format {written_in}, and this version reads {FORMAT}: export the run again"
        )
    try:
        about = About.model_validate(lines)
        world = world_of(about.env, about.success_above)
    except ValueError as error:
        why = in_words(error) if isinstance(error, ValidationError) else error
        raise BadExport(f"{name} has no usable description: {why}") from error
    _check(session, about, world, name)
    world.learn_words(about.words)
    return ExportedStudent(about, world, session)


def _check(session: Any, about: About, world: World, name: str) -> None:
    """Raises BadExport if the description, the graph and the environment do not agree."""
    if (about.actions, (about.width, about.height)) != (world.actions, world.size or (0, 0)):
        raise BadExport(
            f"{name} plays {about.env} with another size or other actions than the installed environment has"
        )
    shapes = {each.name: each.shape[1:] for each in (*session.get_inputs(), *session.get_outputs())}
    if shapes != {INPUT: [world.length], LOGITS: [len(world.actions)], VALUES: []}:
        raise BadExport(f"{name} has a network that does not fit {about.env}: export the run again")


def needed(module: str) -> Any:
    """Imports a module of the extra `export`.

    Raises:
        BadExport: the module is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime sends usage reports otherwise
    try:
        return import_module(module)
    except ImportError as error:
        raise BadExport(f"{module} is not installed here: pip install -e '.[export]'") from error
