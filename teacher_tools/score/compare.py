"""`teacher compare`: compares scored and running teachers in a table and on a page."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from teacher_tools.score.report import ComparedTeacher, write_comparison, write_score
from teacher_tools.score.scoring import read_score, score_teacher
from teacher_tools.score.settings import CompareSettings, is_address
from teacher_tools.score.tables import as_text


def main(settings: CompareSettings) -> int:
    """Runs the command; returns 0."""
    teachers = []
    for name, where in zip(_names(settings.teachers), settings.teachers, strict=True):
        if is_address(where):
            folder = settings.out / "scores" / name.replace(":", "-")
            scored = score_teacher(where, settings, folder)
            write_score(folder, read_score(folder))
        else:
            scored = read_score(Path(where))
        teachers.append(ComparedTeacher(name, where, scored))
    tables = write_comparison(settings.out, teachers)
    for teacher in teachers:
        print(f"{teacher.name}: {teacher.score.identity}, {teacher.source}")
    for env, table in tables.items():
        print(f"\n{env}\n{as_text(table)}")
    print()
    for teacher in teachers:
        print("\n".join(f"{teacher.name}: {line}" for line in teacher.verdicts))
    print(f"\nWritten: {settings.out}/compare.html and compare.md")
    return 0


def _names(teachers: Sequence[str]) -> list[str]:
    """Returns short names: a folder's own, an address's host and port; the full text of duplicates."""
    names = [urlsplit(each).netloc if is_address(each) else Path(each).resolve().name for each in teachers]
    return [name if names.count(name) == 1 else each for name, each in zip(names, teachers, strict=True)]
