"""The requests and replies of the HTTP API, shared by the service and its clients."""

from __future__ import annotations

import base64
import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
"""MiniGrid's seven actions, in the order of its action numbers."""

MAX_MISSION = 512
"""The longest mission, in characters."""

Stage = Literal["both", "analysis"]

HostState = Literal[
    "starting",
    "ready",
    "checking",
    "draining",
    "loading",
    "trying",
    "going back",
    "replacing",
    "waiting",
    "gone",
]
"""The state of the teacher behind the service; it answers questions while ready or checking a checkpoint."""


_ACTION = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
MAX_ACTIONS = 32
"""The most actions of a question."""


def action_problem(actions: Sequence[str]) -> str | None:
    """Returns why these cannot be the names of a question's actions; None if they can."""
    if not 1 <= len(actions) <= MAX_ACTIONS:
        return f"there are {len(actions)}; there can be 1 to {MAX_ACTIONS}"
    for action in actions:
        if not _ACTION.fullmatch(action):
            return (
                f"{reprlib.repr(action)} is no action's name: 1 to 64 small letters, digits and underscores"
            )
    if len(set(actions)) < len(actions):
        return f"each action may appear once, not {', '.join(actions)}"
    return None


def _named_actions(actions: tuple[str, ...]) -> tuple[str, ...]:
    if problem := action_problem(actions):
        raise ValueError(problem)
    return actions


class Question(BaseModel):
    """A picture and a mission: what is the next action?"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(
        description="a PNG or JPEG file in base64: the full view of a grid, without transparency"
    )
    mission: Annotated[str, StringConstraints(max_length=MAX_MISSION)] = Field(
        description="the mission's text, as the environment gives it"
    )
    task: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="the task's key; GET /teacher lists the keys"
    )
    actions: Annotated[
        tuple[str, ...], Field(min_length=1, max_length=MAX_ACTIONS), AfterValidator(_named_actions)
    ] = Field(
        description="the actions to choose from, each once: some of the task's, which GET /teacher lists, or"
        f" of MiniGrid's: {', '.join(ACTIONS)}",
        json_schema_extra={
            "items": {"type": "string", "pattern": f"^{_ACTION.pattern}$"},
            "uniqueItems": True,
        },
    )
    stage: Stage = Field(default="both", description="both stages, or the analysis alone")

    @classmethod
    def about(
        cls, picture: bytes, *, mission: str, task: str, actions: Sequence[str], stage: Stage = "both"
    ) -> Self:
        """Returns a question about the bytes of a PNG or JPEG file.

        Raises:
            pydantic.ValidationError: a value is not allowed. (It is a ValueError.)
        """
        image = base64.b64encode(picture).decode("ascii")
        return cls(image=image, mission=mission, task=task, actions=tuple(actions), stage=stage)


class StageReport(BaseModel):
    """The output of a stage and its cost."""

    model_config = ConfigDict(frozen=True)

    text: str = Field(description="the teacher's text, unchanged")
    tokens: int = Field(
        default=0, ge=0, description="tokens that the model generated; 0 for a teacher without a model"
    )
    milliseconds: float = Field(ge=0)
    label_mass: float | None = Field(
        default=None,
        description="probability of all labels together, before normalisation; None for other read-outs",
    )
    certainty: float | None = Field(
        default=None,
        description="analysis: probability of its least certain token, among the tokens that its schema"
        " allows there; None if there is no model, or the engine does not report it",
    )


class Stages(BaseModel):
    """Both stages; `action` is None if the question asks for the analysis alone."""

    model_config = ConfigDict(frozen=True)

    analysis: StageReport
    action: StageReport | None


class Answer(BaseModel):
    """A teacher's probabilities over the actions, with its analysis."""

    model_config = ConfigDict(frozen=True)

    probabilities: dict[str, float] | None = Field(
        description="by action, in the order of the question, with the sum 1; None if only the analysis is"
        " asked for"
    )
    action: str | None = Field(description="the most probable action; among equals the first of the question")
    confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="how sure the teacher is of `action`, 0 to 1; None if the teacher does not know, if only"
        " the analysis is asked for, or if an earlier version gave the answer",
    )
    analysis: str = Field(description="the text of the first stage")
    stages: Stages
    teacher: str = Field(description="the identity of the teacher that gave the answer")
    stored: bool = Field(description="whether the answer comes from the answer store")
    milliseconds: dict[str, float] = Field(
        description="the milliseconds of each part of the work on this reply"
    )

    @model_validator(mode="after")
    def _is_a_distribution(self) -> Self:
        if self.probabilities is not None:
            values = self.probabilities.values()
            # `not (... and ...)` so that a NaN is refused too
            if not (all(p >= 0 for p in values) and math.isclose(sum(values), 1, abs_tol=1e-3)):
                raise ValueError(f"not a probability distribution: {self.probabilities}")
            if self.action not in self.probabilities:
                raise ValueError(f"{self.action!r} is none of the actions {', '.join(self.probabilities)}")
        return self


