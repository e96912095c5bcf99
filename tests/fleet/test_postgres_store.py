"""The answer store in a real PostgreSQL: shared, claimed, damaged, killed and started again."""

import asyncio
import dataclasses
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from teacher_server.answers.errors import StoreError
from teacher_server.answers.postgres.store import PostgresStore
from teacher_server.answers.rows import Key
from tests.conftest import StartTeacher
from tests.fleet.postgres import PASSWORD, PostgresServer, pgbouncer
from tests.teacher_server.answers.stores import OTHER_KEYS
from tests.waiting import wait_until_ready

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]

KEY = Key("planner-1", b"p" * 32, "get the «key»", "fetch", ("left", "right"))


@asynccontextmanager
async def _opened(address: str, **settings: Any) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(address, **settings)
    store.register("planner-1", {"kind": "planner"}, "a name")
    try:
        yield store
    finally:
        await store.close()


def _with_two(
    test: Callable[[PostgresStore, PostgresStore], Awaitable[None]], address: str, **settings: Any
) -> None:
    """Runs a test with the stores of two teachers."""

    async def run() -> None:
        async with _opened(address, **settings) as one, _opened(address, **settings) as other:
            await test(one, other)

    asyncio.run(run())


@pytest.fixture(params=["direct", "through PgBouncer"])
def address(request: pytest.FixtureRequest, database: PostgresServer) -> Any:
    if request.param == "direct":
        yield database.url()
    else:
        with pgbouncer(database) as port:
            yield database.url(port=port)


def test_an_answer_is_asked_for_once(address: str, database: PostgresServer) -> None:
    async def test(one: PostgresStore, other: PostgresStore) -> None:
        assert one.get_many([KEY]) == {}
        assert await one.claim(KEY) is None
        waiting = asyncio.create_task(other.claim(KEY))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await one.put(KEY, '{"a": 1}', b"a picture")
        assert await waiting == '{"a": 1}'
        assert one.get_many([KEY]) == other.get_many([KEY]) == {KEY: '{"a": 1}'}
        await other.put(KEY, '{"a": 2}')  # the first one stays

    _with_two(test, address)
    assert database.query("SELECT answer FROM answers") == [('{"a": 1}',)]
    assert database.query("SELECT * FROM claims") == []
    assert database.query("SELECT file FROM pictures") == [(b"a picture",)]
    assert database.query("SELECT name FROM names") == [("a name",)]


@pytest.mark.parametrize("change", OTHER_KEYS)
def test_each_part_of_the_key_distinguishes_answers(database: PostgresServer, change: dict[str, Any]) -> None:
    async def test(one: PostgresStore, other: PostgresStore) -> None:
        await one.put(KEY, "{}")
        assert await other.claim(dataclasses.replace(KEY, **change)) is None

    _with_two(test, database.url())


def test_many_questions_of_many_teachers(address: str, database: PostgresServer) -> None:
    """Each of 500 questions is asked by one of four teachers, and all get its answer."""
    keys = [dataclasses.replace(KEY, picture=i.to_bytes(32)) for i in range(500)]
    asked: list[Key] = []

    async def ask(store: PostgresStore, me: int, key: Key) -> str:
        answer = await store.claim(key)
        if answer is None:
            asked.append(key)
            await asyncio.sleep(0.01)
            answer = f'"{me}"'
            await store.put(key, answer)
        return answer

    async def run() -> list[list[str]]:
        stores = [PostgresStore(address, memory_mib=0) for _ in range(4)]
        answers = await asyncio.gather(
            *(asyncio.gather(*(ask(store, me, key) for key in keys)) for me, store in enumerate(stores))
        )
        await asyncio.gather(*(store.close() for store in stores))
        return answers

    answers = asyncio.run(run())
    assert sorted(asked, key=lambda key: key.picture) == keys
    assert all(len(set(each)) == 1 for each in zip(*answers, strict=True))
    assert database.query("SELECT count(*) FROM answers") == [(500,)]


def test_a_question_that_is_given_up_is_asked_by_another(database: PostgresServer) -> None:
    async def test(one: PostgresStore, other: PostgresStore) -> None:
        assert await one.claim(KEY) is None
        waiting = asyncio.create_task(other.claim(KEY))
        await asyncio.sleep(0.2)
        one.give_up(KEY)
        assert await asyncio.wait_for(waiting, 5) is None
        waiting = asyncio.create_task(one.claim(KEY))
        await asyncio.sleep(0.2)
        waiting.cancel()  # its client has gone
        other.give_up(KEY)
        assert await asyncio.wait_for(other.claim(KEY), 5) is None

    _with_two(test, database.url())


