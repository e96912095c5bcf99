"""A running chat server on the local network: vLLM, SGLang or another with OpenAI's API."""

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
from teacher_server.engines.base import EngineDead, EngineError, EngineUnavailable
from teacher_server.engines.openai.private_addresses import PrivateTransport
from teacher_server.engines.openai.replies import Reply

_log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_KEEP_ALIVE_S = 2.0
"""Shorter than a server's own limit (uvicorn: 5 s), which could close a connection as a request is sent."""
_CHECK_EVERY_S = 10.0
"""How often to check that the server still serves the same model."""
_BUSY_FOR_S = 30.0
"""How long to repeat a request while the server says that it is too busy."""
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=5)
_BUSY = (408, 425, 429, 503)
_UNAUTHORIZED = (401, 402, 403, 407)
_REQUEST_ERRORS = frozenset(range(400, 500)) - {404, *_UNAUTHORIZED} | {501, 505}
"""Statuses that blame the request, and not the address, the key or the model."""
_OK, _SERVER_ERROR = 200, 500
_TRIES = 3
"""Attempts at a request that the server fails on: other requests may have caused a failure."""
_MOST_NAMES = 10
_WARN_EVERY_S = 60.0

SMALL_TALK = [{"role": "user", "content": "Hello."}]
"""Messages that every chat server answers."""


class CannotAttach(Exception):
    """The server cannot be used with these settings; the message says why and what to do."""


class Refused(EngineError):
    """The server refuses this request, or fails on this request only."""


class _Busy(EngineUnavailable):
    """The server is too busy."""


