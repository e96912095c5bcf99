"""Files that are replaced atomically."""

from pathlib import Path

import pytest

from teacher_api.files import write_whole

pytestmark = pytest.mark.unit


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, b"old")
    (tmp_path / "file.part").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
