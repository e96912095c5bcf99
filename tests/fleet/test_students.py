"""Sixteen students of three teachers that share a database, while teachers and the database are killed."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest

from tests.conftest import StartTeacher, TeacherProcess
from tests.fleet.postgres import PostgresServer
from tests.student.ends import assert_same_end
from tests.waiting import metric, wait_until_ready

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(1800)]

_STUDENTS = 16
_KILL_EVERY_S = 20.0
_SETTINGS = (
    *("--env", "MiniGrid-LavaGapS6-v0", "--preset", "fast", "--frames", "1024", "--evaluate-every", "512"),
    *("--evaluation-episodes", "2", "--teacher-wait-s", "600", "--no-progress"),
)


def test_students_end_as_if_nothing_had_happened(
    teacher_process: StartTeacher, database: PostgresServer, tmp_path: Path
) -> None:
    flags = ("--delay-ms", "1000", "--concurrency", "2", "--store", database.url())
    teachers = [teacher_process(*flags) for _ in range(3)]
    for teacher in teachers:
        wait_until_ready(teacher)
    students = _started(tmp_path / "disturbed", [teacher.url for teacher in teachers])
    asked = lost = kills = 0
    # The database twice, among the teachers in turn
    victims = cycle([0, "database", 1, 2, "database"])
    while any(student.poll() is None for student in students):
        time.sleep(_KILL_EVERY_S)
        victim = next(victims) if kills < 5 else kills % 3
        kills += 1
        if victim == "database":
            database.kill()
            database.start()
            continue
        teacher = teachers[int(victim)]
        asked += _asked(teacher)
        teacher.kill()
        # Those of the one that was killed are among the claims: these questions may be asked twice
        lost += len(database.query("SELECT 1 FROM claims"))
        teacher.restart()
    assert [student.wait() for student in students] == [0] * _STUDENTS
    for teacher in teachers:
        wait_until_ready(teacher)
        asked += _asked(teacher)
    ((stored,),) = database.query("SELECT count(*) FROM answers")
    print(f"\n{kills} kills; {asked} asked for {stored} questions; {lost} claims at the times of the kills")
    assert kills >= 3
    assert asked <= stored + lost

    alone = teacher_process("--store", "none")
    for student in _started(tmp_path / "undisturbed", [alone.url]):
        assert student.wait() == 0
    for seed in range(_STUDENTS):
        assert_same_end(tmp_path / "disturbed" / str(seed), tmp_path / "undisturbed" / str(seed))


def _started(folder: Path, urls: Sequence[str]) -> list["subprocess.Popen[bytes]"]:
    """Starts the students; each has its own seed, and the teachers take turns."""
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "student", "train", *_SETTINGS),
                *(f"--seed={seed}", f"--teacher={urls[seed % len(urls)]}", f"--out={folder / str(seed)}"),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        for seed in range(_STUDENTS)
    ]


def _asked(teacher: TeacherProcess) -> int:
    return int(metric(teacher, "teacher_questions_total", way="asked"))
