"""The service against its own OpenAPI document: requests that it allows and requests that it forbids."""

import os
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.chaos.bodies import Bodies
from tests.conftest import StartTeacher, TeacherProcess
from tests.waiting import LONG_S

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

CASES = int(os.environ.get("CHAOS_CASES", "10000"))
"""Cases over all operations; set the environment variable for a shorter run."""
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
_LONGEST_S = 60


@pytest.fixture
def guarded_teacher(teacher_process: StartTeacher, tmp_path: Path) -> TeacherProcess:
    """A teacher that requires both keys."""
    for name in ("api", "admin"):
        (tmp_path / name).write_text(f"{name}-key")
    return teacher_process(
        *("--api-key-file", str(tmp_path / "api")), *("--admin-key-file", str(tmp_path / "admin"))
    )


def test_every_reply_conforms_to_the_document(guarded_teacher: TeacherProcess, bodies: Bodies) -> None:
    teacher = guarded_teacher
    # As a client gets the document: fetched, without keys
    schema = schemathesis.openapi.from_url(f"{teacher.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    with_body = [operation for operation in operations if operation.body]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    process = psutil.Process(teacher.process.pid)
    seen: Counter[tuple[str, int]] = Counter()
    mib, longest_s = [process.memory_info().rss / 2**20], 0.0

    with requests.Session() as session:

        def check(case: schemathesis.Case) -> None:
            nonlocal longest_s
            number = seen.total()
            key = ("admin" if case.path.startswith("/admin") else "api") + "-key"
            # One request in eight has a wrong key; half of the bodies have a readable picture
            headers = {"Authorization": f"Bearer {key if number % 8 else 'another'}"}
            if number % 2:
                _give_pictures(case.body, bodies)
            began = time.perf_counter()
            response = case.call(session=session, headers=headers, timeout=_LONGEST_S)
            longest_s = max(longest_s, time.perf_counter() - began)
            case.validate_response(response, checks=_CHECKS)
            seen[case.operation.label, response.status_code] += 1

        def run(operation: schemathesis.APIOperation, mode: GenerationMode, count: int) -> None:
            @settings(
                max_examples=count,
                deadline=None,
                database=None,
                derandomize=True,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def check_one(case: schemathesis.Case) -> None:
                check(case)

            check_one()

        for operation in operations:
            for mode in modes if operation.body else modes[:1]:
                run(operation, mode, CASES // 100)
        mib.append(process.memory_info().rss / 2**20)
        # Operations without a body have few cases: the others make up the number
        while (missing := CASES - seen.total()) > 0:
            before = seen.total()
            for operation in with_body:
                for mode in modes:
                    run(operation, mode, missing // (2 * len(with_body)) + 1)
            assert seen.total() > before
            mib.append(process.memory_info().rss / 2**20)

    table = {f"{label} {status}": count for (label, status), count in sorted(seen.items())}
    print(f"\napi: {seen.total()} cases, the longest took {longest_s * 1000:.0f} ms: {table}")
    print(f"api: teacher's memory {', '.join(f'{each:.0f}' for each in mib)} MiB")
    assert seen.total() >= CASES
    assert {label for label, _ in seen} == {operation.label for operation in operations}
    assert mib[-1] < 1.1 * mib[1] + 30
    assert httpx.get(f"{teacher.url}/readyz", timeout=LONG_S).status_code == 200


@pytest.mark.parametrize("path", ["/policy", "/policy/batch", "/admin/checkpoint"])
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"image":' * 20_000,
        b'{"image":' + b"1" * 5000 + b"}",
        b'{"mission": "\\ud800"}',
        b'{"\\ud800": 1}',
        b"\xff\xfe\x00",
        b"",
        b"null",
        b'{"model": "/\\u0000"}',
    ],
    ids=["deep lists", "deep objects", "long number", "half a character", "key", "bytes", "", "null", "zero"],
)
def test_bodies_that_the_generators_do_not_make(
    guarded_teacher: TeacherProcess, path: str, body: bytes
) -> None:
    key = "admin-key" if path.startswith("/admin") else "api-key"
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    reply = httpx.post(guarded_teacher.url + path, content=body, headers=headers, timeout=LONG_S)
    document = httpx.get(f"{guarded_teacher.url}/openapi.json", timeout=LONG_S).json()["paths"][path]["post"]
    assert str(reply.status_code) in document["responses"], reply.text
    assert reply.json()["error"]["reason"]


def _give_pictures(body: object, bodies: Bodies) -> None:
    for question in body if isinstance(body, list) else [body]:
        if isinstance(question, dict):
            known = bodies.question()
            question |= {name: known[name] for name in ("image", "mission", "task") if name in question}
