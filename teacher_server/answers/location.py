"""The name of an answer store: a file, or a database."""


def is_address(store: str) -> bool:
    """Returns whether a store's name is the address of a PostgreSQL database, and not a file."""
    return store.startswith(("postgresql://", "postgres://"))
