"""The password of a database, from a file."""

from pathlib import Path

import pytest

from teacher_server.answers.errors import StoreError
from teacher_server.answers.location import with_password

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("address", "whole"),
    [
        ("postgresql://teacher@db:5432/answers", "postgresql://teacher:a%3Ab%2F%40c@db:5432/answers"),
        ("postgresql://db/answers?sslmode=require", "postgresql://:a%3Ab%2F%40c@db/answers?sslmode=require"),
    ],
)
def test_the_password_becomes_part_of_the_address(address: str, whole: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("a:b/@c\n")
    assert with_password(address, file) == whole
    assert with_password(address, None) == address


def test_what_cannot_be_used(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(StoreError, match=f"`store_password_file`: cannot read {missing}: No such file"):
        with_password("postgresql://teacher@db/answers", missing)
    file = tmp_path / "password"
    file.write_text("secret")
    with pytest.raises(StoreError, match="`store` has a password already") as caught:
        with_password("postgresql://teacher:other@db/answers", file)
    assert "secret" not in str(caught.value)
    assert "other" not in str(caught.value)
