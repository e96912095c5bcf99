"""Fixtures: PostgreSQL servers."""

from collections.abc import Iterator

import pytest

from tests.fleet.postgres import PostgresServer, postgres


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server for the tests of a module."""
    with postgres() as started:
        yield started


@pytest.fixture
def database(server: PostgresServer) -> PostgresServer:
    """The module's server, with an empty database."""
    server.query("DROP SCHEMA public CASCADE")
    server.query("CREATE SCHEMA public")
    return server
