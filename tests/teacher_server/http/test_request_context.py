"""Request context: headers, log lines, and connections that are slow, too many or not HTTP."""

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from teacher_api.schemas import ErrorAnswer
from teacher_server.app import create_app
from teacher_server.service.logs import request_id, write_logs
from teacher_server.settings import Settings
from tests.conftest import AskAbout, StartTeacher, TeacherProcess
from tests.waiting import LONG_S, metric, wait_for

_MISSION = "avoid the lava and get to the green goal square"


@pytest.fixture(scope="module")
def http(shared_teacher: TeacherProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_teacher.url, timeout=LONG_S) as http:
        yield http


@pytest.mark.integration
def test_a_response_has_the_request_id_and_the_security_headers(http: httpx.Client) -> None:
    for path in ("/", "/livez", "/policy", "/docs", "/page/playground.js", "/nowhere"):
        reply = http.get(path, headers={"X-Request-ID": "run-7:42"})
        assert reply.headers["X-Request-ID"] == "run-7:42"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["X-Frame-Options"] == "DENY"
        assert reply.headers["Referrer-Policy"] == "no-referrer"
    for sent in ("", "x" * 65, "two words", "line\tbreak"):
        assert re.fullmatch(
            "[0-9a-f]{16}", http.get("/livez", headers={"X-Request-ID": sent}).headers["X-Request-ID"]
        )


@pytest.mark.integration
def test_a_client_says_how_long_it_will_wait(teacher_process: StartTeacher, ask_about: AskAbout) -> None:
    teacher = teacher_process("--delay-ms", "600000")
    question = ask_about("MiniGrid-LavaGapS5-v0").model_dump()
    with httpx.Client(base_url=teacher.url, timeout=LONG_S) as http:
        for path, body in (("/policy", question), ("/policy/batch", [question, question])):
            reply = http.post(path, json=body, headers={"X-Timeout-S": "0.2"})
            error = reply.json()["answers"][1]["error"] if path.endswith("batch") else reply.json()["error"]
            assert (error["status"], error["reason"]) == (504, "the teacher did not answer within 0.2 s")
            assert metric(teacher, "teacher_in_flight") == 0
        for wrong in ("0", "-1", "nan", "inf", "soon", ""):
            reply = http.post("/policy", json=question, headers={"X-Timeout-S": wrong})
            error = ErrorAnswer.model_validate_json(reply.content).error
            assert (reply.status_code, error.field) == (422, "X-Timeout-S")
            assert "a number of seconds above 0" in error.reason


