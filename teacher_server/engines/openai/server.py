"""A chat server that runs already, on the local network: vLLM, SGLang or another with OpenAI's API."""

import asyncio
import difflib
import json
import logging
import time
from typing import Any

import httpx
import tenacity
from pydantic import ValidationError

from teacher_api.validation import in_words
from teacher_server.engines.base import EngineAway, EngineDead, EngineError
from teacher_server.engines.openai.private_addresses import PrivateTransport
from teacher_server.engines.openai.replies import Reply

_log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_KEEP_ALIVE_S = 2.0
"""Shorter than servers keep idle connections (uvicorn: 5 s): else one closes as a question is sent on it."""
_KNOWN_FOR_S = 10.0
"""How long a server is taken for the one it was."""
_BUSY_FOR_S = 30.0
"""How long a server may go on saying that it is too busy."""
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=5)
_BUSY = (408, 425, 429, 503)
_KEYLESS = (401, 402, 403, 407)
_OF_THE_REQUEST = frozenset(range(400, 500)) - {404, *_KEYLESS} | {501, 505}
"""Statuses that another request may not get: not those of address, key and model."""
_OK, _BROKE = 200, 500
_TRIES = 3
"""Of a request that the server fails on: more than one, for it may have broken off under others."""
_MOST_NAMES = 10
_SAID_EVERY_S = 60.0

SMALL_TALK = [{"role": "user", "content": "Hello."}]
"""What every chat server answers."""


class CannotAttach(Exception):
    """A server that cannot be used as asked; the message says why and what to do."""


class Refused(EngineError):
    """The server takes this request for a wrong one, or fails on it alone."""


class _Busy(EngineAway):
    """The server has too much to do."""


