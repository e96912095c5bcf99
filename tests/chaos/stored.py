"""Compares an answer store with a fresh planner's answers and with the store's earlier content."""

import asyncio
import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from gridworld.pictures import draw, encode_png
from teacher_server.pictures.decoding import decode
from teacher_server.teachers.base import Observation
from teacher_server.teachers.planner import PlannerTeacher
from tests.student.ends import checkpoint
from worlds.minigrid import layout_of

_Key = tuple[str, bytes, str, str, str]
_ROWS = "SELECT identity, picture, mission, task, actions, answer FROM answers"


class Ledger:
    """The pictures of all questions by digest, and every answer seen in the store."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._planner = PlannerTeacher()
        self._pictures: dict[bytes, bytes] = {}
        self._seen: dict[_Key, str] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def add_picture(self, picture: bytes) -> bytes:
        """Records a picture's file; returns its digest."""
        digest = hashlib.sha256(picture).digest()
        self._pictures[digest] = picture
        return digest

    def add_run(self, run: Path) -> None:
        """Records the pictures of all states that a run has labels for."""
        state = checkpoint(run)
        layout = layout_of(state["env"])
        for row in state["labels"]["keys"].numpy():
            self.add_picture(encode_png(draw(layout.view(row))))

    def check(self, acknowledged: set[bytes]) -> None:
        """Checks that the file is sound, no answer is lost or changed, and each is the planner's.

        Args:
            acknowledged: digests of the pictures of answers given while the store was writable.
        """
        with closing(sqlite3.connect(f"file:{self._store}?mode=ro", uri=True, timeout=60)) as reader:
            assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = {row[:5]: row[5] for row in reader.execute(_ROWS)}
        lost = self._seen.keys() - rows.keys()
        assert not lost, f"{len(lost)} answers are lost"
        for key, answer in rows.items():
            if key in self._seen:
                assert answer == self._seen[key]
            else:
                self._compare(key, json.loads(answer))
        self._seen = rows
        missing = acknowledged - {key[1] for key in rows}
        assert not missing, f"{len(missing)} answers were given and are not stored"

    def _compare(self, key: _Key, answer: dict[str, Any]) -> None:
        identity, digest, mission, task, actions = key
        assert identity == self._planner.identity == answer["teacher"]
        picture = decode(self._pictures[digest], max_pixels=4096 * 4096)
        asked = Observation(picture, mission, task, tuple(actions.split(",")), "both")
        given = asyncio.run(self._planner.answer(asked))
        assert answer["probabilities"] == given.probabilities
        assert answer["analysis"] == given.analysis.text
