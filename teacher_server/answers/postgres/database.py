"""The PostgreSQL database: its address, its tables, their versions, and errors in words.

Nothing needs a session of its own (no prepared statements, no LISTEN, no session locks), so that the address
may be PgBouncer's with pool_mode = transaction.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from teacher_server.answers.errors import StoreError

VERSION = 1
CONNECT_S = 5
"""Seconds to wait for a connection."""

_VERSIONS = "lvlm2p_store"
"""The table whose only row is the version; it marks the database as an answer store."""
_LOCK = 0x6C766C6D
"""The transaction lock of teachers that create or upgrade the tables."""

_MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        f"CREATE TABLE {_VERSIONS} (version integer NOT NULL)",
        f"INSERT INTO {_VERSIONS} VALUES (0)",
        """CREATE TABLE teachers (
            identity    text PRIMARY KEY,
            description text NOT NULL           -- JSON: everything in the identity
        )""",
        """CREATE TABLE names (
            identity text PRIMARY KEY,
            name     text NOT NULL,             -- of the checkpoint, as it was served last
            served   double precision NOT NULL  -- seconds since 1970
        )""",
        """CREATE TABLE answers (
            question bytea PRIMARY KEY,         -- SHA-256 of the next five columns
            identity text NOT NULL,
            picture  bytea NOT NULL,            -- SHA-256 of the picture's file
            mission  text NOT NULL,
            task     text NOT NULL,
            actions  text NOT NULL,             -- in the order asked, with commas in between
            answer   text NOT NULL,             -- JSON, as it was first given
            created  double precision NOT NULL, -- seconds since 1970
            checksum bytea NOT NULL             -- of the key and the answer
        )""",
        "CREATE INDEX answers_by_age ON answers (identity, created)",
        "CREATE INDEX answers_by_picture ON answers (picture)",
        """CREATE TABLE pictures (
            digest bytea PRIMARY KEY,           -- SHA-256 of the file
            file   bytea NOT NULL               -- PNG or JPEG, as it came with a question
        )""",
        """CREATE TABLE claims (
            question bytea PRIMARY KEY,
            claimant text NOT NULL,             -- the process that asks its teacher
            expires  timestamptz NOT NULL       -- unless the claimant renews it
        )""",
    ),
}
"""By version: the statements that make it of the version before."""
_TABLES = ("teachers", "names", "answers", "pictures", "claims")


def without_secrets(address: str) -> str:
    """Returns an address for messages: without password and parameters.

    Raises:
        StoreError: it is not an address.
    """
    parts = _parts(address)
    host, port = parts.get("host") or parts.get("hostaddr") or "", parts.get("port")
    return f"postgresql://{host}{f':{port}' if port else ''}/{parts.get('dbname') or ''}"


def connection_parameters() -> dict[str, Any]:
    """Returns the parameters of every connection."""
    return {"connect_timeout": CONNECT_S, "autocommit": True, "prepare_threshold": None}


@contextmanager
def connected(address: str) -> Iterator[psycopg.Connection[Any]]:
    """Yields a connection in autocommit mode.

    Raises:
        StoreError: the database cannot be reached or used.
    """
    try:
        with psycopg.connect(address, **connection_parameters()) as connection:
            yield connection
    except psycopg.Error as error:
        raise store_error(address, error) from error


def store_error(address: str, error: Exception) -> StoreError:
    """Returns an error of the database in words, without secrets."""
    # psycopg lists the addresses that it tried, and adds a question on a second line
    said = [line for line in map(str.strip, str(error).splitlines()) if line and not line.endswith("?")]
    cause = said[-1].removeprefix("- ") if said else type(error).__name__
    if password := _parts(address).get("password"):
        cause = cause.replace(str(password), "...")
    return StoreError(f"the answer store {without_secrets(address)} cannot be used: {cause}", cause)


def prepare(connection: psycopg.Connection[Any], name: str) -> None:
    """Creates the tables of an empty database, or upgrades those of an earlier version.

    Args:
        name: the database's, for messages.

    Raises:
        StoreError: the database holds tables of another program or of a later version, or is not in UTF-8.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        version = _version(connection, name)
        if version > VERSION:
            raise StoreError(
                f"the answer store {name} is of version {version}, and this program knows {VERSION}: update"
                " the program, or set `store` to another database",
                "of a later version",
            )
        for number in range(version + 1, VERSION + 1):
            for statement in _MIGRATIONS[number]:
                connection.execute(statement)
            connection.execute(f"UPDATE {_VERSIONS} SET version = {number}")


def check(connection: psycopg.Connection[Any], name: str) -> None:
    """Checks that the database is an answer store of this version.

    Args:
        name: the database's, for messages.

    Raises:
        StoreError: it is not.
    """
    version = _version(connection, name)
    if version != VERSION:
        told = f"is of version {version}, and this program reads {VERSION}" if version else "holds no answers"
        raise StoreError(f"the answer store {name} {told}", "of another version")


def _version(connection: psycopg.Connection[Any], name: str) -> int:
    """Returns the version of the tables; 0 for an empty database.

    Raises:
        StoreError: it holds tables of another program, or its encoding is not UTF-8.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in ("UTF8", None):  # PgBouncer may not say
        raise StoreError(
            f"the answer store {name} has the encoding {encoding}: create the database with ENCODING 'UTF8'",
            "not in UTF-8",
        )
    query = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    tables = {table for (table,) in connection.execute(query)}
    if _VERSIONS in tables:
        row = connection.execute(f"SELECT version FROM {_VERSIONS}").fetchone()
        return int(row[0]) if row else 0
    if taken := sorted(tables & set(_TABLES)):
        raise StoreError(
            f"the answer store {name} is a database of another program, with a table {taken[0]}: set `store`"
            " to an empty database",
            "a database of another program",
        )
    return 0


def _parts(address: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(address)
    except psycopg.Error:
        # Without the cause: it repeats the address, which may hold a password
        raise StoreError(
            "`store` is not the address of a database: postgresql://USER@HOST:PORT/DATABASE", "no address"
        ) from None
