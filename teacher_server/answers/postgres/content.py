"""What a store in PostgreSQL holds, for the commands that show, carry and delete answers."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from teacher_server.answers.content import TABLES, ImportReport, StoreContent, StoreRow
from teacher_server.answers.postgres import database
from teacher_server.answers.reading import description_of
from teacher_server.answers.rows import Row, digest, is_sound, is_valid
from teacher_server.answers.size import Deleted

_AT_ONCE = 256
"""Answers read, or deleted, in one transaction."""
_COLUMNS = "identity, picture, mission, task, actions, answer, created, checksum"
_ANSWERS = f"SELECT {_COLUMNS} FROM answers WHERE identity = %s AND task = coalesce(%s, task) ORDER BY"
_IN_ORDER = f'{_ANSWERS} picture, mission COLLATE "C", task COLLATE "C", actions COLLATE "C"'
_NEWEST_FIRST = f"{_ANSWERS} created DESC"
_BOTH = f"""SELECT question, new.answer, {", ".join(f"old.{name}" for name in _COLUMNS.split(", "))}
    FROM new_answers AS new JOIN answers AS old USING (question)"""
_STORED = "octet_length(answer) + octet_length(mission) + 200"
"""About the bytes that an answer takes."""
_DELETE_OLDEST = f"""DELETE FROM answers WHERE question IN (SELECT question FROM answers
        WHERE identity = %s AND created <= %s ORDER BY created LIMIT {_AT_ONCE})
    RETURNING picture, {_STORED}"""
_DELETE_PICTURES = """DELETE FROM pictures
    WHERE digest = ANY(%s) AND NOT EXISTS (SELECT 1 FROM answers WHERE picture = digest)
    RETURNING octet_length(file)"""


class PostgresContent(StoreContent):
    """The content of a database. Methods raise psycopg.Error if it cannot be read or written."""

    version = database.VERSION

    def __init__(self, connection: psycopg.Connection[Any], name: str) -> None:
        super().__init__(name)
        self._connection = connection
        self._used: int | None = None
        """Bytes in use between two calls of `evict`."""

    def teachers(self) -> dict[str, dict[str, Any] | None]:
        """Returns each identity with its description."""
        found = dict(self._rows("SELECT DISTINCT identity, NULL FROM answers"))
        found |= dict(self._rows("SELECT identity, description FROM teachers"))
        return {identity: description_of(identity, found[identity]) for identity in sorted(found)}

    def names(self) -> dict[str, str]:
        """Returns the checkpoints' names."""
        return dict(self._rows("SELECT identity, name FROM names"))

    def answers(
        self, identity: str, *, task: str | None = None, newest_first: bool = False
    ) -> Iterator[Row | None]:
        """Yields a teacher's answers."""
        query = _NEWEST_FIRST if newest_first else _IN_ORDER
        with self._connection.transaction(), self._connection.cursor("answers") as cursor:
            cursor.itersize = _AT_ONCE
            for row in cursor.execute(query, (identity, task)):
                yield _checked(row)

    def picture(self, digest: bytes) -> bytes | None:
        """Returns a stored picture, if it is whole."""
        rows = self._rows("SELECT file FROM pictures WHERE digest = %s", (digest,))
        return bytes(rows[0][0]) if rows and hashlib.sha256(rows[0][0]).digest() == digest else None

    def merge(self, rows: Iterable[StoreRow]) -> ImportReport:
        """Adds rows; all rows are read before the tables are written."""
        connection = self._connection
        with connection.transaction():
            for table in TABLES.values():
                connection.execute(f"CREATE TEMP TABLE new_{table} (LIKE {table}) ON COMMIT DROP")
            for row in rows:
                table, values = TABLES[len(row), type(row[0])], list[Any](row)
                if table == "answers":
                    values.insert(0, digest(*row[:5]))
                holes = ", ".join(["%s"] * len(values))
                connection.execute(f"INSERT INTO new_{table} VALUES ({holes})", values)
            differ = 0
            for question, new, *old in self._rows(_BOTH):
                if _checked(old) is None:
                    connection.execute("DELETE FROM answers WHERE question = %s", (question,))
                else:
                    differ += json.loads(new)["probabilities"] != json.loads(old[5])["probabilities"]
            for table in TABLES.values():
                put = connection.execute(
                    f"INSERT INTO {table} SELECT DISTINCT ON (1) * FROM new_{table} ON CONFLICT DO NOTHING"
                )
                if table == "answers":
                    new_answers = put.rowcount
            (total,) = self._rows("SELECT count(*) FROM new_answers")[0]
        return ImportReport(new_answers, total - new_answers, differ)

    def count(self, identity: str | None = None, before: float = math.inf) -> int:
        """Returns the number of answers."""
        query = "SELECT count(*) FROM answers WHERE identity = coalesce(%s, identity) AND created <= %s"
        return int(self._rows(query, (identity, before))[0][0])

    def delete(self, identity: str, before: float = math.inf) -> Iterator[int]:
        """Deletes answers, and their pictures."""
        while deleted := self._delete(identity, before)[0]:
            yield deleted

    def evict(self, max_bytes: float) -> Deleted | None:
        """Deletes a few of the oldest answers."""
        used = self.in_use if self._used is None else self._used
        oldest = self._rows("SELECT identity FROM answers ORDER BY created LIMIT 1")
        if used <= max_bytes or not oldest:
            self._used = None
            return None
        (identity,) = oldest[0]
        deleted, size = self._delete(identity, math.inf)
        self._used = used - size
        return Deleted(identity, deleted)

    def _delete(self, identity: str, before: float) -> tuple[int, int]:
        """Deletes some of a teacher's oldest answers with their pictures; returns how many, and the bytes."""
        with self._connection.transaction():
            deleted = self._rows(_DELETE_OLDEST, (identity, before))
            pictures = self._rows(_DELETE_PICTURES, ([picture for picture, _ in deleted],))
        return len(deleted), sum(size for _, size in deleted) + sum(size for (size,) in pictures)

    def shrink(self) -> None:
        """Gives space free for new rows; VACUUM FULL, which locks the tables, would return it to the disk."""
        for table in TABLES.values():
            self._connection.execute(f"VACUUM {table}")

    @property
    def in_use(self) -> int:
        """About the bytes of all answers and pictures."""
        answers = self._rows(f"SELECT coalesce(sum({_STORED}), 0) FROM answers")[0][0]
        return int(answers + self._rows("SELECT coalesce(sum(octet_length(file)), 0) FROM pictures")[0][0])

    @property
    def on_disk(self) -> int:
        """The size of the tables with their indexes."""
        query = "SELECT sum(pg_total_relation_size(to_regclass(name))) FROM unnest(%s::text[]) AS name"
        return int(self._rows(query, (list(TABLES.values()),))[0][0])

    def damage(self) -> str | None:
        """Returns None: PostgreSQL checks its pages itself, and answers have checksums."""
        return None

    def _rows(self, query: str, terms: Any = None) -> list[Any]:
        return self._connection.execute(query, terms).fetchall()


@contextmanager
def postgres_content(address: str, *, make: bool = False) -> Iterator[PostgresContent]:
    """Yields the content of a database; with `make`, creates the tables if there are none.

    Raises:
        StoreError: the database cannot be used.
    """
    name = database.without_secrets(address)
    with database.connected(address) as connection:
        (database.prepare if make else database.check)(connection, name)
        yield PostgresContent(connection, name)


def _checked(row: Any) -> Row | None:
    """Returns an answer's row, or None for a damaged one."""
    identity, picture, mission, task, actions, answer, created, checksum = row
    picture, checksum = bytes(picture), bytes(checksum)
    sound = is_sound(identity, picture, mission, task, actions, answer, checksum)
    if not sound or not is_valid(identity, actions, answer):
        return None
    return identity, picture, mission, task, actions, answer, created, checksum
