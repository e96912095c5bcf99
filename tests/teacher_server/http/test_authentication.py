"""API keys: requests without a valid key get a 401, and no key is shown anywhere."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from teacher_api.client import TeacherClient, TeacherError
from teacher_api.keys import BadKeyFile, read_key, read_keys
from teacher_api.schemas import Answer, ErrorAnswer
from tests.conftest import AskAbout, StartTeacher, TeacherProcess
from tests.waiting import LONG_S, wait_for

_KEY = "s3cret and-long_enough=="
_TEACHER = str(Path(sys.executable).with_name("teacher"))
_BAD_KEYS = [b"tab\tin it", "schlüssel".encode(), b"\x00", b"\xff\xfe"]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "key.txt"
    file.write_text(f"  {_KEY}\r\n")
    return file


@pytest.fixture
def teacher(teacher_process: StartTeacher, key_file: Path) -> TeacherProcess:
    return teacher_process("--api-key-file", str(key_file))


def _requests(question: dict[str, Any]) -> list[tuple[str, str, Any]]:
    return [
        ("GET", "/teacher", None),
        ("POST", "/policy", question),
        ("POST", "/policy/batch", [question, question]),
        ("GET", "/playground/state", None),
        ("POST", "/playground/planner", question),
    ]


@pytest.mark.integration
def test_requests_need_a_valid_key(teacher: TeacherProcess, ask_about: AskAbout) -> None:
    question = ask_about("MiniGrid-LavaGapS5-v0").model_dump()
    headers: list[tuple[dict[str, str], int, str]] = [
        ({}, 401, "this teacher requires a key"),
        ({"Authorization": "Bearer wrong"}, 401, "the key of the request is not valid"),
        ({"Authorization": f"Bearer {_KEY}x"}, 401, "is not valid"),
        ({"Authorization": "Bearer"}, 401, "is not valid"),
        ({"Authorization": f"Basic {_KEY}"}, 401, "is not valid"),
        ({"Authorization": _KEY}, 401, "is not valid"),
        ({"Authorization": f"Bearer {_KEY}"}, 200, ""),
        ({"Authorization": f"bearer {_KEY}"}, 200, ""),
    ]
    with httpx.Client(base_url=teacher.url, timeout=LONG_S) as http:
        for method, path, body in _requests(question):
            for header, status, reason in headers:
                reply = http.request(method, path, json=body, headers=header)
                assert reply.status_code == status, (path, header, reply.text)
                if status == 401:
                    error = ErrorAnswer.model_validate_json(reply.content).error
                    assert error.status == 401
                    assert reason in error.reason
                    assert "`api_key_file`" in error.reason
                    assert reply.headers["WWW-Authenticate"] == "Bearer"
                assert _KEY not in reply.text
        for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/", "/page/playground.js"):
            reply = http.get(path)
            assert reply.status_code == 200, path
            assert _KEY not in reply.text
    assert _KEY not in teacher.greeting + teacher.stderr


@pytest.mark.integration
def test_a_body_without_the_key_is_not_read(teacher: TeacherProcess) -> None:
    with httpx.Client(base_url=teacher.url, timeout=LONG_S) as http:
        for content in (b"{", b"x" * (1 << 27)):
            assert http.post("/policy", content=content).status_code == 401
        assert http.get("/livez").status_code == 200


@pytest.mark.integration
def test_the_key_is_no_part_of_the_identity(teacher: TeacherProcess, shared_teacher: TeacherProcess) -> None:
    assert teacher.greeting.split()[-1] == shared_teacher.greeting.split()[-1]
    headers = {"Authorization": f"Bearer {_KEY}"}
    with_key = httpx.get(f"{teacher.url}/teacher", headers=headers).json()
    assert with_key == httpx.get(f"{shared_teacher.url}/teacher").json()


@pytest.mark.integration
def test_the_client_sends_the_key_and_says_what_to_do_without_one(
    teacher: TeacherProcess, key_file: Path, ask_about: AskAbout
) -> None:
    question = ask_about("MiniGrid-LavaGapS5-v0")
    for key, wants in ((None, "needs a key"), ("wrong", "needs another key than the one sent")):
        with TeacherClient(teacher.url, deadline_s=30, key=key) as client:
            for ask in (client.teacher, lambda: client.ask(question), lambda: client.ask_batch([question])):
                with pytest.raises(TeacherError) as refused:
                    ask()
                told = f"{teacher.url} {wants}: name a file that holds it in `teacher_key_file`"
                assert str(refused.value) == told
    with TeacherClient(teacher.url, deadline_s=30, key=read_key(key_file)) as client:
        assert client.teacher().kind == "planner"
        assert client.ask(question).probabilities
        assert all(isinstance(outcome, Answer) for outcome in client.ask_batch([question] * 3))


@pytest.mark.integration
def test_an_empty_key_file_requires_no_key(
    teacher_process: StartTeacher, tmp_path: Path, ask_about: AskAbout
) -> None:
    (tmp_path / "key").write_text(" \n")
    teacher = teacher_process(api_key_file=str(tmp_path / "key"))
    for key in (None, "any"):
        with TeacherClient(teacher.url, deadline_s=30, key=key) as client:
            assert client.ask(ask_about("MiniGrid-LavaGapS5-v0")).probabilities


@pytest.mark.integration
def test_a_file_without_a_key_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"one\ntw\xc3\xb6 of it")
    store = tmp_path / "answers.sqlite3"
    for file, said in (
        (tmp_path / "bad", "bad has no key in line 2: write printable ASCII characters, one key per line"),
        (tmp_path / "nowhere", "nowhere: No such file or directory; give a file with the key"),
        (tmp_path, "Is a directory"),
    ):
        command = [_TEACHER, "serve", "--port", "0", "--store", str(store), "--api-key-file", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("teacher serve: error: ")
        assert said in line
        assert "of it" not in line
    assert not store.exists()


@pytest.mark.unit
@pytest.mark.parametrize("content", _BAD_KEYS)
def test_what_cannot_be_a_key(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content + b"\n")
    with pytest.raises(BadKeyFile, match="has no key in line 1") as refused:
        read_key(file)
    assert json.dumps(content.decode("latin-1")) not in str(refused.value)
    with pytest.raises(ValueError, match="one line of printable ASCII"):
        TeacherClient("http://127.0.0.1:9", key=content.decode("latin-1"))


@pytest.mark.integration
def test_keys_come_and_go_while_the_teacher_runs(teacher_process: StartTeacher, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the institute\nerste  # alice\n\nzweite\n")
    teacher = teacher_process("--api-key-file", str(file), "--log-requests", "all")

    def status(key: str) -> int:
        url, headers = f"{teacher.url}/teacher", {"Authorization": f"Bearer {key}"}
        return httpx.get(url, headers=headers, timeout=LONG_S).status_code

    assert [status(key) for key in ("erste", "zweite", "dritte")] == [200, 200, 401]
    assert "client=alice route=/teacher status=200" in teacher.stderr
    file.write_text("zweite\ndritte\n")
    wait_for(lambda: status("erste") == 401, "a key's end")
    assert [status(key) for key in ("zweite", "dritte")] == [200, 200]
    file.write_text("")  # as while it is being written, or by mistake: the service stays closed
    wait_for(
        lambda: status("none") == 401 and "no longer holds any key" in teacher.stderr, "a look at the file"
    )
    assert [status(key) for key in ("zweite", "vierte")] == [200, 401]
    for key in ("erste", "zweite", "dritte"):
        assert key not in teacher.stderr


@pytest.mark.integration
def test_a_public_address_needs_keys_or_allow_keyless(
    teacher_process: StartTeacher, key_file: Path, tmp_path: Path
) -> None:
    command = [_TEACHER, "serve", "--port", "0", "--store", "none", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "--host 0.0.0.0 is not a loopback address, so the service requires API keys" in line
    assert "set --api-key-file, or --allow-keyless" in line
    for flags in (("--allow-keyless",), ("--api-key-file", str(key_file))):
        assert "listening on http://0.0.0.0" in teacher_process("--host", "0.0.0.0", *flags).greeting


@pytest.mark.unit
def test_a_key_file_names_the_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# comment\n one two # alice \r\nthree\n\n#four\n")
    assert read_keys(file) == {"one two": "alice", "three": "key-8b5b9db0"}
    with pytest.raises(BadKeyFile, match="holds 2 keys: give a file with one key"):
        read_key(file)


@pytest.mark.unit
def test_white_space_around_a_key_is_no_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    assert read_key(None) is None
    for content, key in ((f"\t{_KEY} \r\n\n", _KEY), ("", None), ("\r\n", None)):
        file.write_text(content)
        assert read_key(file) == key
