"""A PostgreSQL server of a test's own, on a free port of 127.0.0.1, which can be killed and started again."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

from tests.waiting import wait_for

PASSWORD = "s3cret-word"


@cache
def programs() -> Path:
    """The folder of PostgreSQL's programs; the test is skipped where they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parent.parent.name)
    path = found[-1] if found else shutil.which("initdb")
    if path is None:
        pytest.skip("PostgreSQL's programs are not installed: Debian's package postgresql")
    return Path(path).parent


class PostgresServer:
    """A server with an empty database `answers`; its user `teacher` has a password.

    Attributes:
        port: the port on 127.0.0.1.
    """

    def __init__(self, folder: Path) -> None:
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            os.chown(folder, *_user())
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._folder, self._log = folder / "data", folder / "log"
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        user = ("-U", "teacher", "--pwfile", password, "-A", "scram-sha-256")
        self._run("initdb", "-D", self._folder, "-E", "UTF8", *user)
        self.start()
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE answers")

    def url(self, database: str = "answers", password: str = PASSWORD, port: int | None = None) -> str:
        """Returns the address of a database."""
        return f"postgresql://teacher:{password}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Starts the server, and waits until it answers."""
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=200"
        )
        self._run("pg_ctl", "-D", self._folder, "-l", self._log, "-o", options, "-w", "-t", "60", "start")

    def kill(self) -> None:
        """Kills the server with all its processes, as a power cut would."""
        pid = int((self._folder / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not _lives(pid), "the end of PostgreSQL", 30)

    def stop(self) -> None:
        """Stops the server."""
        self._run("pg_ctl", "-D", self._folder, "-m", "immediate", "-w", "stop", check=False)

    def query(self, query: str, *terms: Any) -> list[Any]:
        """Runs a statement as an administrator would."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(query, terms)  # type: ignore[call-overload]
            return list(cursor.fetchall()) if cursor.description else []

    def _run(self, program: str, *arguments: object, check: bool = True) -> None:
        command = [str(programs() / program), *map(str, arguments)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, **_unprivileged()
        )
        assert not check or done.returncode == 0, done.stderr.decode()


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """Yields a server, and stops it after the block."""
    programs()
    with TemporaryDirectory(prefix="postgres-") as folder:  # pytest's own folders are closed to other users
        server = PostgresServer(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def pgbouncer(server: PostgresServer) -> Iterator[int]:
    """Yields the port of a PgBouncer before a server, which pools by transaction."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("PgBouncer is not installed: Debian's package pgbouncer")
    with TemporaryDirectory(prefix="pgbouncer-") as name, closing(socket.socket()) as free:
        folder = Path(name)
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
        (folder / "users").write_text(f'"teacher" "{PASSWORD}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\nanswers = host=127.0.0.1 port={server.port} dbname=answers\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npool_mode = transaction\n"
            f"auth_type = scram-sha-256\nauth_file = {folder}/users\ndefault_pool_size = 3\n"
        )
        free.close()
        if os.getuid() == 0:
            os.chown(folder, *_user())
        with subprocess.Popen([program, "-q", folder / "pgbouncer.ini"], **_unprivileged()) as process:
            try:
                wait_for(lambda: _listens(port), "PgBouncer", 30)
                yield port
            finally:
                process.kill()


def _listens(port: int) -> bool:
    with closing(socket.socket()) as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _user() -> tuple[int, int]:
    user = pwd.getpwnam("postgres")
    return user.pw_uid, user.pw_gid


def _unprivileged() -> dict[str, Any]:
    if os.getuid() != 0:
        return {}
    user, group = _user()
    return {"user": user, "group": group, "extra_groups": [], "cwd": "/"}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