class UnexpectedReply(EngineError):
    """A reply that the API does not define; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def wrong_address(self) -> bool:
        """Whether the API is probably at another address."""
        return self.status < _SERVER_ERROR and self.status not in _UNAUTHORIZED


class ChatServer:
    """One model of a chat server, over HTTP. Cancelling a request closes its connection.

    Args:
        url: address of the API, which usually ends in /v1.
        model: name under which the server serves the model.
        key: API key, sent as a bearer token.
        allow_host: host that may be outside the local network.
        connections: most connections at once.
        timeout_s: how long a reply may take, in seconds.

    Raises:
        CannotAttach: the URL is not a server's address.
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
        self._check_at = 0.0
        self._warn_at = 0.0
        self._checking = asyncio.Lock()

    async def start(self) -> None:
        """Opens the client; sends nothing."""
        limits = httpx.Limits(
            max_connections=self._connections,
            max_keepalive_connections=self._connections,
            keepalive_expiry=_KEEP_ALIVE_S,
        )
        self._client = httpx.AsyncClient(
            transport=PrivateTransport(
                # Loads certificates only for https; redirects are not followed
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
        """Returns all that the server reports of the model and of itself.

        Raises:
            CannotAttach: the server does not serve this model.
            UnexpectedReply: the reply is not a list of models.
            EngineError: the server does not answer.
        """
        cards = await self._cards(self.url)
        if self.model not in cards:
            near = difflib.get_close_matches(self.model, cards, _MOST_NAMES, 0) or ["none"]
            more = f" and {len(cards) - len(near)} more" if len(cards) > len(near) else ""
            raise CannotAttach(
                f"the server does not serve {self.model!r}; set `openai_model` to one of:"
                f" {', '.join(near)}{more}"
            )
        card = cards[self.model]
        described = {"model": self.model} | {
            name: card[name] for name in ("root", "max_model_len", "owned_by") if card.get(name) is not None
        }
        try:
            version = (await self.extra("version", None)).get("version")
        except Refused:
            return described
        return described | ({"version": version} if isinstance(version, str) else {})

    async def find_address(self) -> str | None:
        """Returns a similar address that has a list of models, or None."""
        for address in _near(self.url):
            try:
                await self._cards(address)
            except EngineError:
                continue
            return address
        return None

    async def _cards(self, address: str) -> dict[str, Any]:
        """Returns name -> description of the models that the API at an address lists."""
        listed = await self._json("GET", f"{address}/models")
        try:
            return {str(card["id"]): dict(card) for card in listed["data"]}
        except (LookupError, TypeError, ValueError) as error:
            raise UnexpectedReply(f"{address}/models is not a list of models", _OK) from error

    def recognise(self, described: dict[str, Any]) -> None:
        """Sets the description that the server has to keep; with another one it is a different teacher."""
        self._known = described

    async def complete(self, **body: Any) -> Reply:
        """Returns a chat completion.

        If the server fails repeatedly on a request, a trivial request decides: if the server answers that
        one, the first request is to blame, or else the server.

        Raises:
            Refused: the server refuses the request, or fails on this request only.
            EngineUnavailable: the server cannot be reached, or answers no request now.
            EngineDead: the server's description has changed.
        """
        try:
            return await self._completion(body)
        except EngineUnavailable as error:
            self._warn(error)
            raise

    async def _completion(self, body: dict[str, Any]) -> Reply:
        await self._check_same()
        trying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_server_failed),
            wait=_BACKOFF,
            stop=tenacity.stop_after_attempt(_TRIES),
            reraise=True,
        )
        try:
            reply: Reply = await trying(self._complete, body)
        except UnexpectedReply as error:
            if error.status in _REQUEST_ERRORS:
                raise Refused(str(error)) from error
            if _server_failed(error) and await self._works():
                raise Refused(f"{error}; the server answers other requests") from error
            self._check_at = 0.0  # it may serve another model now
            raise EngineUnavailable(str(error)) from error
        return reply

    async def _complete(self, body: dict[str, Any]) -> Reply:
        answer = await self._json("POST", f"{self.url}/chat/completions", {"model": self.model, **body})
        try:
            return Reply.model_validate(answer)
        except ValidationError as error:
            fault = _fault(answer)
            what = f"an error: {fault}" if fault else in_words(error)
            raise UnexpectedReply(f"the reply of {self.url} is not a chat completion: {what}", _OK) from error

    async def _works(self) -> bool:
        """Returns whether the server answers a trivial request.

        Raises:
            EngineUnavailable: the server cannot be reached.
        """
        try:
            await self._complete({"messages": SMALL_TALK, "max_tokens": 1})
        except UnexpectedReply:
            return False
        return True

    def _warn(self, error: EngineUnavailable) -> None:
        """Logs, at most once a minute, that the server is unavailable; its own words may quote a question."""
        if time.monotonic() < self._warn_at:
            return
        self._warn_at = time.monotonic() + _WARN_EVERY_S
        cause = error.__cause__
        why = f"it replies with status {cause.status}" if isinstance(cause, UnexpectedReply) else str(error)
        why = "it is too busy" if isinstance(error, _Busy) else why
        _log.warning("questions get 503 until the server at %s is available again: %s", self.url, why)

    async def extra(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Returns the reply to a request that vLLM and SGLang serve beside OpenAI's API.

        Raises:
            Refused: the server does not serve this path.
            EngineUnavailable: no reply came.
        """
        address = f"{self.url.removesuffix('/v1')}/{path}"
        try:
            answer = await self._json("GET" if body is None else "POST", address, body)
        except UnexpectedReply as error:
            away = error.status >= _SERVER_ERROR and error.status not in _REQUEST_ERRORS
            raise (EngineUnavailable if away else Refused)(str(error)) from error
        if not isinstance(answer, dict):
            raise Refused(f"the reply of {address} is not a JSON object")
        return answer

    async def _check_same(self) -> None:
        if self._known is None or time.monotonic() < self._check_at:
            return
        async with self._checking:
            if time.monotonic() < self._check_at:
                return
            try:
                described = await self.describe()
            except CannotAttach as error:
                raise EngineDead(f"the server at {self.url} has changed: {error}") from error
            except UnexpectedReply as error:
                raise EngineUnavailable(str(error)) from error
            if described != self._known:
                was, now = (json.dumps(each, sort_keys=True) for each in (self._known, described))
                raise EngineDead(
                    f"the server at {self.url} has changed from {was} to {now}; restart this service to teach"
                    " with the new one, under a new identity"
                )
            self._check_at = time.monotonic() + _CHECK_EVERY_S

    async def _json(self, method: str, url: str, body: dict[str, Any] | None = None) -> Any:
        """Sends a request and returns its JSON; repeats it for a while if the server is too busy."""
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
            raise UnexpectedReply(f"the reply of {url} is not JSON", response.status_code) from error

    async def _send(self, method: str, url: str, body: dict[str, Any] | None) -> httpx.Response:
        if self._client is None:
            raise EngineUnavailable("the connection to the server is not open")
        try:
            response = await self._client.request(method, url, json=body)
        except httpx.RequestError as error:
            self._check_at = 0.0  # it may come back with another model
            raise EngineUnavailable(self._lost(error)) from error
        if response.is_success:
            return response
        status = response.status_code
        reply = f"{status}{_reason(response)}"
        if status in _BUSY:
            raise _Busy(f"the server at {self.url} is too busy: {reply}")
        if response.is_redirect:
            to = response.headers.get("Location", "elsewhere")
            redirect = f"{url} redirects to {to}, which is not followed: give that address"
            raise UnexpectedReply(redirect, status)
        if response.is_client_error:
            key = "; give its API key in `openai_key_file`" if status in _UNAUTHORIZED else ""
            raise UnexpectedReply(f"the server at {self.url} refused: {reply}{key}", status)
        raise UnexpectedReply(f"the server at {self.url} failed: {reply}", status)

    def _lost(self, error: httpx.RequestError) -> str:
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            return f"the server at {self.url} did not answer within {self._timeout_s:g} s"
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            plain = (
                "; the server does not use TLS: write http://" if "WRONG_VERSION_NUMBER" in str(error) else ""
            )
            return f"nothing answers at {self.url} ({error or 'timeout'}){plain}"
        return f"the connection to {self.url} was lost ({error or type(error).__name__})"


def _server_failed(error: BaseException) -> bool:
    """Returns whether a server failed on a request, or its reply to the request was malformed."""
    return isinstance(error, UnexpectedReply) and error.status in (_OK, _SERVER_ERROR)


def _near(url: str) -> list[str]:
    """Returns similar addresses at which the API may be, the most similar first."""
    parsed = httpx.URL(url)
    root = str(parsed.copy_with(path="/")).rstrip("/")
    parts = [part for part in parsed.path.split("/") if part]
    above = [f"{root}/{'/'.join(parts[:n])}".rstrip("/") for n in range(len(parts), -1, -1)]
    tried = [f"{each}{end}" for each in above for end in ("", "/v1")]
    tried += [f"{root}/api/v1", f"{root}/openai/v1", f"{root}/api"]
    return [each for each in dict.fromkeys(tried) if each != url]


def _checked(url: str) -> str:
    """Returns a URL without a trailing slash; raises CannotAttach if it is not a server's address."""
    hint = "write it as http://HOST:PORT/v1"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise CannotAttach(f"`openai_url` is not an address ({error}); {hint}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise CannotAttach(f"`openai_url` is not the address of a server; {hint}")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise CannotAttach(
            f"`openai_url` holds more than an address; {hint}, and give an API key in `openai_key_file`"
        )
    return str(parsed).rstrip("/")


def _reason(response: httpx.Response) -> str:
    """Returns the message in an error's body, in one line."""
    try:
        message = _fault(response.json())
    except ValueError:
        message = ""
    words = message or _in_a_line(response.text)
    return f": {words}" if words else ""


def _fault(body: Any) -> str:
    """Returns the error message in a JSON body, in one line, or an empty text if it holds none."""
    error = body.get("error", body) if isinstance(body, dict) else None
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return _in_a_line(str(message)) if message else ""


def _in_a_line(text: str) -> str:
    return " ".join(text.split())[:300]
