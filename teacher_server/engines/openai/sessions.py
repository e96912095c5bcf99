"""Interviews over messages, with a chat server that writes the prompt by itself."""

import asyncio
import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from teacher_server.engines.base import Decoding, EngineAway, EngineError
from teacher_server.engines.openai.features import Offers, scores_by_id, scoring_by_id
from teacher_server.engines.openai.replies import Reply, Token
from teacher_server.engines.openai.server import ChatServer
from teacher_server.engines.sessions import Interviewer, LabelScores, Said
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import Conversation, Message

_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
"""How marks of chat templates look: <|im_end|>, <image>, [INST]. A server does not say which are its own."""

_NONE = -9999.0
"""What vLLM 0.32 fills a list with that is too short: it is, for all that were computed together with a
request for the scores of named tokens."""


@dataclass(frozen=True, eq=False)
class MessageInterviewer:
    """Interviews a model of a chat server.

    Attributes:
        labels: action -> label.
    """

    server: ChatServer
    offers: Offers
    labels: Mapping[str, str]

    async def start(self) -> None:
        """Opens the connections."""
        await self.server.start()

    async def take_over(self, _: Interviewer) -> bool:
        """False: what the server serves is its own affair."""
        return False

    def mark_in(self, text: str) -> str | None:
        """The first thing in a text that looks like a mark of a chat template."""
        found = _MARK.search(text)
        return found[0] if found else None

    def script(self, conversation: Conversation) -> "MessageScript":
        """The conversation as messages, its examples' pictures in it."""
        pictures = iter([_example_url(picture) for picture in conversation.pictures])
        opening = tuple(with_pictures(message, pictures) for message in conversation.opening)
        return MessageScript(self, opening, conversation.question, conversation.followup)

    async def close(self) -> None:
        """Closes the connections."""
        await self.server.close()

    async def write(self, messages: Sequence[Message], decoding: Decoding) -> Said:
        """Has the model go on.

        Raises:
            EngineError: the server failed.
        """
        drawn = {"seed": decoding.seed} if decoding.temperature > 0 else {}
        reply = await self.server.complete(
            messages=messages,
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            **drawn,
            **self.offers.sampling,
            **self.offers.held_to(decoding.schema),
        )
        if reply.finish_reason == "abort":  # of vLLM and SGLang, as they end
            raise EngineAway("the server broke off its answer")
        if reply.finish_reason not in ("stop", "length"):
            raise EngineError(f"the server ended its answer with {reply.finish_reason!r}")
        return Said(reply.text, reply.tokens, reply.finish_reason == "stop")

    async def score(self, messages: Sequence[Message], actions: Sequence[str]) -> LabelScores:
        """How probable the actions' labels are to come next, as far as the server tells.

        Raises:
            EngineError: the server failed, or tells nothing.
        """
        labels = {action: self.labels[action] for action in actions}
        ids = None
        if self.offers.by_id and self.offers.pieces is not None:
            ids = {action: self.offers.pieces[label][0][0] for action, label in labels.items()}
        top = {"logprobs": True, "top_logprobs": self.offers.top}
        asked = scoring_by_id(list(ids.values())) if ids else top
        reply = await self.server.complete(
            messages=messages, max_tokens=1, temperature=0.0, **self.offers.sampling, **asked
        )
        return _by_id(reply, ids) if ids else among_most_probable(reply.first_step, labels)


@dataclass(frozen=True, eq=False)
class MessageScript:
    """A conversation's messages; the question's picture is still to come."""

    interviewer: MessageInterviewer
    opening: tuple[Message, ...]
    question: Message
    followup: Message

    def about(self, picture: PreparedPicture) -> "MessageInterview":
        """The interview about a picture."""
        return MessageInterview(self, picture)


