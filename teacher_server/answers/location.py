"""The name of an answer store: a file, or a database."""

from pathlib import Path
from urllib.parse import quote, urlsplit

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


def with_password(address: str, file: Path | None) -> str:
    """Returns a database's address with the password in a file; None: the address as it is.

    Raises:
        StoreError: the file cannot be read, or the address has a password already.
    """
    if file is None:
        return address
    try:
        password = file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise StoreError(f"`store_password_file`: cannot read {file}: {why}", "no password") from error
    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    if ":" in user:
        raise StoreError("`store_password_file`: `store` has a password already", "two passwords")
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}").geturl()