@pytest.mark.integration
def test_the_log_names_the_client_and_not_the_question(
    teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    teacher = teacher_process("--log-format", "json", "--log-requests", "all")
    question = ask_about("MiniGrid-LavaGapS5-v0").model_dump()
    with httpx.Client(base_url=teacher.url, timeout=LONG_S) as http:
        headers = {"X-Request-ID": "one", "X-Client": "student-1"}
        assert http.post("/policy/batch", json=[question, question], headers=headers).status_code == 200
        headers["X-Request-ID"] = "two"
        assert (
            http.post(f"/policy?{_MISSION}", json=question | {"task": "chess"}, headers=headers).status_code
            == 422
        )
        assert http.get(f"/{_MISSION}", headers={"X-Request-ID": "three"}).status_code == 404
    wait_for(lambda: '"three"' in teacher.stderr, "the log")
    one, two, three = (
        line
        for line in map(json.loads, teacher.stderr.splitlines())
        if line["logger"].endswith("request_context")
    )
    assert one["request_id"] == "one"
    assert one["client"] == "student-1"
    assert (one["route"], one["status"]) == ("/policy/batch", 200)
    assert (one["answered"], one["stored"], one["failed"]) == (2, 0, 0)
    assert one["milliseconds"] > 0
    assert (two["request_id"], two["status"], two["failed"]) == ("two", 422, 1)
    assert (three["client"], three["route"], three["status"]) == ("127.0.0.1", "-", 404)
    for secret in (
        _MISSION,
        _MISSION.replace(" ", "%20"),
        question["image"][:40],
        "chess",
        str(teacher.store),
    ):
        assert secret not in teacher.stderr


@pytest.mark.integration
def test_the_log_counts_a_batchs_failures_by_reason(
    teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    """The first at once; what comes within a minute after them together, at the latest when it stops."""
    teacher = teacher_process()
    question = ask_about("MiniGrid-Fetch-5x5-N2-v0").model_dump()
    asked = [question | {"mission": f"{_MISSION} {i}"} for i in range(3)] + [question | {"image": "secret"}]
    with httpx.Client(base_url=teacher.url, timeout=LONG_S) as http:
        for _ in range(3):
            assert http.post("/policy/batch", json=asked).status_code == 200
    teacher.stop()
    counted = [line for line in teacher.stderr.splitlines() if "questions without an answer: " in line]
    assert [re.findall(r"(\d+) x 422 (\w+): ", line) for line in counted] == [
        [("3", "mission"), ("1", "image")],
        [("6", "mission"), ("2", "image")],
    ]
    assert "names no coloured key or ball" in counted[0]
    assert "request_id" not in counted[1]
    assert _MISSION not in teacher.stderr


@pytest.mark.unit
@pytest.mark.parametrize("form", ["text", "json"])
def test_an_unexpected_error_is_logged_without_its_message(
    form: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    kept, root.handlers = root.handlers, []
    try:
        write_logs(form)
        token = request_id.set("r1")
        try:
            raise ValueError(f"cannot read /secret/folder: {_MISSION}")
        except ValueError:
            logging.getLogger("teacher_server.x").exception("it failed")
        request_id.reset(token)
    finally:
        root.handlers = kept
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for told in ("it failed", "ValueError", Path(__file__).name, "r1", "ERROR"):
        assert told in said
    for secret in ("secret", "lava", str(Path(__file__).parent)):
        assert secret not in said


@pytest.mark.unit
def test_an_unexpected_error_is_a_500_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> httpx.Response:
        app = create_app(Settings(store=str(tmp_path / "answers.sqlite3")))
        app.state.service.host.teacher = None
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            return await http.get("/teacher", headers={"X-Request-ID": "r2"})

    reply = asyncio.run(ask())
    assert (reply.status_code, reply.headers["X-Request-ID"]) == (500, "r2")
    assert "the service failed on a request" in caplog.text


def _connect(teacher: TeacherProcess) -> socket.socket:
    host, port = teacher.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=LONG_S)


def _said(connection: socket.socket) -> bytes:
    """All that is sent until the other side closes."""
    said = b""
    try:
        while part := connection.recv(65536):
            said += part
    except ConnectionResetError:
        pass
    return said


@pytest.mark.integration
def test_slow_requests_are_closed(teacher_process: StartTeacher) -> None:
    teacher = teacher_process("--receive-s", "1")
    head = b"POST /policy HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    for sent in (b"", b"GET /livez HT", head, head + b"\r\n", head + b"\r\n{" + b" " * 50):
        with _connect(teacher) as connection:
            connection.sendall(sent)
            assert b"200" not in _said(connection), sent
    with _connect(teacher) as dripping:  # a byte now and then is not enough
        dripping.sendall(head + b"\r\n")
        began = time.monotonic()
        try:
            while time.monotonic() - began < LONG_S:
                dripping.sendall(b" ")
                time.sleep(0.1)
        except OSError:
            pass
        assert time.monotonic() - began < LONG_S
    wait_for(lambda: len(psutil.Process(teacher.process.pid).net_connections()) <= 2, "closed connections")
    assert httpx.get(f"{teacher.url}/livez", timeout=LONG_S).status_code == 200
    assert "Traceback" not in teacher.stderr


@pytest.mark.integration
def test_a_response_that_the_client_does_not_take_is_dropped(
    teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    teacher = teacher_process("--receive-s", "1")
    body = json.dumps([ask_about("MiniGrid-LavaGapS5-v0").model_dump()] * 1000).encode()
    head = b"POST /policy/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    with _connect(teacher) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(8):  # asked in a row: answers of several megabytes
            try:
                connection.sendall(head + body)
            except OSError:
                break
        wait_for(
            lambda: (
                not [
                    c
                    for c in psutil.Process(teacher.process.pid).net_connections()
                    if c.status == "ESTABLISHED"
                ]
            ),
            "the end of a connection that takes nothing",
        )
    assert httpx.get(f"{teacher.url}/livez", timeout=LONG_S).status_code == 200


@pytest.mark.integration
def test_heads_are_limited(shared_teacher: TeacherProcess) -> None:
    for sent, status in (
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"GET /livez HTTP/1.1\r\n" + b"X-Many: x\r\n" * 3000 + b"\r\n", b"431"),
        (b"GET /livez HTTP/1.1\r\nX-Endless: " + b"x" * 1_000_000, b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"BREW /coffee HTCPCP/1.0\r\n\r\n", b"400"),
    ):
        with _connect(shared_teacher) as connection:
            try:
                connection.sendall(sent)
            except OSError:
                continue  # closed before all was sent, as it may be
            said = _said(connection)
            assert not said or said.startswith(b"HTTP/1.1 " + status), said
            if said:
                error = ErrorAnswer.model_validate_json(said.partition(b"\r\n\r\n")[2]).error
                assert str(error.status).encode() == status
    assert httpx.get(f"{shared_teacher.url}/livez", timeout=LONG_S).status_code == 200


@pytest.mark.integration
def test_a_large_body_is_no_large_head(shared_teacher: TeacherProcess) -> None:
    reply = httpx.post(f"{shared_teacher.url}/policy", content=b" " * 300_000, timeout=LONG_S)
    assert reply.status_code == 422


@pytest.mark.integration
def test_connections_are_limited(teacher_process: StartTeacher) -> None:
    teacher = teacher_process("--max-connections", "3")
    held = [_connect(teacher) for _ in range(3)]
    time.sleep(0.2)
    with _connect(teacher) as one_more:
        said = _said(one_more)
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"too many connections" in said
    for connection in held:
        connection.close()

    def answers() -> bool:
        try:
            return httpx.get(f"{teacher.url}/livez", timeout=LONG_S).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(answers, "room for connections")


@pytest.mark.integration
def test_stopping_finishes_the_questions_in_flight(
    teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    teacher = teacher_process("--delay-ms", "1500", "--drain-s", str(LONG_S))
    question = ask_about("MiniGrid-LavaGapS5-v0").model_dump()

    async def ask_and_stop() -> httpx.Response:
        async with httpx.AsyncClient(base_url=teacher.url, timeout=LONG_S) as http:
            asked = asyncio.create_task(http.post("/policy", json=question))
            await asyncio.to_thread(wait_for, lambda: metric(teacher, "teacher_in_flight") == 1, "a question")
            assert await asyncio.to_thread(teacher.stop) == 0
            return await asked

    assert asyncio.run(ask_and_stop()).status_code == 200
