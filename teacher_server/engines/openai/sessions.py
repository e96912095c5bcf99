"""Sessions over messages, for a chat server that applies the chat template itself."""

import asyncio
import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from teacher_server.engines.base import Decoding, EngineError, EngineUnavailable, Generated
from teacher_server.engines.openai.features import ServerFeatures, scores_by_id, scoring_by_id
from teacher_server.engines.openai.replies import Reply, Token
from teacher_server.engines.openai.server import ChatServer
from teacher_server.engines.sessions import LabelScores, SessionFactory
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import Conversation, Message

_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
"""Control tokens of chat templates, such as <|im_end|>, <image>, [INST]. A server does not list its own."""

_PADDING = -9999.0
"""vLLM 0.32 pads short lists of log-probabilities with this number.

A list is short if its request was computed together with one for the scores of named tokens.
"""


@dataclass(frozen=True, eq=False)
class MessageSessionFactory:
    """Opens sessions with a model of a chat server.

    Attributes:
        labels: action -> label.
    """

    server: ChatServer
    features: ServerFeatures
    labels: Mapping[str, str]

    async def start(self) -> None:
        """Opens the connections."""
        await self.server.start()

    async def take_over(self, _: SessionFactory) -> bool:
        """Returns False: the server runs its own engine."""
        return False

    def find_marker(self, text: str) -> str | None:
        """Returns the first part of a text that looks like a control token of a chat template."""
        found = _MARKER.search(text)
        return found[0] if found else None

    def prepare(self, conversation: Conversation) -> "MessageConversation":
        """Returns the conversation's messages, with the pictures of its worked examples."""
        pictures = iter([_example_url(picture) for picture in conversation.pictures])
        opening = tuple(with_pictures(message, pictures) for message in conversation.opening)
        return MessageConversation(self, opening, conversation.question, conversation.followup)

    async def close(self) -> None:
        """Closes the connections."""
        await self.server.close()

    async def write(self, messages: Sequence[Message], decoding: Decoding) -> Generated:
        """Has the model continue a conversation.

        Raises:
            EngineError: the server failed.
        """
        sampled = {"seed": decoding.seed} if decoding.temperature > 0 else {}
        reply = await self.server.complete(
            messages=messages,
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            **sampled,
            **self.features.sampling,
            **self.features.constrained_to(decoding.schema),
            **({"logprobs": True} if self.features.logprobs else {}),
        )
        if reply.finish_reason == "abort":  # vLLM and SGLang send it when they shut down
            raise EngineUnavailable("the server aborted its answer")
        if reply.finish_reason not in ("stop", "length"):
            raise EngineError(f"the server ended its answer with finish_reason {reply.finish_reason!r}")
        complete = reply.finish_reason == "stop"
        return Generated(reply.text, reply.tokens, complete, least_logprob=reply.least_logprob)

    async def score(self, messages: Sequence[Message], actions: Sequence[str]) -> LabelScores:
        """Returns the log-probabilities of the actions' labels, as far as the server reports them.

        Raises:
            EngineError: the server failed, or reports no log-probabilities.
        """
        labels = {action: self.labels[action] for action in actions}
        ids = None
        if self.features.by_id and self.features.pieces is not None:
            ids = {action: self.features.pieces[label][0][0] for action, label in labels.items()}
        top = {"logprobs": True, "top_logprobs": self.features.top}
        scoring = scoring_by_id(list(ids.values())) if ids else top
        reply = await self.server.complete(
            messages=messages, max_tokens=1, temperature=0.0, **self.features.sampling, **scoring
        )
        return _by_id(reply, ids) if ids else among_most_probable(reply.first_step, labels)


@dataclass(frozen=True, eq=False)
class MessageConversation:
    """A conversation's messages; the question's picture is missing."""

    factory: MessageSessionFactory
    opening: tuple[Message, ...]
    question: Message
    followup: Message

    def session(self, picture: PreparedPicture) -> "MessageSession":
        """Returns the session about a picture."""
        return MessageSession(self, picture)


