"""Interviews over token ids: stage 2 goes on from the very tokens of stage 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from teacher_server.engines.base import ChatEngine, Decoding, Generated, Prompt, TakesOver
from teacher_server.engines.sessions import Interviewer, LabelScores, Said
from teacher_server.prompting.chat_templates import ChatFormat
from teacher_server.prompting.preparation import PreparedPicture, visual_tokens
from teacher_server.prompting.prompt_set import Conversation


@dataclass(frozen=True, eq=False)
class TokenInterviewer:
    """Interviews a checkpoint in an engine of this service.

    Attributes:
        label_ids: action -> the token of its label.
    """

    engine: ChatEngine
    chat: ChatFormat
    label_ids: Mapping[str, int]

    async def start(self) -> None:
        """Loads the checkpoint.

        Raises:
            CannotLoad: it cannot be loaded as asked.
        """
        await self.engine.start()

    async def take_over(self, other: Interviewer) -> bool:
        """Loads the weights into another one's running engine, where both engines can do that.

        Returns:
            False where that cannot be: then nothing was touched.

        Raises:
            CannotLoad: it failed on the way. Neither can be asked; this one is to be closed.
        """
        if not (isinstance(other, TokenInterviewer) and isinstance(self.engine, TakesOver)):
            return False
        return await self.engine.take_over(other.engine)

    def mark_in(self, text: str) -> str | None:
        """The first special token in a text."""
        return self.chat.special_in(text)

    def script(self, conversation: Conversation) -> "TokenScript":
        """The conversation's token ids.

        Raises:
            BadChatTemplate: the checkpoint's template does not take it.
        """
        return TokenScript(self, *self.chat.stages(conversation), conversation.pictures)

    async def close(self) -> None:
        """Ends the engine."""
        await self.engine.close()


@dataclass(frozen=True, eq=False)
class TokenScript:
    """The token ids of a conversation, and the pictures of its examples."""

    interviewer: TokenInterviewer
    opening: tuple[int, ...]
    followup: tuple[int, ...]
    pictures: tuple[PreparedPicture, ...]

    def about(self, picture: PreparedPicture) -> "TokenInterview":
        """The interview about a picture."""
        return TokenInterview(self, Prompt(self.opening, (*self.pictures, picture)))

    def tokens(self, picture: PreparedPicture) -> int:
        """Of both questions about a picture, without what the model says."""
        shown = sum(visual_tokens(each) for each in (*self.pictures, picture))
        return len(self.opening) + shown + len(self.followup)


@dataclass(frozen=True, eq=False)
class TokenInterview:
    """An interview at stage 1."""

    script: TokenScript
    prompt: Prompt

    @property
    def key(self) -> str:
        """The picture's digest and the token ids."""
        return f"{self.prompt.pictures[-1].digest} {self.prompt.token_ids}"

    async def analyse(self, decoding: Decoding) -> tuple[Said, "TokenFollowUp"]:
        """Generates the analysis.

        Raises:
            EngineError: the engine failed.
        """
        interviewer = self.script.interviewer
        generated = await interviewer.engine.generate(self.prompt, decoding)
        further = self.prompt.then((*generated.token_ids, *self.script.followup), generated.kept)
        return _said(generated), TokenFollowUp(interviewer, further)

    def unanalysed(self) -> "TokenFollowUp":
        """The second question after the first, with no analysis between them."""
        return TokenFollowUp(self.script.interviewer, self.prompt.then(self.script.followup))


@dataclass(frozen=True, eq=False)
class TokenFollowUp:
    """An interview at stage 2."""

    interviewer: TokenInterviewer
    prompt: Prompt

    async def score(self, actions: Sequence[str]) -> LabelScores:
        """Scores the tokens of the actions' labels in one step.

        Raises:
            EngineError: the engine failed.
        """
        label_ids = [self.interviewer.label_ids[action] for action in actions]
        scores = await self.interviewer.engine.score(self.prompt, label_ids)
        return LabelScores(dict(zip(actions, scores, strict=True)))

    async def write(self, decoding: Decoding) -> Said:
        """Generates the answer.

        Raises:
            EngineError: the engine failed.
        """
        return _said(await self.interviewer.engine.generate(self.prompt, decoding))


def _said(generated: Generated) -> Said:
    return Said(generated.text, len(generated.token_ids), generated.complete)
