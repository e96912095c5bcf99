"""The store of a service in PostgreSQL: a question is asked once by all teachers that share the database.

A teacher claims a question before it asks. A claim is a row that expires unless its claimant renews it;
other teachers poll for the answer, and take over a claim that has expired.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from teacher_server.answers.errors import StoreError
from teacher_server.answers.memory import Memory
from teacher_server.answers.postgres.database import (
    CONNECT_S,
    connected,
    connection_parameters,
    prepare,
    store_error,
    without_secrets,
)
from teacher_server.answers.rows import Key, as_stored, checksum, digest, row_of
from teacher_server.answers.store import AnswerStore

_log = logging.getLogger(__name__)

_CONNECTIONS = 4
_POLL_S = 0.1
"""Seconds between two looks for the answers of others, or for a database that is away."""
_TRY_S = 1.0
"""Seconds between two tries of a database that has been away for longer than `patience_s`."""
_AT_ONCE = 1000
"""Questions in one statement, at most."""
_UNSAVED_BYTES = 64 * 2**20
"""Answers that wait in memory for a database that cannot be reached, at most."""

_REGISTER = """INSERT INTO teachers VALUES (%s, %s)
    ON CONFLICT (identity) DO UPDATE SET description = excluded.description"""
_NAME = """INSERT INTO names VALUES (%s, %s, %s)
    ON CONFLICT (identity) DO UPDATE SET name = excluded.name, served = excluded.served"""
_LOOK_UP = "SELECT question, answer, checksum FROM answers WHERE question = ANY(%s)"
_CLAIM = """INSERT INTO claims SELECT question, %(me)s, now() + %(claim_s)s * interval '1 second'
    FROM unnest(%(questions)s::bytea[]) AS question ORDER BY question
    ON CONFLICT (question) DO UPDATE SET claimant = excluded.claimant, expires = excluded.expires
        WHERE claims.expires < now() OR claims.claimant = excluded.claimant
    RETURNING question"""
_RENEW = "UPDATE claims SET expires = now() + %s * interval '1 second' WHERE claimant = %s"
_GIVE_UP = "DELETE FROM claims WHERE claimant = %s AND question = ANY(%s)"
_PUT = """WITH put AS (
        INSERT INTO answers SELECT * FROM unnest(
            %(questions)s::bytea[], %(identities)s::text[], %(pictures)s::bytea[], %(missions)s::text[],
            %(tasks)s::text[], %(actions)s::text[], %(answers)s::text[], %(created)s::float8[],
            %(checksums)s::bytea[])
        ON CONFLICT (question) DO UPDATE
            SET answer = excluded.answer, created = excluded.created, checksum = excluded.checksum
            WHERE answers.question = ANY(%(damaged)s)
    )
    DELETE FROM claims WHERE claimant = %(me)s AND question = ANY(%(questions)s)"""
_KEEP = """INSERT INTO pictures SELECT digest, file FROM unnest(%s::bytea[], %s::bytea[]) AS p (digest, file)
    WHERE EXISTS (SELECT 1 FROM answers WHERE picture = digest) ON CONFLICT DO NOTHING"""
_IS_KEPT = "SELECT digest FROM pictures WHERE digest = ANY(%s)"


@dataclass(eq=False)
class _Group:
    """Answers and pictures for one transaction, and the task that writes them."""

    answers: dict[Key, tuple[str, float]] = field(default_factory=dict)
    pictures: dict[bytes, bytes] = field(default_factory=dict)
    written: asyncio.Task[None] | None = None


class PostgresStore(AnswerStore):
    """Answers in a PostgreSQL database, which teachers on any machine may share.

    Every method but the constructor and `register` is called in one event loop. While the database cannot be
    reached, answers wait in memory and are stored when it is back.
    """

    def __init__(
        self, address: str, *, memory_mib: float = 256.0, claim_s: float = 15.0, patience_s: float = 10.0
    ) -> None:
        """Creates the tables of an empty database.

        Args:
            address: postgresql://USER@HOST:PORT/DATABASE.
            memory_mib: MiB of answers that are also held in memory, so that each is fetched once.
            claim_s: seconds after which other teachers ask a question whose claimant has died.
            patience_s: seconds that questions wait for a database that cannot be reached.

        Raises:
            StoreError: the database cannot be used, or is not an answer store of a known version.
        """
        self.address, self._name = address, without_secrets(address)
        with connected(address) as connection:
            prepare(connection, self._name)
        self._memory = Memory(memory_mib * 2**20)
        self._claim_s, self._patience_s = claim_s, patience_s
        self._me = uuid.uuid4().hex
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] | None = None
        self._waiting: dict[Key, asyncio.Future[str | None]] = {}
        self._new: set[Key] = set()
        self._wake = asyncio.Event()
        self._claimed: set[Key] = set()
        self._given_up: set[Key] = set()
        self._damaged: set[Key] = set()
        self._group, self._turn = _Group(), asyncio.Lock()
        self._unsaved: dict[Key, tuple[str, float]] = {}
        self._down_since: float | None = None
        self._failure: StoreError | None = None
        self._tried = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def register(self, identity: str, description: dict[str, Any], name: str | None = None) -> None:
        """Stores a teacher's description."""
        with connected(self.address) as connection, connection.transaction():
            connection.execute(_REGISTER, (identity, as_stored(description)))
            if name is not None:
                connection.execute(_NAME, (identity, name, time.time()))

    def get_many(self, keys: Iterable[Key]) -> dict[Key, str | None]:
        """Returns the answers that are held in memory."""
        held = {key: self._memory.get(key) for key in keys}
        return {key: answer for key, answer in held.items() if answer is not None}

    async def claim(self, key: Key) -> str | None:
        """Returns the answer, or None when the question is claimed; waits while another teacher asks it."""
        if not _storable(key):
            return None
        await self._started()
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting[key] = answer
        self._new.add(key)
        self._wake.set()
        try:
            return await answer
        except asyncio.CancelledError:
            self.give_up(key)
            raise
        finally:
            self._waiting.pop(key, None)
            self._new.discard(key)

    def give_up(self, key: Key) -> None:
        """Deletes the claim soon."""
        if key in self._claimed:
            self._claimed.discard(key)
            self._given_up.add(key)
            self._wake.set()

    async def put(self, key: Key, answer: str, picture: bytes | None = None) -> None:
        """Stores an answer, and deletes the claim with it."""
        if not _storable(key):
            return
        await self._started()
        self._memory.put(key, answer)
        self._group.answers[key] = answer, time.time()
        if picture is not None:
            self._group.pictures[key.picture] = picture
        await self._written()

    async def keep(self, pictures: Mapping[bytes, bytes]) -> None:
        """Stores picture files of stored answers."""
        await self._started()
        kept = {bytes(each) for (each,) in await self._run(_IS_KEPT, (list(pictures),))}
        if new := {each: file for each, file in pictures.items() if each not in kept}:
            self._group.pictures |= new
            await self._written()

    async def close(self) -> None:
        """Writes what is not written yet, gives all claims up, and closes the connections."""
        if self._pool is None:
            return
        if self._group.written is not None:
            await asyncio.wait([self._group.written])
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        with suppress(StoreError):
            await self._save_unsaved()
            await self._run("DELETE FROM claims WHERE claimant = %s", (self._me,))
        await self._pool.close()

    async def _started(self) -> None:
        if self._pool is None:
            logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # failures are raised as StoreError
            self._pool = pool = AsyncConnectionPool[AsyncConnection[Any]](
                self.address,
                min_size=1,
                max_size=_CONNECTIONS,
                timeout=_TRY_S,
                reconnect_timeout=CONNECT_S,
                kwargs=connection_parameters(),
                open=False,
            )
            self._tasks = [asyncio.create_task(each()) for each in (self._resolve_claims, self._renew)]
            await pool.open()

    async def _resolve_claims(self) -> None:
        """Finds the answers of those that wait in `claim`, or claims their questions."""
        due = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic()) if self._waiting else None):
                    await self._wake.wait()
            self._wake.clear()
            keys = list(self._new)
            if time.monotonic() >= due:
                keys, due = list(self._waiting), time.monotonic() + _POLL_S
            self._new.clear()
            try:
                await self._delete_given_up()
                for first in range(0, len(keys), _AT_ONCE):
                    await self._resolve(keys[first : first + _AT_ONCE])
            except StoreError as error:
                self._fail_waiting(error)
            except Exception:
                _log.exception("the answer store failed")
                self._fail_waiting(StoreError("the answer store failed; see the teacher's log"))

    def _fail_waiting(self, error: StoreError) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    async def _resolve(self, keys: Sequence[Key]) -> None:
        """Ends the waiting of those questions that are answered, or that nobody else asks."""
        missing = await self._found({digest(*key.columns): key for key in keys})
        if not missing:
            return
        terms = {"me": self._me, "claim_s": self._claim_s, "questions": list(missing)}
        claimed = {bytes(each): missing[bytes(each)] for (each,) in await self._run(_CLAIM, terms)}
        self._claimed |= set(claimed.values())
        # Once more: an answer may have been put, and its claim deleted, since the first look-up
        to_ask = await self._found(claimed)
        for question, key in claimed.items():
            if question not in to_ask or not self._land(key, None):
                self.give_up(key)

    async def _found(self, questions: Mapping[bytes, Key]) -> dict[bytes, Key]:
        """Hands stored answers to those that wait for them; returns the questions without one."""
        missing = dict(questions)
        for each, answer, stored in await self._run(_LOOK_UP, (list(questions),)) if questions else ():
            question = bytes(each)
            key = questions[question]
            if checksum(*key.columns, answer) != bytes(stored):
                self._damaged.add(key)
                continue
            del missing[question]
            self._memory.put(key, answer)
            self._land(key, answer)
        return missing

    def _land(self, key: Key, answer: str | None) -> bool:
        """Ends the waiting for a question; returns whether anybody waited."""
        future = self._waiting.get(key)
        if future is None or future.done():
            return False
        future.set_result(answer)
        return True

    async def _delete_given_up(self) -> None:
        if given_up := set(self._given_up):
            await self._run(_GIVE_UP, (self._me, [digest(*key.columns) for key in given_up]))
            self._given_up -= given_up

    async def _renew(self) -> None:
        """Renews the claims, and stores the answers that could not be stored when they were given."""
        while True:
            await asyncio.sleep(min(1.0, self._claim_s / 3) if self._unsaved else self._claim_s / 3)
            with suppress(StoreError):
                if self._claimed:
                    await self._run(_RENEW, (self._claim_s, self._me))
                await self._save_unsaved()

    async def _written(self) -> None:
        """Returns when the current group is in the database."""
        group = self._group
        if group.written is None:
            group.written = asyncio.create_task(self._write_in_turn(group))
        await asyncio.shield(group.written)

    async def _write_in_turn(self, group: _Group) -> None:
        # Answers that arrive while a group is being written form the next group
        async with self._turn:
            self._group = _Group()
            try:
                await self._put(group.answers)
                if group.pictures:
                    await self._run(_KEEP, (list(group.pictures), list(group.pictures.values())))
            except StoreError:
                self._unsaved |= group.answers
                while sum(len(answer) for answer, _ in self._unsaved.values()) > _UNSAVED_BYTES:
                    self._unsaved.pop(next(iter(self._unsaved)))
                raise

    async def _save_unsaved(self) -> None:
        if self._unsaved:
            async with self._turn:
                saved = dict(self._unsaved)
                await self._put(saved)
                for key in saved:
                    self._unsaved.pop(key, None)

    async def _put(self, answers: Mapping[Key, tuple[str, float]]) -> None:
        if not answers:
            return
        # In one order, so that teachers that put the same answers do not lock each other out
        by_digest = dict(sorted((digest(*key.columns), key) for key in answers))
        rows = [row_of(key, *answers[key]) for key in by_digest.values()]
        names = ("identities", "pictures", "missions", "tasks", "actions", "answers", "created", "checksums")
        terms: dict[str, Any] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        terms["questions"] = list(by_digest)
        terms["damaged"] = [question for question, key in by_digest.items() if key in self._damaged]
        await self._run(_PUT, terms | {"me": self._me})
        self._damaged -= set(answers)
        self._claimed -= set(answers)

    async def _run(self, query: LiteralString, terms: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
        """Runs a statement and returns its rows; tries again while the database is away, up to `patience_s`.

        Every statement may be run twice, since its result may be lost with the connection.

        Raises:
            StoreError: the database cannot be used.
        """
        assert self._pool is not None
        while True:
            if self._failure is not None and time.monotonic() - self._tried < _TRY_S and self._is_away():
                raise self._failure
            self._tried = time.monotonic()
            try:
                async with self._pool.connection() as connection:
                    cursor = await connection.execute(query, terms)
                    rows = await cursor.fetchall() if cursor.description else []
            except (psycopg.OperationalError, PoolTimeout) as error:
                self._failure = store_error(self.address, error)
                if self._down_since is None:
                    self._down_since = time.monotonic()
                if self._is_away():
                    raise self._failure from error
                await asyncio.sleep(_POLL_S)
            except psycopg.Error as error:
                raise store_error(self.address, error) from error
            else:
                if self._down_since is not None:
                    _log.info("the answer store %s is back", self._name)
                    self._down_since = self._failure = None
                return rows

    def _is_away(self) -> bool:
        """Returns whether the database has been away for longer than questions wait for it."""
        return self._down_since is not None and time.monotonic() - self._down_since > self._patience_s


def _storable(key: Key) -> bool:
    """Returns whether PostgreSQL can store the key's texts."""
    return not any("\0" in text for text in (key.mission, key.task))
