"""Conversations to token ids, by a checkpoint's own chat template and tokenizer."""

from teacher_server.checkpoint import Checkpoint
from teacher_server.checkpoint.templates import BadChatTemplate, stages_of
from teacher_server.prompts import Conversation

__all__ = ["BadChatTemplate", "ChatFormat"]

_ANSWER = "THE-ANSWER-OF-STAGE-1"


class ChatFormat:
    """A checkpoint's way of writing conversations."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._special_tokens = checkpoint.special_tokens
        self._template = checkpoint.chat_template

    def stages(self, conversation: Conversation) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of stage 1's prompt, and of what follows its answer in stage 2's prompt.

        Stage 2's prompt is stage 1's, the ids that were generated, and these: never text that was
        tokenized a second time, since that may give other ids.

        Raises:
            BadChatTemplate: the template does not take the conversation, or writes turns before the
                last one differently as it goes on.
        """
        before = [*conversation.opening, conversation.question]
        try:
            first, rest = stages_of(self._template, before, _ANSWER, conversation.followup)
        except BadChatTemplate as error:
            raise BadChatTemplate(f"its chat template {error}") from error
        return self._encode(first), self._encode(rest)

    def special_in(self, text: str) -> str | None:
        """The first special token in a text, which would end a turn or stand for a picture."""
        return next((token for token in self._special_tokens if token in text), None)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
