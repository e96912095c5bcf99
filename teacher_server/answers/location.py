"""The name of an answer store: a file, or a database."""

from teacher_server.answers.errors import StoreError


def is_address(store: str) -> bool:
    """Returns whether a store's name is the address of a PostgreSQL database, and not a file."""
    return store.startswith(("postgresql://", "postgres://"))


def needs_postgres(error: ImportError) -> StoreError:
    """Returns the error of an address without the packages for it."""
    return StoreError(
        f"`store` in a database needs the extra `postgres`: pip install 'lvlm2p[postgres]' ({error})",
        "the extra `postgres` is not installed",
    )
