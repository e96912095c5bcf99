"""Sessions over token ids: stage 2 continues from the token ids that stage 1 generated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from teacher_server.engines.base import ChatEngine, Decoding, Generated, Prompt, SupportsTakeOver
from teacher_server.engines.sessions import LabelScores, SessionFactory
from teacher_server.prompting.chat_templates import ChatFormat
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import Conversation


@dataclass(frozen=True, eq=False)
class TokenSessionFactory:
    """Opens sessions with a checkpoint that an engine of this service runs.

    Attributes:
        label_ids: action -> token id of its label.
    """

    engine: ChatEngine
    chat: ChatFormat
    label_ids: Mapping[str, int]

    async def start(self) -> None:
        """Loads the checkpoint.

        Raises:
            CannotLoad: the checkpoint cannot be loaded with these settings.
        """
        await self.engine.start()

    async def take_over(self, other: SessionFactory) -> bool:
        """Loads the weights into the other factory's running engine, where both engines support that.

        Returns:
            False if they do not; then nothing has changed.

        Raises:
            CannotLoad: it failed halfway. Neither factory can be used; close this one.
        """
        if not (isinstance(other, TokenSessionFactory) and isinstance(self.engine, SupportsTakeOver)):
            return False
        return await self.engine.take_over(other.engine)

    def find_marker(self, text: str) -> str | None:
        """Returns the first special token in a text."""
        return self.chat.special_in(text)

    def prepare(self, conversation: Conversation) -> "TokenConversation":
        """Returns the conversation's token ids.

        Raises:
            BadChatTemplate: the checkpoint's chat template does not take the conversation.
        """
        return TokenConversation(self, *self.chat.stages(conversation), conversation.pictures)

    async def close(self) -> None:
        """Stops the engine."""
        await self.engine.close()


@dataclass(frozen=True, eq=False)
class TokenConversation:
    """Token ids of both questions, and the pictures of the worked examples."""

    factory: TokenSessionFactory
    opening: tuple[int, ...]
    followup: tuple[int, ...]
    pictures: tuple[PreparedPicture, ...]

    def session(self, picture: PreparedPicture) -> "TokenSession":
        """Returns the session about a picture."""
        return TokenSession(self, Prompt(self.opening, (*self.pictures, picture)))


@dataclass(frozen=True, eq=False)
class TokenSession:
    """A session at stage 1."""

    conversation: TokenConversation
    prompt: Prompt

    @property
    def key(self) -> str:
        """The picture's digest and the token ids."""
        return f"{self.prompt.pictures[-1].digest} {self.prompt.token_ids}"

    async def analyse(self, decoding: Decoding) -> tuple[Generated, "TokenActionStage"]:
        """Generates the analysis.

        Raises:
            EngineError: the engine failed.
        """
        factory = self.conversation.factory
        analysis = await factory.engine.generate(self.prompt, decoding)
        prompt = self.prompt.then((*analysis.token_ids, *self.conversation.followup), analysis.cached)
        return analysis, TokenActionStage(factory, prompt)

    def without_analysis(self) -> "TokenActionStage":
        """Returns the second question directly after the first."""
        return TokenActionStage(self.conversation.factory, self.prompt.then(self.conversation.followup))


@dataclass(frozen=True, eq=False)
class TokenActionStage:
    """A session at stage 2."""

    factory: TokenSessionFactory
    prompt: Prompt

    async def score(self, actions: Sequence[str]) -> LabelScores:
        """Scores the tokens of the actions' labels in one step.

        Raises:
            EngineError: the engine failed.
        """
        label_ids = [self.factory.label_ids[action] for action in actions]
        scores = await self.factory.engine.score(self.prompt, label_ids)
        return LabelScores(dict(zip(actions, scores, strict=True)))

    async def write(self, decoding: Decoding) -> Generated:
        """Generates the answer.

        Raises:
            EngineError: the engine failed.
        """
        return await self.factory.engine.generate(self.prompt, decoding)
