"""A chat server that runs already, on the local network: vLLM, SGLang or another with OpenAI's API."""

import asyncio
import json
import time
from typing import Any, NoReturn

import httpx
import tenacity
from pydantic import BaseModel, Field, ValidationError

from teacher_server.engines import EngineDead, EngineError
from teacher_server.engines.private import PrivateTransport

_CONNECT_S = 5.0
_KEEP_ALIVE_S = 2.0
"""Shorter than servers keep idle connections (uvicorn: 5 s): else one closes as a question is sent on it."""
_KNOWN_FOR_S = 10.0
"""How long a server is taken for the one it was."""
_BUSY_FOR_S = 30.0
"""How long a server may go on saying that it is too busy."""
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=5)
_BUSY = (429, 503)
_KEYLESS = (401, 403)


class CannotAttach(Exception):
    """A server that cannot be used as asked; the message says why and what to do."""


class Refused(EngineError):
    """The server takes this request for a wrong one."""


class _Busy(EngineError):
    """The server has too much to do."""


class Token(BaseModel):
    """A token that the model may say, and the natural logarithm of its probability."""

    token: str
    logprob: float


class _Step(BaseModel):
    top_logprobs: list[Token] | None = None


class _LogProbabilities(BaseModel):
    content: list[_Step] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _LogProbabilities | None = None


class _Usage(BaseModel):
    completion_tokens: int = 0


