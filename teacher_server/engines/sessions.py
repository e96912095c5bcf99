"""Two-stage sessions: a prompt set's conversation about one picture, however it reaches the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from teacher_server.engines.base import Decoding, Generated
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import Conversation


@dataclass(frozen=True)
class LabelScores:
    """Log-probabilities of the actions' labels as the next token, over the whole vocabulary, in nats.

    Attributes:
        known: action -> log-probability.
        at_most: action -> upper bound of its log-probability, for labels that the engine does not report.
    """

    known: dict[str, float]
    at_most: dict[str, float] = field(default_factory=dict)


class ActionStage(Protocol):
    """Stage 2 of a session: the conversation after the analysis, with the question for the action."""

    async def score(self, actions: Sequence[str]) -> LabelScores:
        """Returns the log-probability of each action's label as the answer.

        Raises:
            EngineError: the engine failed.
        """

    async def write(self, decoding: Decoding) -> Generated:
        """Generates the answer as text.

        Raises:
            EngineError: the engine failed.
        """


class Session(Protocol):
    """A session at stage 1: the conversation up to the question for the analysis.

    Sessions about the same conversation and picture have the same `key`.
    """

    @property
    def key(self) -> str: ...

    async def analyse(self, decoding: Decoding) -> tuple[Generated, ActionStage]:
        """Generates the analysis and returns it with the stage that follows it.

        Raises:
            EngineError: the engine failed.
        """

    def without_analysis(self) -> ActionStage:
        """Returns stage 2 after an empty analysis."""


class PreparedConversation(Protocol):
    """A conversation in the form that the model takes; the question's picture is missing."""

    def session(self, picture: PreparedPicture) -> Session:
        """Returns the session about a picture."""


class SessionFactory(Protocol):
    """Opens sessions with one model.

    Sessions may run concurrently. Cancelling a call frees its place in the engine.
    """

    async def start(self) -> None:
        """Makes the model ready.

        Raises:
            CannotLoad, EngineError: the model cannot be loaded or reached.
        """

    async def take_over(self, other: "SessionFactory") -> bool:
        """Starts in the engine of another factory that gets no more requests; the other one keeps nothing.

        Returns:
            False if the engine cannot be taken over; then nothing has changed.

        Raises:
            CannotLoad: it failed halfway. Neither factory can be used; close this one.
        """

    def find_marker(self, text: str) -> str | None:
        """Returns the first control token in a text, such as the end of a turn or a picture's place."""

    def prepare(self, conversation: Conversation) -> PreparedConversation:
        """Writes the parts of a conversation that do not depend on the picture, once for all pictures.

        Raises:
            BadChatTemplate: the checkpoint's chat template does not take the conversation.
        """

    async def close(self) -> None:
        """Frees what `start` took."""
