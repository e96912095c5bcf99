"""The client against servers that refuse, hang, are overloaded or die."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from teacher_api.client import (
    Interrupted,
    QuestionRefused,
    TeacherClient,
    TeacherError,
    TeacherUnavailable,
    connect,
)
from teacher_api.schemas import Answer, ErrorBody, Question
from tests.conftest import AskAbout, StartTeacher

pytestmark = pytest.mark.integration

_ANSWER: dict[str, Any] = {
    "probabilities": {"left": 1.0},
    "action": "left",
    "analysis": "",
    "stages": {"analysis": {"text": "", "milliseconds": 1}, "action": {"text": "", "milliseconds": 1}},
    "teacher": "scripted-1",
    "stored": False,
    "milliseconds": {},
}


@dataclass(frozen=True)
class Reply:
    """A scripted reply; status 0 closes the connection without a reply."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def _failed(status: int, **more: Any) -> dict[str, Any]:
    return {"status": status, "reason": f"scripted {status}"} | more


def _error(status: int, **headers: str) -> Reply:
    return Reply(status, {"error": _failed(status)}, {k.replace("_", "-"): v for k, v in headers.items()})


def _batch(*items: dict[str, Any] | int) -> Reply:
    """A reply to a batch: a number stands for an answer with this mark, other items are errors."""
    return Reply(
        200,
        {
            "answers": [
                {"status": 200, "answer": _ANSWER | {"analysis": str(item)}}
                if isinstance(item, int)
                else {"status": item["status"], "error": item}
                for item in items
            ]
        },
    )


