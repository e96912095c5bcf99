"""An exported student: one ONNX file with all that is needed to play, run by onnxruntime without torch."""

import importlib.metadata
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from student.environments import Layout, Vocabulary, layout_of
from teacher_api.command_line import CannotStart

FORMAT = "lvlm2p-student-1"
"""Of exported files; the number is raised when older ones can no longer be read."""
INPUT, LOGITS, VALUES = "observations", "logits", "values"
"""The names in the graph: uint8 [B, K] to float32 [B, A] and [B]."""

_Listed = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda text: text.split() if isinstance(text, str) else text),
    PlainSerializer(" ".join),
]
"""Words without blanks in them, in the file as one line with blanks between."""


class BadExport(CannotStart):
    """A file that cannot be written or played, and what to do."""


class About(BaseModel):
    """What an exported file says of itself, each field a line of text in ONNX's metadata_props."""

    model_config = ConfigDict(frozen=True)

    format: str = FORMAT
    env: str
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    actions: _Listed = Field(min_length=1)
    words: _Listed = Field(description="the words it has met; their ids are 1, 2, ...")
    algorithm: str
    seed: int
    frames: int
    teacher: str = Field(description="the identity of the teacher that it learnt from, or none")
    version: str = Field(default_factory=lambda: importlib.metadata.version("lvlm2p"))

    @property
    def layout(self) -> Layout:
        return Layout(self.env, self.height, self.width, self.actions)

    def lines(self) -> dict[str, str]:
        """The names and texts that the file holds."""
        return {name: str(value) for name, value in self.model_dump().items()}


@dataclass(frozen=True)
class ExportedStudent:
    """A student ready to play. `session` is an onnxruntime.InferenceSession."""

    about: About
    session: Any

    @property
    def vocabulary(self) -> Vocabulary:
        """A new one, which knows the student's words."""
        return Vocabulary(self.about.words)

    def policy(self, obs_BK: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Log-probabilities [B, A] of observations [B, K]."""
        logits_BA: NDArray[np.float32] = self.session.run([LOGITS], {INPUT: obs_BK})[0]
        shifted_BA = logits_BA - logits_BA.max(1, keepdims=True)
        log_probs_BA: NDArray[np.float32] = shifted_BA - np.log(np.exp(shifted_BA).sum(1, keepdims=True))
        return log_probs_BA

    def judge(self, obs_BK: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [B, A] and values [B], as the file gives them."""
        logits_BA, values_B = self.session.run([LOGITS, VALUES], {INPUT: obs_BK})
        return logits_BA, values_B


def open_exported(file: Path) -> ExportedStudent:
    """An exported file, ready to play on one thread.

    Raises:
        BadExport: the extra is not installed, or the file is none of `student export`'s.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadExport(f"{file} cannot be read: {error.strerror}") from error
    return load_exported(content, str(file))


def load_exported(content: bytes, name: str) -> ExportedStudent:
    """The same for a file's content; `name` is what error messages call it.

    Raises:
        BadExport: as for `open_exported`.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BadExport(f"{name} cannot be read as an ONNX file: {error}".splitlines()[0]) from error
    lines = session.get_modelmeta().custom_metadata_map
    written_in = lines.get("format", "")
    if not written_in.startswith(FORMAT.rstrip("0123456789")):
        raise BadExport(f"{name} is no exported student; `student export RUN` writes one")
    if written_in != FORMAT:
        raise BadExport(
            f"{name} has the format {written_in}, and this version reads {FORMAT}: export the run again"
        )
    try:
        about = About.model_validate(lines)
        known = layout_of(about.env)
    except (ValidationError, ValueError) as error:
        raise BadExport(f"{name} does not say what it plays: {error}".splitlines()[0]) from error
    _check(session, about, known, name)
    return ExportedStudent(about, session)


def _check(session: Any, about: About, known: Layout, name: str) -> None:
    """The file's description, its graph and the environment have to agree."""
    if about.layout != known:
        raise BadExport(f"{name} plays {about.env} of another size or with other actions than it has here")
    shapes = {each.name: each.shape[1:] for each in (*session.get_inputs(), *session.get_outputs())}
    if shapes != {INPUT: [known.length], LOGITS: [len(known.actions)], VALUES: []}:
        raise BadExport(f"{name} has a network that does not fit {about.env}; export the run again")


def needed(module: str) -> Any:
    """A module of the extra `export`.

    Raises:
        BadExport: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise BadExport(f"{module} is not installed here: pip install -e '.[export]'") from error
