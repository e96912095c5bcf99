"""Failures between the teacher and a chat server, with a server that causes them."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import tenacity

from teacher_server.engines.base import EngineDead, EngineUnavailable
from teacher_server.engines.openai.replies import Reply
from teacher_server.engines.openai.server import (
    SMALL_TALK,
    CannotAttach,
    ChatServer,
    Refused,
    UnexpectedReply,
)
from tests.http_servers import Asked, http_server
from tests.waiting import wait_for

pytestmark = pytest.mark.unit

_REPLY = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
_CARD = {"id": "m", "object": "model", "owned_by": "vllm", "root": "/models/m", "max_model_len": 4096}


def _complete(url: str, **settings: Any) -> Reply:
    async def complete() -> Reply:
        server = ChatServer(f"{url}/v1", "m", **settings)
        await server.start()
        try:
            return await server.complete(messages=[], max_tokens=1)
        finally:
            await server.close()

    return asyncio.run(complete())


def test_a_completion() -> None:
    with http_server(lambda _: (200, _REPLY)) as server:
        reply = _complete(server.url, key="secret")
    assert (reply.text, reply.finish_reason, reply.tokens, reply.first_step) == ("hello", "stop", 0, [])
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {"model": "m", "messages": [], "max_tokens": 1}
    assert asked.headers["authorization"] == "Bearer secret"


def test_a_server_that_is_too_busy_is_asked_again() -> None:
    def answer(_: Asked) -> tuple[int, Any]:
        return (200, _REPLY) if len(server.asked) > 2 else (429 if len(server.asked) > 1 else 503, {})

    with http_server(answer) as server:
        assert _complete(server.url).text == "hello"
    assert len(server.asked) == 3


def _broken_off(asked: Asked) -> tuple[int, bytes, dict[str, str]]:
    asked.handler.close_connection = True
    return 200, b'{"choices": [', {"Content-Length": "100"}


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (lambda _: (400, {"error": {"message": "too\nlong"}}), Refused, "refused: 400: too long"),
        (lambda _: (422, {"detail": "what?"}), Refused, "refused: 422: .*what"),
        (lambda _: (501, {}), Refused, "failed: 501"),
        (
            lambda _: (401, b"no"),
            EngineUnavailable,
            "refused: 401: no; give its API key in `openai_key_file`",
        ),
        (
            lambda _: (403, b"no"),
            EngineUnavailable,
            "refused: 403: no; give its API key in `openai_key_file`",
        ),
        (
            lambda _: (404, {"error": {"message": "no model m"}}),
            EngineUnavailable,
            "refused: 404: no model m",
        ),
        (lambda _: (502, b"<html>Bad gateway"), EngineUnavailable, "failed: 502: <html>Bad gateway"),
        (lambda _: (504, {}), EngineUnavailable, "failed: 504"),
        (lambda _: None, EngineUnavailable, "was lost"),
        (_broken_off, EngineUnavailable, "was lost"),
        (
            lambda _: (307, b"", {"Location": "http://8.8.8.8/"}),
            EngineUnavailable,
            "redirects to http://8.8.8.8/",
        ),
    ],
)
def test_what_a_server_may_do_wrong(answer: Callable[[Asked], Any], kind: type[Exception], said: str) -> None:
    with http_server(answer) as server, pytest.raises(kind, match=said) as caught:
        _complete(server.url)
    assert caught.type is kind
    assert len(server.asked) == 1


_FAILURES = [
    ((500, {"error": "it broke"}), "failed: 500: it broke"),
    ((200, b"<html>"), "is not JSON"),
    ((200, {"choices": []}), "not a chat completion: choices"),
    ((200, ["hello"]), "not a chat completion"),
    ((200, {"error": {"message": "upstream is down"}}), "not a chat completion: an error: upstream is down"),
]


@pytest.mark.parametrize(("reply", "said"), _FAILURES)
def test_a_server_that_fails_on_everything_is_away(
    reply: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacher_server.engines.openai.server._BACKOFF", tenacity.wait_none())
    with http_server(lambda _: reply) as server, pytest.raises(EngineUnavailable, match=said):
        _complete(server.url)
    assert [asked.body["messages"] for asked in server.asked] == [[], [], [], SMALL_TALK]


@pytest.mark.parametrize(("reply", "said"), _FAILURES)
def test_a_request_that_a_server_alone_fails_on_is_refused(
    reply: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacher_server.engines.openai.server._BACKOFF", tenacity.wait_none())

    def answer(asked: Asked) -> Any:
        return (200, _REPLY) if asked.body["messages"] == SMALL_TALK else reply

    with http_server(answer) as server, pytest.raises(Refused, match=f"{said}.*answers other requests"):
        _complete(server.url)


def test_a_request_that_a_server_failed_on_once_is_sent_again() -> None:
    with http_server(lambda _: (200, _REPLY) if len(server.asked) > 1 else (500, {})) as server:
        assert _complete(server.url).text == "hello"


@pytest.mark.parametrize("status", [408, 425, 429, 503])
def test_a_server_that_stays_too_busy_is_away(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_server.engines.openai.server._BUSY_FOR_S", 0)
    with (
        http_server(lambda _: (status, {})) as server,
        pytest.raises(EngineUnavailable, match=f"too busy: {status}"),
    ):
        _complete(server.url)


def test_a_server_that_is_away_is_in_the_log_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        chat = ChatServer(f"{server.url}/v1", "m")
        await chat.start()
        for status in (404, 502):
            server.answer = lambda _, status=status: (status, {"error": "the mission: get a key"})
            with pytest.raises(EngineUnavailable):
                await chat.complete(messages=[])
        await chat.close()

    with http_server(lambda _: None) as server:
        asyncio.run(ask())
    until = f"questions get 503 until the server at {server.url}/v1 is available again"
    said = f"{until}: it replies with status 404"
    assert caplog.messages == [said]


def test_a_name_without_an_address_is_away() -> None:
    with pytest.raises(EngineUnavailable, match=r"the name teacher\.invalid has no address here"):
        _complete("http://teacher.invalid")


def test_a_server_that_takes_too_long() -> None:
    over = threading.Event()

    def answer(_: Asked) -> None:
        over.wait(30)

    with http_server(answer) as server:
        with pytest.raises(EngineUnavailable, match=r"did not answer within 0\.2 s"):
            _complete(server.url, timeout_s=0.2)
        over.set()


def test_a_server_that_is_not_there() -> None:
    with http_server(lambda _: None) as server:
        pass
    with pytest.raises(EngineUnavailable, match=f"nothing answers at {server.url}"):
        _complete(server.url)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with http_server(lambda _: (200, _REPLY)) as server:
        assert _complete(server.url).text == "hello"


def test_cancelling_closes_the_connection() -> None:
    closed = threading.Event()

    def answer(asked: Asked) -> None:
        if asked.handler.connection.recv(1) == b"":
            closed.set()

    async def ask_and_leave() -> None:
        chat = ChatServer(f"{server.url}/v1", "m")
        await chat.start()
        asking = asyncio.create_task(chat.complete(messages=[]))
        await asyncio.to_thread(wait_for, lambda: server.asked, "the request")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert await asyncio.to_thread(closed.wait, 10)
        await chat.close()

    with http_server(answer) as server:
        asyncio.run(ask_and_leave())


class _Models:
    """A server with a list of models, a version, and one answer."""

    def __init__(self) -> None:
        self.cards = [dict(_CARD)]
        self.here = True

    def __call__(self, asked: Asked) -> tuple[int, Any] | None:
        if not self.here:
            return None
        if asked.path == "/version":
            return 200, {"version": "1.2"}
        return 200, {"data": self.cards} if asked.path == "/v1/models" else _REPLY


def _describe(url: str, model: str = "m") -> dict[str, Any]:
    async def describe() -> dict[str, Any]:
        server = ChatServer(url, model)
        await server.start()
        try:
            return await server.describe()
        finally:
            await server.close()

    return asyncio.run(describe())


def test_what_a_server_says_of_itself() -> None:
    with http_server(_Models()) as server:
        told = {
            "model": "m",
            "root": "/models/m",
            "max_model_len": 4096,
            "owned_by": "vllm",
            "version": "1.2",
        }
        assert _describe(f"{server.url}/v1/") == told
        with pytest.raises(CannotAttach, match="does not serve 'other'; set `openai_model` to one of: m"):
            _describe(f"{server.url}/v1", "other")
        with pytest.raises(UnexpectedReply, match="/models is not a list of models"):
            _describe(server.url)


def test_only_the_nearest_of_many_names_are_told() -> None:
    cards = [{"id": f"model-{number}"} for number in range(300)] + [{"id": "qwen2.5vl:7b"}]
    with http_server(lambda _: (200, {"data": cards})) as server, pytest.raises(CannotAttach) as caught:
        _describe(f"{server.url}/v1", "qwen2.5vl")
    assert "to one of: qwen2.5vl:7b, " in str(caught.value)
    assert "and 291 more" in str(caught.value)


@pytest.mark.parametrize("path", ["", "/v1", "/api", "/api/v1/chat/completions", "/api/v1/models", "/x/y"])
def test_an_api_is_found_near_the_address(path: str) -> None:
    def answer(asked: Asked) -> tuple[int, Any]:
        return (200, {"data": [_CARD]}) if asked.path == "/api/v1/models" else (404, {})

    async def found(url: str) -> str | None:
        server = ChatServer(url, "m")
        await server.start()
        try:
            return await server.find_address()
        finally:
            await server.close()

    with http_server(answer) as server:
        assert asyncio.run(found(f"{server.url}{path}")) == f"{server.url}/api/v1"
    with http_server(lambda _: (404, {})) as server:
        assert asyncio.run(found(f"{server.url}{path}")) is None


def test_a_server_without_a_version() -> None:
    with http_server(lambda a: (200, {"data": [{"id": "m"}]}) if "models" in a.path else (404, {})) as server:
        assert _describe(f"{server.url}/v1") == {"model": "m"}


@pytest.mark.parametrize("change", [{"root": "/models/other"}, {"id": "other"}, {}])
def test_a_server_that_comes_back_as_another_one(change: dict[str, str]) -> None:
    models = _Models()

    async def ask() -> None:
        chat = ChatServer(f"{server.url}/v1", "m")
        await chat.start()
        chat.recognise(await chat.describe())
        assert (await chat.complete(messages=[])).text == "hello"
        models.here = False
        with pytest.raises(EngineUnavailable, match="was lost"):
            await chat.complete(messages=[])
        models.here, models.cards = True, [{**_CARD, **change}]
        if change:
            with pytest.raises(EngineDead, match="has changed"):
                await chat.complete(messages=[])
        else:
            assert (await chat.complete(messages=[])).text == "hello"
        await chat.close()

    with http_server(models) as server:
        asyncio.run(ask())


def test_a_server_is_recognised_once_for_many_questions() -> None:
    async def ask() -> None:
        chat = ChatServer(f"{server.url}/v1", "m")
        await chat.start()
        chat.recognise(await chat.describe())
        await asyncio.gather(*(chat.complete(messages=[]) for _ in range(20)))
        await chat.close()

    with http_server(_Models()) as server:
        asyncio.run(ask())
    assert [asked.path for asked in server.asked].count("/v1/models") == 2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8000/v1", "`openai_url` is not the address of a server"),
        ("ftp://127.0.0.1/v1", "`openai_url` is not the address of a server"),
        ("http:///v1", "`openai_url` is not the address of a server"),
        ("http://me:secret@127.0.0.1/v1", "`openai_key_file`"),
        ("http://127.0.0.1/v1?key=1", "`openai_key_file`"),
        ("http://127.0.0.1:port/v1", "`openai_url` is not an address"),
    ],
)
def test_what_is_no_address(url: str, said: str) -> None:
    with pytest.raises(CannotAttach, match=said) as caught:
        ChatServer(url, "m")
    assert "secret" not in str(caught.value)