class ScriptedServer(ThreadingHTTPServer):
    """Sends its replies in turn and repeats the last; keeps the times and the bodies of requests."""

    def __init__(self, replies: list[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies = replies
        self.times: list[float] = []
        self.bodies: list[Any] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        server = self.server
        server.times.append(time.monotonic())
        server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        if reply.status == 0:
            self.close_connection = True
            return
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


Serve = Callable[..., ScriptedServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[ScriptedServer] = []

    def start(*replies: Reply) -> ScriptedServer:
        servers.append(ScriptedServer(list(replies)))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _question(mission: str = "go") -> Question:
    return Question.about(b"", mission=mission, task="fetch", actions=["left"])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "none"])
def test_other_urls_are_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is no address of a teacher"):
        TeacherClient(url)


@pytest.mark.parametrize(
    "trouble", [Reply(0), _error(429), _error(503), _error(504), Reply(502, b"<h1>Bad gateway</h1>")]
)
def test_errors_that_may_pass_are_retried(serve: Serve, trouble: Reply) -> None:
    server = serve(trouble, trouble, Reply(200, _ANSWER))
    with TeacherClient(server.url, deadline_s=60) as client:
        assert client.ask(_question()).action == "left"
    assert len(server.times) == 3


@pytest.mark.parametrize("status", [400, 404, 413, 422, 500, 502])
def test_other_errors_fail_at_once(serve: Serve, status: int) -> None:
    server = serve(_error(status))
    with TeacherClient(server.url, deadline_s=60) as client:
        with pytest.raises(QuestionRefused, match=f"scripted {status}") as caught:
            client.ask(_question())
        with pytest.raises(QuestionRefused):
            client.ask_batch([_question()])
    assert caught.value.error.status == status
    assert len(server.times) == 2


@pytest.mark.parametrize("reply", [_error(401), Reply(401, b"a proxy's page")])
def test_a_missing_key_fails_at_once(serve: Serve, reply: Reply) -> None:
    server = serve(reply)
    with (
        TeacherClient(server.url, deadline_s=60, key="k") as client,
        pytest.raises(TeacherError, match=r"needs another key than the one sent: .*key_file`"),
    ):
        client.ask_batch([_question()])
    assert len(server.times) == 1


@pytest.mark.parametrize("reply", [Reply(200, {"hello": "world"}), Reply(404, b"<h1>Not found</h1>")])
def test_a_server_that_is_no_teacher_is_reported(serve: Serve, reply: Reply) -> None:
    server = serve(reply)
    with (
        TeacherClient(server.url) as client,
        pytest.raises(TeacherError, match="does not reply as a teacher") as caught,
    ):
        client.ask(_question())
    assert server.url in str(caught.value)
    assert not isinstance(caught.value, TeacherUnavailable)


def test_retry_after_is_respected(serve: Serve) -> None:
    server = serve(_error(503, Retry_After="1"), Reply(200, _ANSWER))
    with TeacherClient(server.url, deadline_s=60) as client:
        client.ask(_question())
    assert server.times[1] - server.times[0] >= 1


def test_only_questions_whose_errors_may_pass_are_sent_again(serve: Serve) -> None:
    server = serve(
        _batch(0, _failed(422, field="task"), _failed(503, retry_after=0.5), 3, _failed(504)),
        _batch(_failed(429), 4),
        _batch(2),
    )
    with TeacherClient(server.url, deadline_s=60) as client:
        outcomes = client.ask_batch([_question(f"m{i}") for i in range(5)])
    assert [o.analysis if isinstance(o, Answer) else o.status for o in outcomes] == ["0", 422, "2", "3", "4"]
    missions = [[question["mission"] for question in body] for body in server.bodies]
    assert missions == [["m0", "m1", "m2", "m3", "m4"], ["m2", "m4"], ["m2"]]
    assert server.times[1] - server.times[0] >= 0.5


def test_a_batch_is_sent_in_pieces_and_comes_back_in_order(serve: Serve) -> None:
    server = serve(_batch(0, 1, 2), _batch(3, 4, 5), _batch(6))
    with TeacherClient(server.url, batch_size=3) as client:
        outcomes = client.ask_batch([_question(f"m{i}") for i in range(7)])
        assert client.ask_batch([]) == []
    assert [o.analysis for o in outcomes if isinstance(o, Answer)] == list("0123456")
    assert [len(body) for body in server.bodies] == [3, 3, 1]


def test_questions_that_fail_until_the_deadline_get_errors_beside_the_answers(serve: Serve) -> None:
    server = serve(_batch(0, _failed(504)), _batch(_failed(504)))
    with TeacherClient(server.url, deadline_s=0.5) as client:
        answered, failed = client.ask_batch([_question("a"), _question("b")])
    assert isinstance(answered, Answer)
    assert isinstance(failed, ErrorBody)
    assert failed.status == 504


def test_a_teacher_without_answers_is_unavailable(serve: Serve) -> None:
    server = serve(_batch(_failed(503)))
    with (
        TeacherClient(server.url, deadline_s=0.5) as client,
        pytest.raises(TeacherUnavailable, match="scripted 503"),
    ):
        client.ask_batch([_question()])
    assert len(server.times) > 1


def test_a_missing_teacher_is_unavailable_after_the_deadline() -> None:
    url = f"http://127.0.0.1:{_free_port()}"
    began = time.monotonic()
    with TeacherClient(url, deadline_s=1) as client, pytest.raises(TeacherUnavailable) as caught:
        client.teacher()
    assert "refused" in str(caught.value)
    assert url in str(caught.value)
    assert time.monotonic() - began >= 1


def test_a_command_reports_what_it_waits_for_and_how_long(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no server, a silent server or a loading teacher; not with a slow answer."""
    absent = f"http://127.0.0.1:{_free_port()}"
    with connect(absent, key_file=None, wait_s=2) as client, pytest.raises(TeacherUnavailable):
        client.teacher()
    told = f"waiting for the teacher at {absent}, for 2 s at most: Connection refused\n"
    assert capsys.readouterr().err.endswith(told)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with connect(url, key_file=None, wait_s=2) as client, pytest.raises(TeacherUnavailable):
            client.teacher()
        assert f"{url}, for 2 s at most: no answer yet\n" in capsys.readouterr().err
    loading = serve(_error(503, Retry_After="3"), Reply(200, _ANSWER))
    with connect(loading.url, key_file=None, wait_s=60) as client:
        client.ask(_question())
    waiting, there = capsys.readouterr().err.splitlines()
    assert waiting.endswith(f"{loading.url}, for 60 s at most: 503: scripted 503")
    assert f"the teacher at {loading.url} answers after " in there


def test_a_silent_teacher_is_unavailable_after_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with TeacherClient(url, deadline_s=1) as client, pytest.raises(TeacherUnavailable) as caught:
            client.ask(_question())
    assert "ReadTimeout" in str(caught.value)


def test_stop_ends_waiting(serve: Serve) -> None:
    server = serve(_error(503, Retry_After="600"))
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with TeacherClient(server.url, deadline_s=3600, stop=stop) as client, pytest.raises(Interrupted):
        client.ask(_question())
    assert time.monotonic() - began < 60


def test_the_client_continues_when_the_teacher_is_back(
    teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    teacher = teacher_process()
    question = ask_about("MiniGrid-LavaGapS5-v0")
    with TeacherClient(teacher.url, deadline_s=60) as client:
        identity = client.teacher().identity
        teacher.kill()
        back = threading.Timer(0.5, teacher.restart)
        back.start()
        assert client.ask(question).teacher == identity
        back.join()


def test_an_overloaded_teacher_answers_all_questions_in_the_end(
    teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    teacher = teacher_process("--max-pending", "8", "--delay-ms", "50")
    question = ask_about("MiniGrid-LavaGapS5-v0")
    questions = [question.model_copy(update={"mission": f"mission {i}"}) for i in range(20)]
    with TeacherClient(teacher.url, deadline_s=60) as client:
        outcomes = client.ask_batch(questions)
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