@dataclass(frozen=True, eq=False)
class MessageSession:
    """A session at stage 1."""

    conversation: MessageConversation
    picture: PreparedPicture

    @property
    def key(self) -> str:
        """The picture's digest and the messages."""
        asked = self.conversation
        return f"{self.picture.digest} {json.dumps([*asked.opening, asked.question, asked.followup])}"

    async def analyse(self, decoding: Decoding) -> tuple[Generated, "MessageActionStage"]:
        """Asks for the analysis.

        Raises:
            EngineError: the server failed.
        """
        messages = await asyncio.to_thread(self._messages)
        analysis = await self.conversation.factory.write(messages, decoding)
        return analysis, self._action_stage(messages, analysis.text)

    def without_analysis(self) -> "MessageActionStage":
        """Returns the second question after an empty answer to the first."""
        return self._action_stage(self._messages(), "")

    def _messages(self) -> tuple[Message, ...]:
        question = with_pictures(self.conversation.question, iter([data_url(self.picture)]))
        return (*self.conversation.opening, question)

    def _action_stage(self, messages: tuple[Message, ...], analysis: str) -> "MessageActionStage":
        answer = {"role": "assistant", "content": [{"type": "text", "text": analysis}]}
        conversation = self.conversation
        return MessageActionStage(conversation.factory, (*messages, answer, conversation.followup))


@dataclass(frozen=True, eq=False)
class MessageActionStage:
    """A session at stage 2, which sends the whole conversation again."""

    factory: MessageSessionFactory
    messages: tuple[Message, ...]

    async def score(self, actions: Sequence[str]) -> LabelScores:
        """Returns the log-probabilities of the actions' labels, as far as the server reports them.

        Raises:
            EngineError: the server failed, or reports no log-probabilities.
        """
        return await self.factory.score(self.messages, actions)

    async def write(self, decoding: Decoding) -> Generated:
        """Asks for the answer as text.

        Raises:
            EngineError: the server failed.
        """
        return await self.factory.write(self.messages, decoding)


def among_most_probable(shown: Sequence[Token], labels: Mapping[str, str]) -> LabelScores:
    """Returns the labels' scores for a server that reports only its most probable tokens.

    An unlisted label is at most as probable as the least probable listed token and the listed tokens that it
    begins with, together: a label of several tokens is never listed as one.

    Args:
        shown: the listed tokens, with log-probabilities in nats.
        labels: action -> label.

    Raises:
        EngineError: no token is listed.
    """
    scores = {each.token: each.logprob for each in shown if each.logprob > _PADDING}
    if not scores:
        raise EngineError(
            "the server returned no log-probabilities; set `readout` to numbers, which needs none"
        )
    known = {action: scores[label] for action, label in labels.items() if label in scores}
    at_most = {}
    for action, label in labels.items():
        if action not in known:
            beginnings = [score for token, score in scores.items() if token and label.startswith(token)]
            at_most[action] = _log_of_sum([min(scores.values()), *beginnings])
    return LabelScores(known, at_most)


def _log_of_sum(scores: Sequence[float]) -> float:
    """Returns log(sum(exp(scores)))."""
    most = max(scores)
    return most + math.log(math.fsum(math.exp(score - most) for score in scores))


def _by_id(reply: Reply, ids: Mapping[str, int]) -> LabelScores:
    scores = scores_by_id(reply)
    missing = [action for action, token_id in ids.items() if token_id not in scores]
    if missing:
        raise EngineError(f"the server returned no log-probabilities for {', '.join(missing)}")
    return LabelScores({action: scores[token_id] for action, token_id in ids.items()})


def with_pictures(message: Message, urls: Iterator[str]) -> Message:
    """Returns a message in the form of OpenAI's API, with pictures in their places."""
    return {
        "role": message["role"],
        "content": [
            {"type": "image_url", "image_url": {"url": next(urls)}} if part["type"] == "image" else part
            for part in message["content"]
        ],
    }


def data_url(picture: PreparedPicture) -> str:
    """Returns a picture as a PNG file in a data URL."""
    file = io.BytesIO()
    picture.image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


_example_url = lru_cache(maxsize=256)(data_url)
"""Cached: all conversations about a task have the same worked examples."""
