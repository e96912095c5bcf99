"""The features of a chat server beyond plain chat, found out by trying: no server lists them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from teacher_server.engines.base import EngineError
from teacher_server.engines.openai.replies import Reply
from teacher_server.engines.openai.server import SMALL_TALK, ChatServer, Refused

Constraint = Literal["grammar", "json_schema"]

_ODD: dict[str, Any] = {
    "type": "object",
    "properties": {"seven": {"type": "integer", "enum": [7]}},
    "required": ["seven"],
    "additionalProperties": False,
}
"""A schema for the answer to a greeting that no model gives unconstrained."""
_TOPS = (20, 10, 5)
"""Values of top_logprobs to try; OpenAI's API and vLLM allow 20 by default."""
_NEUTRAL: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""vLLM and SGLang fill in fields that a request omits from the checkpoint's generation_config.json."""


@dataclass(frozen=True)
class ServerFeatures:
    """What a chat server can do.

    Attributes:
        neutral: it takes `_NEUTRAL`, so that its own sampling settings have no effect.
        constraint: how an answer is constrained to a schema; None: not at all.
        pieces: label -> its tokens, as ids and texts; None if the server does not report them.
        by_id: it returns the log-probabilities of tokens that are named by their ids.
        top: number of most probable tokens whose log-probabilities it returns; 0: none.
        logprobs: it returns the log-probabilities of the tokens of a constrained answer.
    """

    neutral: bool
    constraint: Constraint | None
    pieces: Mapping[str, Sequence[tuple[int, str]]] | None
    by_id: bool
    top: int
    logprobs: bool = False

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of every request."""
        return {"top_p": 1.0, **(_NEUTRAL if self.neutral else {})}

    def constrained_to(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields of a request whose answer has to be JSON of a schema."""
        return _CONSTRAINTS[self.constraint](schema) if self.constraint else {}


async def find_features(server: ChatServer, labels: Mapping[str, str]) -> ServerFeatures:
    """Finds out a server's features with a few small requests.

    Args:
        labels: action -> label.

    Raises:
        EngineError: the server does not answer, or refuses even a plain request.
    """
    neutral = await _takes(server, max_tokens=1, **_NEUTRAL) is not None
    if not neutral:
        await server.complete(messages=SMALL_TALK, max_tokens=1)
    constraint = None
    for name, fields in _CONSTRAINTS.items():
        if (name != "grammar" or find_spec("xgrammar")) and await _obeys(server, fields(_ODD)):
            constraint = name
            break
    pieces = await _pieces(server, labels)
    by_id = pieces is not None and await _scores(server, {i for cut in pieces.values() for i, _ in cut})
    top = 0
    for count in () if by_id else _TOPS:
        reply = await _takes(server, max_tokens=1, temperature=0, logprobs=True, top_logprobs=count)
        if reply is not None:
            top = len(reply.first_step)
            break
    constrained = _CONSTRAINTS[constraint](_ODD) if constraint else {}
    reply = await _takes(server, max_tokens=64, temperature=0, logprobs=True, **constrained)
    logprobs = reply is not None and reply.least_logprob is not None
    return ServerFeatures(neutral, constraint, pieces, by_id, top, logprobs)


def scoring_by_id(token_ids: list[int]) -> dict[str, Any]:
    """Returns the fields of a request for the log-probabilities of these tokens as the next one."""
    return {"logprobs": True, "logprob_token_ids": token_ids, "return_tokens_as_token_ids": True}


def scores_by_id(reply: Reply) -> dict[int, float]:
    """Returns token id -> log-probability (nats), of a reply to such a request."""
    named = (each for each in reply.first_step if each.token.startswith("token_id:"))
    return {int(each.token.removeprefix("token_id:")): each.logprob for each in named}


async def _takes(server: ChatServer, **body: Any) -> Reply | None:
    try:
        return await server.complete(messages=SMALL_TALK, **body)
    except Refused:
        return None


async def _obeys(server: ChatServer, constraint: dict[str, Any]) -> bool:
    try:
        reply = await _takes(server, max_tokens=64, temperature=0, **constraint)
        return reply is not None and json.loads(reply.text) == {"seven": 7}
    except (EngineError, ValueError):
        return False


async def _scores(server: ChatServer, token_ids: set[int]) -> bool:
    reply = await _takes(server, max_tokens=1, temperature=0, **scoring_by_id(sorted(token_ids)))
    return reply is not None and token_ids <= scores_by_id(reply).keys()


async def _pieces(server: ChatServer, labels: Mapping[str, str]) -> dict[str, list[tuple[int, str]]] | None:
    found = {}
    try:
        for label in labels.values():
            body = {"prompt": label, "add_special_tokens": False, "return_token_strs": True}
            reply = await server.extra("tokenize", {"model": server.model, **body})
            found[label] = list(zip(reply["tokens"], reply["token_strs"], strict=True))
    except (Refused, KeyError, TypeError, ValueError):
        return None
    return found


def _grammar(schema: dict[str, Any]) -> dict[str, Any]:
    from teacher_server.engines.constraints import grammar_of  # noqa: PLC0415 - not installed everywhere

    return {"structured_outputs": {"grammar": grammar_of(schema)}}


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        }
    }


_CONSTRAINTS: dict[Constraint, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "grammar": _grammar,
    "json_schema": _json_schema,
}
