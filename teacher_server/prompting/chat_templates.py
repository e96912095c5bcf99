"""Chat templates, rendered as transformers does, except that the date is fixed."""

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from teacher_server.prompting.prompt_set import Conversation

TODAY = datetime.datetime(2025, 1, 1)
"""The date of `strftime_now`: the real one would change prompts, and so answers, every day."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ANSWER = "THE-ANSWER-OF-STAGE-1"
_ABSENT = ("tools", "documents")
_PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


class BadChatTemplate(Exception):
    """The chat template cannot be used; the message says why."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks text for training runs and writes its content."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # As in transformers, names that are set inside are unknown outside
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


class ChatTemplate:
    """A checkpoint's chat template.

    Args:
        source: the template in Jinja.
        tokenizer_config: contents of tokenizer_config.json, whose special tokens a template may write.

    Raises:
        BadChatTemplate: the source is not a valid template.
    """

    def __init__(self, source: str, tokenizer_config: Mapping[str, Any]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": TODAY.strftime}
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BadChatTemplate(f"is damaged (line {error.lineno}: {error.message})") from error
        self._variables = dict.fromkeys(_ABSENT) | _special_tokens(tokenizer_config)
        self.source = source
        self.dated = "strftime_now" in source

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Returns the text of a conversation, up to the beginning of the assistant's turn.

        Raises:
            BadChatTemplate: the template does not take these messages.
        """
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, **self._variables
            )
        except Exception as error:  # a template can raise anything
            raise BadChatTemplate(f"fails on a conversation with a picture ({error})") from error


def template_of(content: Any) -> str | None:
    """Returns the source in a `chat_template` field: a text, or the template named default."""
    if isinstance(content, list):
        named = [entry for entry in content if isinstance(entry, dict)]
        content = {entry.get("name"): entry.get("template") for entry in named}
    if isinstance(content, dict):
        content = content.get("default")
    return content if isinstance(content, str) else None


def stages_of(
    template: ChatTemplate, before: Sequence[Mapping[str, Any]], answer: str, followup: Mapping[str, Any]
) -> tuple[str, str]:
    """Returns the text of stage 1's prompt, and the text after its answer in stage 2's prompt.

    Args:
        before: all messages up to the question for the analysis.
        answer: a placeholder for the analysis.
        followup: the question for the action.

    Raises:
        BadChatTemplate: the template fails, omits a part of a message, or changes earlier turns as the
            conversation continues.
    """
    analysis = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    first, both = template.render(before), template.render([*before, analysis, followup])
    _check_all_written(first, before)
    if answer not in both:
        raise BadChatTemplate("omits the assistant's earlier turn, which stage 2 continues")
    if not both.startswith(first + answer):
        raise BadChatTemplate("changes earlier turns as the conversation continues")
    _check_all_written(both.removeprefix(first + answer), [followup])
    return first, both.removeprefix(first + answer)


def _check_all_written(text: str, messages: Iterable[Mapping[str, Any]]) -> None:
    parts = [part for message in messages for part in message["content"]]
    pictures, places = sum(part["type"] == "image" for part in parts), text.count(_PLACE)
    if places != pictures or text.count("<|image_pad|>") != pictures:
        raise BadChatTemplate(
            f"makes {text[-120:]!r} of a question with a picture, without a place for it"
            if not places
            else f"writes {places} places for {pictures} pictures"
        )
    at = 0
    for part in parts:
        words = part.get("text", "").strip()
        at = text.find(words, at)
        if at < 0:
            raise BadChatTemplate(f"omits or changes {words[:80]!r}")
        at += len(words)


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in _SPECIAL:
        token = tokenizer_config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[name] = content
    return found


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(why: Any) -> NoReturn:
    raise jinja2.TemplateError(str(why))


class ChatFormat:
    """Writes conversations as a checkpoint's token ids."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, special_tokens: tuple[str, ...]) -> None:
        self._template, self._tokenizer, self._special_tokens = template, tokenizer, special_tokens

    def stages(self, conversation: Conversation) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the token ids of stage 1's prompt, and those after its answer in stage 2's prompt.

        Stage 2's prompt is stage 1's prompt, the generated ids and the second value: generated text is not
        tokenized again, since that may give other ids.

        Raises:
            BadChatTemplate: the template does not take the conversation, or changes earlier turns as it
                continues.
        """
        before = [*conversation.opening, conversation.question]
        try:
            first, rest = stages_of(self._template, before, _ANSWER, conversation.followup)
        except BadChatTemplate as error:
            raise BadChatTemplate(f"its chat template {error}") from error
        return self._encode(first), self._encode(rest)

    def special_in(self, text: str) -> str | None:
        """Returns the first special token in a text, or None; it would end a turn or stand for a picture."""
        return next((token for token in self._special_tokens if token in text), None)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