class Reply(BaseModel):
    """What is read of a chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None

    @property
    def text(self) -> str:
        return self.choices[0].message.content or ""

    @property
    def tokens(self) -> int:
        """Generated, as far as the server says."""
        return self.usage.completion_tokens if self.usage else 0

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def first_step(self) -> list[Token]:
        """The most probable first tokens; none where the server does not tell."""
        told = self.choices[0].logprobs
        return (told.content[0].top_logprobs or []) if told and told.content else []


class ChatServer:
    """One model of a chat server, over HTTP. Cancelling a request closes its connection.

    Args:
        url: of the API, which most often ends in /v1.
        model: the name that it is served by.
        key: sent as a bearer token.
        allow_host: a host that may be outside of the local network.
        connections: at once, at most.
        timeout_s: how long an answer may take.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        allow_host: str | None = None,
        connections: int = 64,
        timeout_s: float = 120.0,
    ) -> None:
        self.url, self.model = _checked(url), model
        self._key, self._allow_host = key, allow_host.lower() if allow_host else None
        self._connections, self._timeout_s = connections, timeout_s
        self._client: httpx.AsyncClient | None = None
        self._known: dict[str, Any] | None = None
        self._known_until = 0.0
        self._recognising = asyncio.Lock()

    async def start(self) -> None:
        """Opens the client; nothing is sent yet."""
        limits = httpx.Limits(
            max_connections=self._connections,
            max_keepalive_connections=self._connections,
            keepalive_expiry=_KEEP_ALIVE_S,
        )
        self._client = httpx.AsyncClient(
            transport=PrivateTransport(
                httpx.AsyncHTTPTransport(limits=limits, trust_env=False), self._allow_host
            ),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self._timeout_s, connect=_CONNECT_S, pool=None),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Closes all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def describe(self) -> dict[str, Any]:
        """What the server says of the model and of itself: of what it serves, all that there is to know.

        Raises:
            CannotAttach: it does not serve this model.
            EngineError: it does not answer, or something else than a list of models.
        """
        listed = await self._json("GET", f"{self.url}/models")
        try:
            cards = {card["id"]: card for card in listed["data"]}
        except (KeyError, TypeError) as error:
            raise EngineError(
                f"{self.url}/models is no list of models; does the address end in /v1?"
            ) from error
        if self.model not in cards:
            served = ", ".join(map(str, cards)) or "none"
            raise CannotAttach(f"{self.model!r} is not served there; --openai-model is one of: {served}")
        card = cards[self.model]
        told = {"model": self.model} | {
            name: card[name] for name in ("root", "max_model_len", "owned_by") if card.get(name) is not None
        }
        try:
            version = (await self.extra("version", None)).get("version")
        except Refused:
            return told
        return told | ({"version": version} if isinstance(version, str) else {})

    def recognise(self, described: dict[str, Any]) -> None:
        """From now on, another description than this one is another server."""
        self._known = described

    async def complete(self, **body: Any) -> Reply:
        """A chat completion.

        Raises:
            EngineError: it did not come; Refused: the server does not take the request;
                EngineDead: the server is another one by now.
        """
        await self._check_same()
        answer = await self._json("POST", f"{self.url}/chat/completions", {"model": self.model, **body})
        try:
            return Reply.model_validate(answer)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise EngineError(
                f"its reply is no chat completion: {where}: {error.errors()[0]['msg']}"
            ) from error

    async def extra(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """What vLLM and SGLang tell beside OpenAI's API.

        Raises:
            Refused: the server has nothing of the kind.
            EngineError: it did not come.
        """
        address = f"{self.url.removesuffix('/v1')}/{path}"
        answer = await self._json("GET" if body is None else "POST", address, body)
        if not isinstance(answer, dict):
            raise Refused(f"{address} tells something else")
        return answer

    async def _check_same(self) -> None:
        if self._known is None or time.monotonic() < self._known_until:
            return
        async with self._recognising:
            if time.monotonic() < self._known_until:
                return
            try:
                described = await self.describe()
            except CannotAttach as error:
                raise EngineDead(f"the server at {self.url} is another one by now: {error}") from error
            if described != self._known:
                was, now = (json.dumps(each, sort_keys=True) for each in (self._known, described))
                raise EngineDead(
                    f"the server at {self.url} is another one by now: it was {was}, and is {now}; start this"
                    " teacher again, and it is the teacher with that one"
                )
            self._known_until = time.monotonic() + _KNOWN_FOR_S

    async def _json(self, method: str, url: str, body: dict[str, Any] | None = None) -> Any:
        """One request, sent again for a while to a server that is too busy."""
        trying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Busy),
            wait=_BACKOFF,
            stop=tenacity.stop_after_delay(_BUSY_FOR_S),
            reraise=True,
        )
        response: httpx.Response = await trying(self._send, method, url, body)
        try:
            return response.json()
        except ValueError as error:
            raise Refused(f"{url} answers something else than JSON") from error

    async def _send(self, method: str, url: str, body: dict[str, Any] | None) -> httpx.Response:
        if self._client is None:
            raise EngineError("the connection to the server is not open")
        try:
            response = await self._client.request(method, url, json=body)
        except httpx.RequestError as error:
            self._known_until = 0.0  # it may come back as another one
            self._lost(error)
        if response.is_success:
            return response
        said = f"{response.status_code}{_reason(response)}"
        if response.status_code in _BUSY:
            raise _Busy(f"the server at {self.url} is too busy: {said}")
        if response.is_redirect:
            to = response.headers.get("Location", "elsewhere")
            raise Refused(f"{url} sends on to {to}, and that is not followed: give the address itself")
        if response.is_client_error:
            key = "; its key is given by --openai-key-file" if response.status_code in _KEYLESS else ""
            raise Refused(f"the server at {self.url} refuses: {said}{key}")
        raise EngineError(f"the server at {self.url} failed: {said}")

    def _lost(self, error: httpx.RequestError) -> NoReturn:
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            raise EngineError(
                f"the server at {self.url} did not answer within {self._timeout_s:g} s"
            ) from error
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise EngineError(f"nothing answers at {self.url} ({error or 'timeout'})") from error
        raise EngineError(
            f"the connection to {self.url} was lost ({error or type(error).__name__})"
        ) from error


def _checked(url: str) -> str:
    """Raises CannotAttach for what is no address of a server."""
    hint = "it looks like http://HOST:PORT/v1"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise CannotAttach(f"is no address ({error}); {hint}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise CannotAttach(f"is no address of a server; {hint}")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise CannotAttach(f"holds more than an address; {hint}, and a key is given by --openai-key-file")
    return str(parsed).rstrip("/")


def _reason(response: httpx.Response) -> str:
    """What an error's body says, in one line."""
    try:
        told = response.json()
        told = told.get("error", told)
        said = told["message"] if isinstance(told, dict) else told
    except (ValueError, AttributeError, KeyError):
        said = response.text
    words = " ".join(str(said).split())
    return f": {words[:300]}" if words else ""