_CLAIMER = """
import asyncio, sys
from teacher_server.answers.postgres.store import PostgresStore
from tests.fleet.test_postgres_store import KEY
async def main():
    store = PostgresStore(sys.argv[1], claim_s=2)
    assert await store.claim(KEY) is None
    print("claimed", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_a_claim_outlives_its_time_but_not_its_claimant(database: PostgresServer) -> None:
    claimer = subprocess.Popen([sys.executable, "-c", _CLAIMER, database.url()], stdout=subprocess.PIPE)
    assert claimer.stdout is not None
    assert claimer.stdout.readline() == b"claimed\n"

    async def run() -> None:
        async with _opened(database.url(), claim_s=2) as store:
            waiting = asyncio.create_task(store.claim(KEY))
            await asyncio.sleep(4)
            assert not waiting.done()  # renewed
            claimer.send_signal(signal.SIGKILL)
            assert await asyncio.wait_for(waiting, 10) is None

    try:
        asyncio.run(run())
    finally:
        claimer.kill()
        claimer.wait()


def test_a_damaged_answer_is_asked_for_again_and_replaced(database: PostgresServer) -> None:
    async def put(store: PostgresStore, _: PostgresStore) -> None:
        await store.put(KEY, '"right"')

    async def ask(store: PostgresStore, _: PostgresStore) -> None:
        assert await store.claim(KEY) is None
        await store.put(KEY, '"again"')

    _with_two(put, database.url())
    database.query("UPDATE answers SET answer = '\"wrong\"'")
    _with_two(ask, database.url())
    assert database.query("SELECT answer FROM answers") == [('"again"',)]


def test_a_mission_that_cannot_be_stored_is_asked_about(database: PostgresServer) -> None:
    async def test(one: PostgresStore, other: PostgresStore) -> None:
        key = dataclasses.replace(KEY, mission="a\0b")
        assert await one.claim(key) is None
        await one.put(key, "{}")
        assert await other.claim(key) is None

    _with_two(test, database.url())


def test_a_server_that_is_killed_and_comes_back(database: PostgresServer) -> None:
    """A claim and an answer wait for it; what was claimed stays claimed."""

    async def test(one: PostgresStore, other: PostgresStore) -> None:
        second = dataclasses.replace(KEY, mission="second")
        assert await one.claim(KEY) is None
        database.kill()
        putting = asyncio.create_task(one.put(KEY, '"kept"'))
        claiming = asyncio.create_task(other.claim(second))
        await asyncio.sleep(0.5)
        assert not putting.done()
        assert not claiming.done()
        await asyncio.to_thread(database.start)
        await asyncio.wait_for(putting, 10)
        assert await asyncio.wait_for(claiming, 10) is None
        assert await asyncio.wait_for(other.claim(KEY), 10) == '"kept"'

    _with_two(test, database.url(), patience_s=60)


def test_a_server_that_stays_away_costs_the_store_alone(database: PostgresServer) -> None:
    async def test(one: PostgresStore, other: PostgresStore) -> None:
        assert await one.claim(KEY) is None
        database.kill()
        with pytest.raises(
            StoreError, match=r"the answer store postgresql://127.0.0.1:\d+/answers cannot be used"
        ):
            await one.put(KEY, '"late"')
        assert one.get_many([KEY]) == {KEY: '"late"'}
        with pytest.raises(StoreError):
            await other.claim(dataclasses.replace(KEY, mission="second"))
        await asyncio.to_thread(database.start)
        for _ in range(200):
            if await asyncio.to_thread(database.query, "SELECT answer FROM answers"):
                break
            await asyncio.sleep(0.1)

    _with_two(test, database.url(), patience_s=1)
    assert database.query("SELECT answer FROM answers") == [('"late"',)]


def _of_another_program(database: PostgresServer) -> None:
    database.query("CREATE TABLE answers (text text)")


def _of_a_later_version(database: PostgresServer) -> None:
    PostgresStore(database.url())
    database.query("UPDATE lvlm2p_store SET version = 99")


@pytest.mark.parametrize(
    ("spoil", "address", "told"),
    [
        (_of_another_program, {}, "is a database of another program, with a table answers"),
        (_of_a_later_version, {}, "is of version 99, and this program knows 1"),
        (None, {"password": "wrong-word"}, "password authentication failed"),
        (None, {"port": 1}, "Connection refused"),
        (None, {"database": "nothing"}, 'database "nothing" does not exist'),
    ],
)
def test_what_is_no_store_is_refused_in_one_line(
    database: PostgresServer,
    spoil: Callable[[PostgresServer], None] | None,
    address: dict[str, Any],
    told: str,
) -> None:
    if spoil:
        spoil(database)
    command = [
        Path(sys.executable).with_name("teacher"),
        "serve",
        "--port",
        "0",
        "--store",
        database.url(**address),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert told in line
    assert PASSWORD not in line
    assert "wrong-word" not in line


def test_a_broken_address_is_not_repeated() -> None:
    with pytest.raises(StoreError, match="`store` is not the address of a database") as caught:
        PostgresStore(f"postgresql://teacher:{PASSWORD}@[::1/answers")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_store_all_texts_is_refused(database: PostgresServer, encoding: str) -> None:
    name = encoding.lower()
    database.query(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    with pytest.raises(StoreError, match=f"has the encoding {encoding}: create the database with ENCODING"):
        PostgresStore(database.url(name))
    database.query(f"DROP DATABASE {name}")


def test_the_password_may_be_in_a_file(
    database: PostgresServer, tmp_path: Path, teacher_process: StartTeacher
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    address = database.url().replace(f":{PASSWORD}@", "@")
    teacher = teacher_process("--store", address, "--store-password-file", str(file))
    wait_until_ready(teacher)
    teacher.end()
    command = ["teacher", "answers", "stats", "--store", address, "--store-password-file", str(file)]
    done = subprocess.run(
        [Path(sys.executable).with_name(command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