_QUOTED = re.compile(r"""(?<!\w)b?(['"])(?:\\.|(?!\1).)*(?:\1|$)""", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_LONGEST_KIND = 160


class ErrorBody(BaseModel):
    """The error in place of an answer."""

    model_config = ConfigDict(frozen=True)

    status: int = Field(description="the HTTP status of this question")
    field: str | None = Field(default=None, description="the field of the question that is wrong, if any")
    reason: str = Field(description="what is wrong, and what to do")
    raw: str | None = Field(default=None, description="the teacher's text that could not be read (502)")
    stage: Literal["analysis", "action"] | None = Field(
        default=None, description="the stage whose output could not be read (502), or did not come (503)"
    )
    fault: str | None = Field(default=None, description="the cause in a word, where `stage` is given")
    retry_after: float | None = Field(
        default=None, description="seconds to wait before the next try (429, 503)"
    )

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers of the error: Retry-After, or none."""
        return {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:.0f}"}

    @property
    def kind(self) -> str:
        """The error without the parts that differ from question to question, to count errors by.

        The reason without quoted words and numbers; where there is a fault, the fault in its place, because
        the reason may repeat the teacher's text.
        """
        if self.fault is not None:
            return f"{self.status} {self.stage}: {self.fault}"
        if self.field is not None and self.field not in Question.model_fields:
            return f"{self.status}: a field that a question does not have"  # the client chose the name
        reason = _QUOTED.sub("'…'", self.reason)
        reason = _NUMBER.sub("N", reason).removeprefix(f"{self.field}: ")
        return f"{self.status}{f' {self.field}' if self.field else ''}: {reason[:_LONGEST_KIND]}"


class ErrorAnswer(BaseModel):
    """The body of every reply without success."""

    error: ErrorBody


class Answered(BaseModel):
    """The answer to a question of a batch."""

    status: Literal[200] = 200
    answer: Answer


class Failed(BaseModel):
    """The error of a question of a batch, with the question's own status."""

    status: int
    error: ErrorBody


class BatchAnswer(BaseModel):
    """An answer or an error for each question of a batch, in order."""

    answers: list[Answered | Failed]


class TrainedGrids(BaseModel):
    """The grids of an environment that a checkpoint was trained on."""

    model_config = ConfigDict(frozen=True)

    task: str
    sizes: tuple[tuple[int, int], ...] = Field(description="columns and rows of the grids")


class TrainedOn(BaseModel):
    """The record of training that `teacher train` writes beside the weights."""

    model_config = ConfigDict(frozen=True)

    prompts: str = Field(description="the prompt set, by name or folder")
    prompts_digest: str
    readouts: tuple[Literal["labels", "numbers"], ...] = ("labels",)
    environments: dict[str, TrainedGrids]
    samples: int | None = Field(
        default=None, description="the samples that the weights learned from; absent where not recorded"
    )

    def lacks(self, env_id: str, task: str, size: tuple[int, int] | None) -> str | None:
        """Returns why an environment is outside the training; None if training had it or grids of its size.

        Args:
            size: columns and rows of the environment's grid; None: it has none.
        """
        if env_id in self.environments:
            return None
        sizes = self._sizes()
        if task not in sizes:
            return f"it was trained on the tasks {', '.join(sizes)}, and not on {task}"
        if size is not None and size not in sizes[task]:
            known = _in_words(sizes[task])
            return f"it was trained on grids of {known} for {task}, and not of {size[0]} x {size[1]}"
        return None

    def __str__(self) -> str:
        number = "" if self.samples is None else f"{self.samples:,} samples of "
        tasks = [f"{task} ({_in_words(sizes)})" for task, sizes in self._sizes().items()]
        return f"{number}{', '.join(tasks)}, with the prompt set {self.prompts}"

    def _sizes(self) -> dict[str, set[tuple[int, int]]]:
        """Returns the sizes of each task's grids."""
        sizes: dict[str, set[tuple[int, int]]] = {}
        for grids in self.environments.values():
            sizes.setdefault(grids.task, set()).update(grids.sizes)
        return sizes


def _in_words(sizes: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{columns} x {rows}" for columns, rows in sorted(sizes))


class TeacherInfo(BaseModel):
    """A teacher: its identity, all that the identity covers, and its tasks."""

    model_config = ConfigDict(frozen=True)

    identity: str = Field(description="a digest of the description; stored answers belong to one identity")
    kind: str = Field(description="planner, uniform or prompted, or the name of a teacher of yours")
    description: dict[str, Any] = Field(description="everything that can change an answer, and nothing else")
    hosting: dict[str, Any] = Field(default={}, description="the machine and the engine; changes no answer")
    tasks: dict[str, tuple[str, ...]] = Field(
        description="the tasks that the teacher knows, with their useful actions"
    )
    state: HostState = Field(
        default="ready",
        description="ready, or what happens while the teacher starts, is swapped or does not answer",
    )

    @property
    def trained_on(self) -> TrainedOn | None:
        """The record of training of the checkpoint; None if there is none."""
        record = self.hosting.get("trained_on")
        return None if record is None else TrainedOn.model_validate(record)


class Swap(BaseModel):
    """A request to serve another checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(
        description="the checkpoint's folder on the teacher's machine, an absolute path such as /models/NAME"
    )
    digest: str | None = Field(
        default=None, description="refuse a checkpoint with another digest; `teacher check` prints the digest"
    )
    in_place: bool = Field(
        default=False,
        description="vllm: load the weights into the running engine, if their shapes are the same",
    )
    allow_unreadable: bool = Field(
        default=False, description="serve the checkpoint even if no answer of the vision check can be read"
    )

    @field_validator("model")
    @classmethod
    def _is_absolute(cls, model: Path) -> Path:
        if not model.is_absolute() or "\0" in str(model):
            raise ValueError(f"write an absolute path on the teacher's machine, not {str(model)!r}")
        return model


class VisionCheck(BaseModel):
    """The vision check of a checkpoint: two pictures that differ in one tile."""

    model_config = ConfigDict(frozen=True)

    apart: float = Field(
        description="the largest difference of a label's log-probability between the pictures, in nats"
    )
    repeat: float = Field(description="the same between two questions about one picture")
    readable: int = Field(description="the number of the two pictures with a readable answer")


class Swapped(BaseModel):
    """A swap that was made."""

    model_config = ConfigDict(frozen=True)

    old: str = Field(description="the identity that answered before")
    new: str = Field(description="the identity that answers now")
    how: Literal["new engine", "in place", "served already"]
    seconds: dict[str, float] = Field(description="the seconds of each step, in order")
    sight: VisionCheck | None = Field(
        default=None, description="the vision check; None if nothing was loaded"
    )


class Hosted(BaseModel):
    """The state of the teacher, and the checkpoint that answers or answered last."""

    model_config = ConfigDict(frozen=True)

    state: HostState
    identity: str
    model: Path | None = Field(description="the checkpoint's folder; None for a teacher without a checkpoint")


class Health(BaseModel):
    """Whether the service is alive, or ready."""

    status: str
