"""The wire: what a question and an answer look like, shared by the service and its clients."""

from __future__ import annotations

import base64
import math
import re
import reprlib
from collections.abc import Sequence
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
"""Characters."""

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
"""What goes on behind the service: questions are answered while it is ready, or checks a new checkpoint."""


def _known_actions(actions: tuple[str, ...]) -> tuple[str, ...]:
    for action in actions:
        if action not in ACTIONS:
            raise ValueError(f"{reprlib.repr(action)} is none of MiniGrid's actions: {', '.join(ACTIONS)}")
    if len(set(actions)) < len(actions):
        raise ValueError(f"each action may be named once, not {', '.join(actions)}")
    return actions


class Question(BaseModel):
    """What to do in a picture?"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(description="a PNG or JPEG file in base64: the full view of a grid, opaque")
    mission: Annotated[str, StringConstraints(max_length=MAX_MISSION)] = Field(
        description="the mission's text, as the environment gives it"
    )
    task: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="a task's key; GET /teacher lists them"
    )
    actions: Annotated[
        tuple[str, ...], Field(min_length=1, max_length=len(ACTIONS)), AfterValidator(_known_actions)
    ] = Field(
        description=f"the actions to choose from, each once, out of: {', '.join(ACTIONS)}",
        json_schema_extra={"items": {"type": "string", "enum": list(ACTIONS)}, "uniqueItems": True},
    )
    stage: Stage = Field(default="both", description="'analysis' leaves the second stage, the action, out")

    @classmethod
    def about(
        cls, picture: bytes, *, mission: str, task: str, actions: Sequence[str], stage: Stage = "both"
    ) -> Self:
        """A question about a picture, given as the bytes of a PNG or JPEG file.

        Raises:
            pydantic.ValidationError: a value that the wire does not allow (it is a ValueError).
        """
        image = base64.b64encode(picture).decode("ascii")
        return cls(image=image, mission=mission, task=task, actions=tuple(actions), stage=stage)


class StageReport(BaseModel):
    """What one stage said, and what it took."""

    model_config = ConfigDict(frozen=True)

    text: str = Field(description="raw, as the teacher wrote it")
    tokens: int = Field(default=0, ge=0, description="generated; 0 for a teacher that generates none")
    milliseconds: float = Field(ge=0)
    label_mass: float | None = Field(
        default=None,
        description="probability of all action labels together before it was made 1; None if not read",
    )


class Stages(BaseModel):
    """Both stages; `action` is None where only the analysis was asked for."""

    model_config = ConfigDict(frozen=True)

    analysis: StageReport
    action: StageReport | None


class Answer(BaseModel):
    """What a teacher would do, and why."""

    model_config = ConfigDict(frozen=True)

    probabilities: dict[str, float] | None = Field(
        description="sums to 1, in the order asked; None where only the analysis was asked for"
    )
    action: str | None = Field(description="the most probable; the first asked among equals")
    analysis: str
    stages: Stages
    teacher: str = Field(description="the identity of the teacher that gave this answer")
    stored: bool = Field(description="whether it was given before and is now repeated")
    milliseconds: dict[str, float] = Field(description="where the time of this reply went")

    @model_validator(mode="after")
    def _is_a_distribution(self) -> Self:
        if self.probabilities is not None:
            values = self.probabilities.values()
            # `not (... and ...)` so that a NaN is refused too
            if not (all(p >= 0 for p in values) and math.isclose(sum(values), 1, abs_tol=1e-3)):
                raise ValueError(f"not a probability distribution: {self.probabilities}")
            if self.action not in self.probabilities:
                raise ValueError(f"{self.action!r} is none of {', '.join(self.probabilities)}")
        return self


_QUOTED = re.compile(r"""(?<!\w)b?(['"])(?:\\.|(?!\1).)*(?:\1|$)""", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_LONGEST_KIND = 160


class ErrorBody(BaseModel):
    """Why a question has no answer."""

    model_config = ConfigDict(frozen=True)

    status: int = Field(description="the HTTP status of this question")
    field: str | None = Field(default=None, description="what in the question was wrong, if something was")
    reason: str
    raw: str | None = Field(
        default=None, description="what the teacher wrote, where it could not be read (502)"
    )
    stage: Literal["analysis", "action"] | None = Field(
        default=None, description="the stage whose answer could not be read (502), or did not come (503)"
    )
    fault: str | None = Field(
        default=None, description="in a word, why it could not be read (502), or did not come (503)"
    )
    retry_after: float | None = Field(
        default=None, description="seconds to wait before asking again (429, 503)"
    )

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that go with it."""
        return {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:.0f}"}

    @property
    def kind(self) -> str:
        """What it has in common with errors of its kind, to count them by; with nothing of what was asked.

        The reason without what stands in quotes and without numbers; for an answer that could not be read,
        which the reason may repeat, the fault alone.
        """
        if self.fault is not None:
            return f"{self.status} {self.stage}: {self.fault}"
        if self.field is not None and self.field not in Question.model_fields:
            return f"{self.status}: a field that a question does not have"  # the client named it
        reason = _QUOTED.sub("'…'", self.reason)
        reason = _NUMBER.sub("N", reason).removeprefix(f"{self.field}: ")
        return f"{self.status}{f' {self.field}' if self.field else ''}: {reason[:_LONGEST_KIND]}"


class ErrorAnswer(BaseModel):
    """The body of every reply that is not a success."""

    error: ErrorBody


class Answered(BaseModel):
    """A question of a batch that was answered."""

    status: Literal[200] = 200
    answer: Answer


class Failed(BaseModel):
    """A question of a batch that was not answered, with its own status."""

    status: int
    error: ErrorBody


class BatchAnswer(BaseModel):
    """The outcomes of a batch, in the order of its questions."""

    answers: list[Answered | Failed]


class TrainedGrids(BaseModel):
    """Of one environment that a checkpoint was trained on."""

    model_config = ConfigDict(frozen=True)

    task: str
    sizes: tuple[tuple[int, int], ...] = Field(description="columns and rows of its grids")


class TrainedOn(BaseModel):
    """What a checkpoint was trained on, as `teacher train` writes it down beside the weights."""

    model_config = ConfigDict(frozen=True)

    prompts: str = Field(description="the prompt set, by name or folder")
    prompts_digest: str
    readout: Literal["labels", "numbers"] = "labels"
    environments: dict[str, TrainedGrids]

    def lacks(self, env_id: str, task: str, size: tuple[int, int]) -> str | None:
        """Why the checkpoint may know nothing of an environment; None where training had grids like its own.

        Args:
            size: columns and rows.
        """
        if env_id in self.environments:
            return None
        sizes = sorted(
            {each for grids in self.environments.values() if grids.task == task for each in grids.sizes}
        )
        if not sizes:
            tasks = dict.fromkeys(grids.task for grids in self.environments.values())
            return f"it was trained on the tasks {', '.join(tasks)}, and never on {task}"
        if size not in sizes:
            known = ", ".join(f"{columns} x {rows}" for columns, rows in sizes)
            return f"it was trained on grids of {known} for {task}, and never of {size[0]} x {size[1]}"
        return None

    def __str__(self) -> str:
        return f"{', '.join(self.environments)}, with the prompt set {self.prompts}"


class TeacherInfo(BaseModel):
    """Who answers: the identity and everything in it."""

    model_config = ConfigDict(frozen=True)

    identity: str = Field(description="a digest of the description; answers of two identities never mix")
    kind: str
    description: dict[str, Any] = Field(description="all that can change an answer, and nothing else")
    hosting: dict[str, Any] = Field(
        default={}, description="where and by what it runs, which changes no answer"
    )
    tasks: dict[str, tuple[str, ...]] = Field(description="the tasks it knows and their useful actions")
    state: HostState = Field(
        default="ready", description="ready; what goes on while it starts, is exchanged or does not answer"
    )

    @property
    def trained_on(self) -> TrainedOn | None:
        """What the checkpoint was trained on; None where that is not known."""
        told = self.hosting.get("trained_on")
        return None if told is None else TrainedOn.model_validate(told)


class Swap(BaseModel):
    """Which checkpoint is to be served from now on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="its folder on the teacher's machine, from the root: /models/NAME")
    digest: str | None = Field(
        default=None, description="the digest that it has to have; `teacher check` prints it"
    )
    in_place: bool = Field(
        default=False,
        description="vllm: load weights of the same shapes into the running engine, where that can be",
    )
    allow_unreadable: bool = Field(
        default=False, description="serve it though no answer of those that are tried can be read"
    )

    @field_validator("model")
    @classmethod
    def _is_absolute(cls, model: Path) -> Path:
        if not model.is_absolute() or "\0" in str(model):
            raise ValueError(f"a folder on the teacher's machine, from the root, not {str(model)!r}")
        return model


class Sight(BaseModel):
    """How a checkpoint told two pictures apart that differ in one tile."""

    model_config = ConfigDict(frozen=True)

    apart: float = Field(description="largest difference of a label's log-probability, in nats")
    repeat: float = Field(description="the same between two askings about one picture")
    readable: int = Field(description="of the two pictures, those with a whole answer that could be read")


class Swapped(BaseModel):
    """A swap that came about."""

    model_config = ConfigDict(frozen=True)

    old: str = Field(description="the identity that answered before")
    new: str = Field(description="the identity that answers now")
    how: Literal["new engine", "in place", "served already"]
    seconds: dict[str, float] = Field(description="of each step, in order")
    sight: Sight | None = Field(default=None, description="None where nothing was loaded")


class Hosted(BaseModel):
    """What goes on, and which checkpoint answers, or answered last."""

    model_config = ConfigDict(frozen=True)

    state: HostState
    identity: str
    model: Path | None = Field(description="None for a teacher without a checkpoint")


class Health(BaseModel):
    """Whether the service lives, or is ready."""

    status: str
