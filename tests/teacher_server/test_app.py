"""The HTTP API: every wrong request gets a status, a field and a reason, and never a 500."""

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from teacher_api.schemas import Answer, BatchAnswer, ErrorAnswer, ErrorBody, Question
from teacher_server.app import create_app
from teacher_server.settings import Settings
from tests.conftest import AskAbout, StartTeacher, TeacherProcess
from tests.teacher_server.pictures.test_decoding import black_png
from tests.waiting import LONG_S, metric, wait_for

pytestmark = pytest.mark.integration

_JSON = {"Content-Type": "application/json"}


@pytest.fixture
def http(shared_teacher: TeacherProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_teacher.url, timeout=LONG_S) as http:
        yield http


@pytest.fixture(scope="session")
def question(ask_about: AskAbout) -> dict[str, Any]:
    return ask_about("MiniGrid-Fetch-5x5-N2-v0").model_dump()


def _error(reply: httpx.Response) -> ErrorBody:
    error = ErrorAnswer.model_validate_json(reply.content).error
    assert error.status == reply.status_code
    return error


def _base64(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _bad_questions(question: dict[str, Any]) -> list[tuple[dict[str, Any], int, str | None, str]]:
    """(what is changed in a good question, status, field, a part of the reason)."""
    png = base64.b64decode(question["image"])
    return [
        ({"actions": []}, 422, "actions", "at least 1"),
        ({"actions": ["left", "fly"]}, 422, "actions", "'fly'"),
        ({"actions": ["left", "left"]}, 422, "actions", "once"),
        ({"actions": ["toggle", "done"]}, 422, "actions", "toggle, done"),
        ({"task": "chess"}, 422, "task", "'chess'"),
        ({"mission": "m" * 513}, 422, "mission", "512"),
        ({"mission": "dance"}, 422, "mission", "'dance'"),
        ({"mission": "\ud800"}, 422, "mission", "unicode"),
        ({"stage": "action"}, 422, "stage", "'action'"),
        ({"image": "not base64!"}, 422, "image", "not base64"),
        ({"image": ""}, 422, "image", "neither"),
        ({"image": "http://127.0.0.1/picture.png"}, 422, "image", "not base64"),
        ({"image": "file:///etc/passwd"}, 422, "image", "not base64"),
        ({"image": "data:image/png;base64," + question["image"]}, 422, "image", "not base64"),
        ({"image": _base64(b"hello")}, 422, "image", "neither a PNG nor a JPEG"),
        ({"image": _base64(png[: len(png) // 2])}, 422, "image", "broken"),
        ({"image": _base64(black_png(40, 40))}, 422, "image", "shows"),
        ({"image": _base64(black_png(20_000, 20_000))}, 413, "image", "20000 x 20000"),
        ({"image": None}, 422, "image", "string"),
        ({"stages": "both"}, 422, "stages", "no such key"),
        ({"\ud800": 1}, 422, None, "unicode"),
    ]


def test_a_question_is_answered(http: httpx.Client, question: dict[str, Any]) -> None:
    reply = http.post("/policy", json=question)
    assert reply.status_code == 200
    answer = Answer.model_validate_json(reply.content)
    assert tuple(answer.probabilities or ()) == tuple(question["actions"])
    assert answer.action in question["actions"]
    assert answer.analysis == answer.stages.analysis.text


def test_an_action_without_use_gets_nothing(http: httpx.Client, question: dict[str, Any]) -> None:
    asked = question | {"actions": ["done", "pickup", "toggle", "forward", "right", "left", "drop"]}
    probabilities = http.post("/policy", json=asked).json()["probabilities"]
    assert list(probabilities) == asked["actions"]
    assert probabilities["done"] == probabilities["toggle"] == probabilities["drop"] == 0


def test_each_bad_question_gets_its_status_field_and_reason(
    http: httpx.Client, question: dict[str, Any]
) -> None:
    for change, status, field, reason in _bad_questions(question):
        reply = http.post("/policy", content=json.dumps(question | change), headers=_JSON)
        error = _error(reply)
        assert (error.status, error.field) == (status, field), reply.text
        assert reason in error.reason
        assert len(error.reason) < 700


def test_bad_questions_in_a_batch_do_not_affect_the_others(
    http: httpx.Client, question: dict[str, Any]
) -> None:
    bad = _bad_questions(question)
    batch = [question, *(question | change for change, *_ in bad), 7, {}, question]
    reply = http.post("/policy/batch", content=json.dumps(batch), headers=_JSON)
    assert reply.status_code == 200
    first, *between, last = BatchAnswer.model_validate_json(reply.content).answers
    assert (first.status, last.status) == (200, 200)
    assert [item.status for item in between] == [status for _, status, *_ in bad] + [422, 422]


@pytest.mark.parametrize(
    ("path", "content", "status", "reason"),
    [
        ("/policy/batch", b"[]", 422, "at least 1"),
        ("/policy/batch", b"{}", 422, "list"),
        ("/policy/batch", b"[" + b"1," * 1024 + b"1]", 413, "1025 questions"),
        ("/policy", b"{", 422, "not JSON"),
        ("/policy", b"\xff\xfe", 422, "not JSON"),
        ("/policy", b"[" * 100_000, 400, "parsing"),
        ("/policy", b"", 422, "missing"),
        ("/policy", b"[]", 422, "dictionary"),
    ],
)
def test_a_bad_body_is_refused(
    http: httpx.Client, path: str, content: bytes, status: int, reason: str
) -> None:
    error = _error(http.post(path, content=content, headers=_JSON))
    assert error.status == status
    assert reason in error.reason


def test_what_is_not_sent_as_json_is_refused(http: httpx.Client) -> None:
    assert "content type" in _error(http.post("/policy", content=b"{}")).reason


def test_unknown_paths_and_methods_are_errors_of_the_same_form(http: httpx.Client) -> None:
    assert _error(http.get("/nothing")).status == 404
    assert _error(http.get("/policy")).status == 405


def test_a_large_body_is_refused_before_it_is_read(teacher_process: StartTeacher) -> None:
    teacher = teacher_process("--max-body-mib", "1")
    with httpx.Client(base_url=teacher.url, timeout=LONG_S) as http:
        told = http.post("/policy", content=b"x" * (1 << 21), headers=_JSON)
        untold = http.post("/policy", content=(b"x" * (1 << 19) for _ in range(4)), headers=_JSON)
        assert _error(told).status == _error(untold).status == 413
        assert http.get("/livez").status_code == 200


def test_the_teacher_describes_itself(http: httpx.Client) -> None:
    info = http.get("/teacher").json()
    assert info["identity"].startswith("planner-")
    assert info["description"]["kind"] == info["kind"] == "planner"
    assert info["tasks"]["lava_gap"] == ["left", "right", "forward"]


def test_before_the_teacher_is_ready_the_service_is_alive_and_not_ready(
    tmp_path: Path, question: dict[str, Any]
) -> None:
    async def ask(app: FastAPI) -> None:  # without a life span, the teacher does not start
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            assert (await http.get("/livez")).status_code == 200
            assert (await http.get("/readyz")).status_code == 503
            reply = await http.post("/policy", json=question)
            assert _error(reply).reason == "the teacher is not ready"
            assert reply.headers["Retry-After"] == "1"

    asyncio.run(ask(create_app(Settings(store=str(tmp_path / "answers.sqlite3")))))


def test_an_unexpected_error_is_500_without_its_message(tmp_path: Path) -> None:
    async def ask(app: FastAPI) -> None:
        app.state.service.host.teacher = None
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            reply = await http.get("/teacher")
        assert _error(reply).status == 500
        assert "NoneType" not in reply.text

    asyncio.run(ask(create_app(Settings(store=str(tmp_path / "answers.sqlite3")))))


def test_it_lives_and_is_ready(http: httpx.Client) -> None:
    assert http.get("/livez").json() == {"status": "alive"}
    assert http.get("/readyz").json() == {"status": "ready"}


def test_the_documentation_works_offline(http: httpx.Client) -> None:
    page = http.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert http.get(path).status_code == 200, path
    document = http.get("/openapi.json").json()
    batch = document["paths"]["/policy/batch"]["post"]["requestBody"]["content"]["application/json"]
    assert batch["schema"]["items"] == {"$ref": "#/components/schemas/Question"}
    assert set(document["components"]["schemas"]["Question"]["properties"]) == set(Question.model_fields)


def test_each_example_of_the_documentation_is_answered(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    examples = paths["/policy"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert set(examples) == set(http.get("/teacher").json()["tasks"])
    Answer.model_validate(
        paths["/policy"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    )
    for example in examples.values():
        answer = http.post("/policy", json=example["value"])
        assert answer.status_code == 200, answer.text
    batch = paths["/policy/batch"]["post"]["requestBody"]["content"]["application/json"]["examples"]["batch"]
    assert [each["status"] for each in http.post("/policy/batch", json=batch["value"]).json()["answers"]] == [
        200,
        200,
    ]
    tags = {tag for path in paths.values() for call in path.values() for tag in call["tags"]}
    assert tags == {"Questions", "Administration", "Health and metrics"}


def test_when_the_client_disconnects_the_question_is_cancelled(
    teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    teacher = teacher_process("--delay-ms", "600000")
    with httpx.Client(base_url=teacher.url, timeout=1) as http, pytest.raises(httpx.ReadTimeout):
        http.post("/policy", json=ask_about("MiniGrid-LavaGapS5-v0").model_dump())
    wait_for(lambda: metric(teacher, "teacher_in_flight") == 0, "the cancellation")
