"""A baseline without this project: the two stages as requests to any OpenAI-compatible vision server."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from gridworld.environments import in_a_line
from teacher_api.client import checked_url
from teacher_api.command_line import CannotStart
from teacher_api.schemas import Question
from teacher_server.engines.openai.private_addresses import NoAddress, NotPrivate, addresses_of
from teacher_server.engines.openai.sessions import data_url, with_pictures
from teacher_server.pictures.decoding import decode, from_base64
from teacher_server.prompting.prompt_set import PromptSet
from teacher_server.prompting.readout import numbers_schema
from teacher_tools.bench.loops import Reply, Request
from teacher_tools.bench.targets import HttpTarget

Constrain = Callable[[dict[str, Any]], dict[str, Any]]
"""Returns the fields of a request that hold its output to a JSON schema."""


def by_response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns OpenAI's `response_format`, which vLLM, SGLang and llama.cpp support."""
    json_schema = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


class OpenAITarget(HttpTarget):
    """Sends two requests for each question: the analysis, then in the same conversation the probabilities.

    Args:
        url: the server's address, with or without /v1.
        prompts: the prompt set of the requests.
        constrain: how a request holds its output to a schema.
        allow_host: a host outside the local network that may receive requests.

    Raises:
        ValueError: `url` is not an address.
        CannotStart: no OpenAI-compatible server answers there, or the host is not on the local network.
    """

    def __init__(
        self,
        url: str,
        prompts: PromptSet,
        *,
        timeout_s: float,
        constrain: Constrain = by_response_format,
        allow_host: str | None = None,
    ) -> None:
        address = checked_url(url).removesuffix("/v1")
        host = httpx.URL(address).host
        try:
            asyncio.run(addresses_of(host, allowed=host == allow_host))
        except (NoAddress, NotPrivate) as error:
            raise CannotStart(f"`vs_openai`: {error}") from error
        super().__init__(address, timeout_s)
        self._prompts, self._constrain = prompts, constrain
        self._model = _model_at(address)
        self.about = {"address": address, "model": self._model, "kind": "openai", "prompts": prompts.name}

    def prepare(self, question: Question) -> Request:
        """Returns a request with its first message encoded."""
        prompts = self._prompts
        actions = tuple(action for action in question.actions if action in prompts.tasks[question.task])
        conversation = prompts.conversation(
            task=question.task, mission=question.mission, actions=actions, readout="numbers"
        )
        picture = prompts.preparation.prepare(decode(from_base64(question.image), max_pixels=10**8))
        pictures = map(data_url, (*conversation.pictures, picture))
        opening = [with_pictures(each, pictures) for each in (*conversation.opening, conversation.question)]
        schema = numbers_schema(actions)
        first = self._body(opening, prompts.schema, prompts.analysis_max_tokens)

        async def send() -> Reply:
            sent = time.perf_counter()
            analysis = await self._complete(first)
            if analysis.status != "200":
                return Reply(analysis.status, analysis.ended)
            reply = {"role": "assistant", "content": analysis.text}
            second = self._body([*opening, reply, conversation.followup], schema, prompts.numbers_max_tokens)
            action = await self._complete(second)
            parts_s = {"analysis": analysis.ended - sent, "action": action.ended - analysis.ended}
            return Reply(
                action.status,
                action.ended,
                parts_ms={name: seconds * 1000 for name, seconds in parts_s.items()},
                tokens={"analysis": analysis.tokens, "action": action.tokens},
            )

        return send

    def _body(self, messages: Sequence[Mapping[str, Any]], schema: dict[str, Any], max_tokens: int) -> bytes:
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        return json.dumps(body | self._constrain(schema)).encode()

    async def _complete(self, body: bytes) -> "_Completion":
        status, ended, content = await self.post("/v1/chat/completions", body)
        if status != "200":
            return _Completion(status, ended)
        try:
            reply = json.loads(content)
            choice = reply["choices"][0]
            text, finish = str(choice["message"]["content"]), choice["finish_reason"]
            tokens = int(reply["usage"]["completion_tokens"])
        except (ValueError, LookupError, TypeError):
            return _Completion("not a chat completion", ended)
        return _Completion("200" if finish == "stop" else "cut off", ended, text, tokens)


@dataclass(frozen=True)
class _Completion:
    status: str
    ended: float
    text: str = ""
    tokens: int = 0


def _model_at(address: str) -> str:
    """Returns the name of the first model that a server offers.

    Raises:
        CannotStart: no OpenAI-compatible server answers.
    """
    try:
        reply = httpx.get(f"{address}/v1/models", timeout=10, trust_env=False)
        if reply.status_code != httpx.codes.OK:
            raise ValueError(f"GET /v1/models returned {reply.status_code}")
        return str(reply.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        why = in_a_line(error)
        raise CannotStart(f"{address} does not answer like an OpenAI-compatible server: {why}") from error
