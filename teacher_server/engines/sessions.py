"""What an interview is: a prompt set's conversation about one picture, whatever carries it to a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from teacher_server.engines.base import Decoding
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import Conversation


@dataclass(frozen=True)
class Said:
    """What a model said: its text, how many tokens that were; `complete` is False where it was cut."""

    text: str
    tokens: int
    complete: bool


@dataclass(frozen=True)
class LabelScores:
    """How probable the actions' labels are to come next, as natural logarithms, of the whole vocabulary.

    Attributes:
        known: action -> score.
        at_most: action -> the largest score it may have, for those that the engine does not tell.
    """

    known: dict[str, float]
    at_most: dict[str, float] = field(default_factory=dict)


class FollowUp(Protocol):
    """The conversation after the analysis, with the question for the action."""

    async def score(self, actions: Sequence[str]) -> LabelScores:
        """How probable each action's label is to be the answer.

        Raises:
            EngineError: the engine failed.
        """

    async def write(self, decoding: Decoding) -> Said:
        """The answer in words.

        Raises:
            EngineError: the engine failed.
        """


class Interview(Protocol):
    """The conversation up to the question for the analysis; equal ones have equal `key`s."""

    @property
    def key(self) -> str: ...

    async def analyse(self, decoding: Decoding) -> tuple[Said, FollowUp]:
        """The analysis, and the conversation that goes on from it.

        Raises:
            EngineError: the engine failed.
        """

    def unanalysed(self) -> FollowUp:
        """The conversation that goes on from an analysis that says nothing."""


class Script(Protocol):
    """A conversation but for the picture that it is about."""

    def about(self, picture: PreparedPicture) -> Interview:
        """The interview about a picture."""


class Interviewer(Protocol):
    """Interviews one model.

    Many interviews at once are welcome. Cancelling a question frees its place in the engine.
    """

    async def start(self) -> None:
        """Gets the model ready.

        Raises:
            CannotLoad, EngineError: there is none.
        """

    async def take_over(self, other: "Interviewer") -> bool:
        """Starts in the place of another one that nobody asks any more, and that has nothing left then.

        Returns:
            False where that cannot be: then nothing was touched.

        Raises:
            CannotLoad: it failed on the way. Neither can be asked; this one is to be closed.
        """

    def mark_in(self, text: str) -> str | None:
        """What in a text the model would take for a mark of its own: the end of a turn, a picture's place."""

    def script(self, conversation: Conversation) -> Script:
        """Writes what does not hang on the picture, once for all pictures.

        Raises:
            BadChatTemplate: the conversation cannot be written.
        """

    async def close(self) -> None:
        """Frees what `start` took."""