class OddReply(EngineError):
    """A reply that is none of the API's; `status` is its HTTP status."""

    def __init__(self, said: str, status: int) -> None:
        super().__init__(said)
        self.status = status

    @property
    def elsewhere(self) -> bool:
        """Whether it looks as if the API were at another address."""
        return self.status < _BROKE and self.status not in _KEYLESS


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
        self._say_at = 0.0
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
                # Certificates are loaded only where there are any to check: nothing leads from http to https
                httpx.AsyncHTTPTransport(
                    verify=self.url.startswith("https:"), limits=limits, trust_env=False
                ),
                self._allow_host,
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
            OddReply: it answers something else than a list of models.
            EngineError: it does not answer.
        """
        cards = await self._cards(self.url)
        if self.model not in cards:
            near = difflib.get_close_matches(self.model, cards, _MOST_NAMES, 0) or ["none"]
            more = f" and {len(cards) - len(near)} more" if len(cards) > len(near) else ""
            raise CannotAttach(
                f"{self.model!r} is not served there; --openai-model is one of: {', '.join(near)}{more}"
            )
        card = cards[self.model]
        told = {"model": self.model} | {
            name: card[name] for name in ("root", "max_model_len", "owned_by") if card.get(name) is not None
        }
        try:
            version = (await self.extra("version", None)).get("version")
        except Refused:
            return told
        return told | ({"version": version} if isinstance(version, str) else {})

    async def elsewhere(self) -> str | None:
        """An address near this one that has a list of models; None: there is none."""
        for address in _near(self.url):
            try:
                await self._cards(address)
            except EngineError:
                continue
            return address
        return None

    async def _cards(self, address: str) -> dict[str, Any]:
        """What the API at an address says of its models, by their names."""
        listed = await self._json("GET", f"{address}/models")
        try:
            return {str(card["id"]): dict(card) for card in listed["data"]}
        except (LookupError, TypeError, ValueError) as error:
            raise OddReply(f"{address}/models is no list of models", _OK) from error

    def recognise(self, described: dict[str, Any]) -> None:
        """From now on, another description than this one is another server."""
        self._known = described

    async def complete(self, **body: Any) -> Reply:
        """A chat completion.

        Where the server fails on a request time and again, it is asked something that every server answers:
        if it does, this request is to blame, and else the server.

        Raises:
            Refused: the server does not take the request, or fails on it alone.
            EngineAway: the server is not there, or answers nothing at all now.
            EngineDead: the server is another one by now.
        """
        try:
            return await self._completion(body)
        except EngineAway as error:
            self._say(error)
            raise

    async def _completion(self, body: dict[str, Any]) -> Reply:
        await self._check_same()
        trying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_broke),
            wait=_BACKOFF,
            stop=tenacity.stop_after_attempt(_TRIES),
            reraise=True,
        )
        try:
            reply: Reply = await trying(self._complete, body)
        except OddReply as error:
            if error.status in _OF_THE_REQUEST:
                raise Refused(str(error)) from error
            if _broke(error) and await self._works():
                raise Refused(f"{error}; it answers other requests") from error
            self._known_until = 0.0  # it may have another model by now
            raise EngineAway(str(error)) from error
        return reply

    async def _complete(self, body: dict[str, Any]) -> Reply:
        answer = await self._json("POST", f"{self.url}/chat/completions", {"model": self.model, **body})
        try:
            return Reply.model_validate(answer)
        except ValidationError as error:
            fault = _fault(answer)
            what = f"an error: {fault}" if fault else in_words(error)
            raise OddReply(f"the reply of {self.url} is no chat completion: {what}", _OK) from error

    async def _works(self) -> bool:
        """Whether the server answers at all.

        Raises:
            EngineAway: it is not there.
        """
        try:
            await self._complete({"messages": SMALL_TALK, "max_tokens": 1})
        except OddReply:
            return False
        return True

    def _say(self, away: EngineAway) -> None:
        """Logs now and then that the server is away, in none of its words: they may repeat what was asked."""
        if time.monotonic() < self._say_at:
            return
        self._say_at = time.monotonic() + _SAID_EVERY_S
        why = f"it answers {away.__cause__.status}" if isinstance(away.__cause__, OddReply) else str(away)
        why = "it is too busy" if isinstance(away, _Busy) else why
        _log.warning("questions get 503 until the server at %s is back: %s", self.url, why)

    async def extra(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """What vLLM and SGLang tell beside OpenAI's API.

        Raises:
            Refused: the server has nothing of the kind.
            EngineAway: it did not come.
        """
        address = f"{self.url.removesuffix('/v1')}/{path}"
        try:
            answer = await self._json("GET" if body is None else "POST", address, body)
        except OddReply as error:
            away = error.status >= _BROKE and error.status not in _OF_THE_REQUEST
            raise (EngineAway if away else Refused)(str(error)) from error
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
            except OddReply as error:
                raise EngineAway(str(error)) from error
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
            raise OddReply(f"{url} answers something else than JSON", response.status_code) from error

    async def _send(self, method: str, url: str, body: dict[str, Any] | None) -> httpx.Response:
        if self._client is None:
            raise EngineAway("the connection to the server is not open")
        try:
            response = await self._client.request(method, url, json=body)
        except httpx.RequestError as error:
            self._known_until = 0.0  # it may come back as another one
            raise EngineAway(self._lost(error)) from error
        if response.is_success:
            return response
        status = response.status_code
        said = f"{status}{_reason(response)}"
        if status in _BUSY:
            raise _Busy(f"the server at {self.url} is too busy: {said}")
        if response.is_redirect:
            to = response.headers.get("Location", "elsewhere")
            said = f"{url} sends on to {to}, and that is not followed: give the address itself"
            raise OddReply(said, status)
        if response.is_client_error:
            key = "; its key is given by --openai-key-file" if status in _KEYLESS else ""
            raise OddReply(f"the server at {self.url} refuses: {said}{key}", status)
        raise OddReply(f"the server at {self.url} failed: {said}", status)

    def _lost(self, error: httpx.RequestError) -> str:
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            return f"the server at {self.url} did not answer within {self._timeout_s:g} s"
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            plain = "; it speaks no TLS: write http://" if "WRONG_VERSION_NUMBER" in str(error) else ""
            return f"nothing answers at {self.url} ({error or 'timeout'}){plain}"
        return f"the connection to {self.url} was lost ({error or type(error).__name__})"


def _broke(error: BaseException) -> bool:
    """Whether a server failed on a request that it took, or answered it with something else."""
    return isinstance(error, OddReply) and error.status in (_OK, _BROKE)


def _near(url: str) -> list[str]:
    """Where an API whose address is not quite this one may be, the nearest first."""
    parsed = httpx.URL(url)
    root = str(parsed.copy_with(path="/")).rstrip("/")
    parts = [part for part in parsed.path.split("/") if part]
    above = [f"{root}/{'/'.join(parts[:n])}".rstrip("/") for n in range(len(parts), -1, -1)]
    tried = [f"{each}{end}" for each in above for end in ("", "/v1")]
    tried += [f"{root}/api/v1", f"{root}/openai/v1", f"{root}/api"]
    return [each for each in dict.fromkeys(tried) if each != url]


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
        said = _fault(response.json())
    except ValueError:
        said = ""
    words = said or _in_a_line(response.text)
    return f": {words}" if words else ""


def _fault(told: Any) -> str:
    """What a body that tells an error says, in one line; nothing where it tells none."""
    said = told.get("error", told) if isinstance(told, dict) else None
    said = said.get("message") or said.get("detail") if isinstance(said, dict) else said
    return _in_a_line(str(said)) if said else ""


def _in_a_line(text: str) -> str:
    return " ".join(text.split())[:300]
