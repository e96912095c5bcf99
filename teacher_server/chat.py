"""Conversations to token ids, by a checkpoint's own chat template and tokenizer."""

from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from teacher_server.checkpoint import Checkpoint
from teacher_server.prompts import Conversation, Message

_ANSWER = "THE-ANSWER-OF-STAGE-1"


class BadChatTemplate(Exception):
    """A chat template that cannot be used; the message says why."""


class ChatFormat:
    """A checkpoint's way of writing conversations."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._special_tokens = checkpoint.special_tokens
        # As Hugging Face's tokenizers set their environment up: templates are written for it
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        self._template = environment.from_string(checkpoint.chat_template)

    def write(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, up to where the assistant is to speak.

        Raises:
            BadChatTemplate: the template does not take these messages.
        """
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise BadChatTemplate(f"its chat template fails on our conversation: {error}") from error

    def stages(self, conversation: Conversation) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of stage 1's prompt, and of what follows its answer in stage 2's prompt.

        Stage 2's prompt is stage 1's, the ids that were generated, and these: never text that was
        tokenized a second time, since that may give other ids.

        Raises:
            BadChatTemplate: the template does not take the conversation, or writes turns before the
                last one differently as it goes on.
        """
        before = [*conversation.opening, conversation.question]
        answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
        first = self.write(before)
        both = self.write([*before, answer, conversation.followup])
        start = first + _ANSWER
        if not both.startswith(start):
            raise BadChatTemplate("its chat template changes earlier turns as the conversation goes on")
        return self._encode(first), self._encode(both.removeprefix(start))

    def special_in(self, text: str) -> str | None:
        """The first special token in a text, which would end a turn or stand for a picture."""
        return next((token for token in self._special_tokens if token in text), None)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _refuse(reason: Any) -> NoReturn:
    raise jinja2.TemplateError(str(reason))