@dataclass(frozen=True, eq=False)
class MessageInterview:
    """An interview at stage 1."""

    script: MessageScript
    picture: PreparedPicture

    @property
    def key(self) -> str:
        """The picture's digest and the messages."""
        script = self.script
        return f"{self.picture.digest} {json.dumps([*script.opening, script.question, script.followup])}"

    async def analyse(self, decoding: Decoding) -> tuple[Said, "MessageFollowUp"]:
        """Asks for the analysis.

        Raises:
            EngineError: the server failed.
        """
        messages = await asyncio.to_thread(self._messages)
        said = await self.script.interviewer.write(messages, decoding)
        return said, self._followup(messages, said.text)

    def unanalysed(self) -> "MessageFollowUp":
        """The second question after an empty answer to the first."""
        return self._followup(self._messages(), "")

    def _messages(self) -> tuple[Message, ...]:
        question = with_pictures(self.script.question, iter([data_url(self.picture)]))
        return (*self.script.opening, question)

    def _followup(self, messages: tuple[Message, ...], analysis: str) -> "MessageFollowUp":
        answer = {"role": "assistant", "content": [{"type": "text", "text": analysis}]}
        return MessageFollowUp(self.script.interviewer, (*messages, answer, self.script.followup))


@dataclass(frozen=True, eq=False)
class MessageFollowUp:
    """An interview at stage 2: the whole conversation is sent once more."""

    interviewer: MessageInterviewer
    messages: tuple[Message, ...]

    async def score(self, actions: Sequence[str]) -> LabelScores:
        """How probable the actions' labels are to come next, as far as the server tells.

        Raises:
            EngineError: the server failed, or tells nothing.
        """
        return await self.interviewer.score(self.messages, actions)

    async def write(self, decoding: Decoding) -> Said:
        """Asks for the answer in words.

        Raises:
            EngineError: the server failed.
        """
        return await self.interviewer.write(self.messages, decoding)


def among_most_probable(shown: Sequence[Token], labels: Mapping[str, str]) -> LabelScores:
    """Labels' scores, where a server shows its most probable tokens alone.

    A label that is not shown is at most as probable as the least probable token that is, and tokens that it
    begins with: a label of several tokens is never shown as one.

    Args:
        shown: tokens with the natural logarithms of their probabilities.
        labels: action -> label.

    Raises:
        EngineError: nothing is shown.
    """
    scores = {each.token: each.logprob for each in shown if each.logprob > _NONE}
    if not scores:
        raise EngineError("the server gave no log-probabilities; --readout numbers does without")
    known = {action: scores[label] for action, label in labels.items() if label in scores}
    at_most = {}
    for action, label in labels.items():
        if action not in known:
            begun = [score for token, score in scores.items() if token and label.startswith(token)]
            at_most[action] = _log_of_sum([min(scores.values()), *begun])
    return LabelScores(known, at_most)


def _log_of_sum(scores: Sequence[float]) -> float:
    """Of what these are the logarithms of."""
    most = max(scores)
    return most + math.log(math.fsum(math.exp(score - most) for score in scores))


def _by_id(reply: Reply, ids: Mapping[str, int]) -> LabelScores:
    scores = scores_by_id(reply)
    missing = [action for action, token_id in ids.items() if token_id not in scores]
    if missing:
        raise EngineError(f"the server gave no log-probabilities for {', '.join(missing)}")
    return LabelScores({action: scores[token_id] for action, token_id in ids.items()})


def with_pictures(message: Message, urls: Iterator[str]) -> Message:
    """A message as OpenAI's API takes it, with pictures where it has places for them."""
    return {
        "role": message["role"],
        "content": [
            {"type": "image_url", "image_url": {"url": next(urls)}} if part["type"] == "image" else part
            for part in message["content"]
        ],
    }


def data_url(picture: PreparedPicture) -> str:
    """A picture as a PNG file in an address."""
    file = io.BytesIO()
    picture.image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


_example_url = lru_cache(maxsize=256)(data_url)
"""All conversations about a task have the same examples."""
