"""`teacher score`, `teacher replay` and `teacher compare`."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from teacher_api.client import TeacherError
from teacher_api.command_line import fail, parse
from teacher_tools.score.settings import CompareSettings, ReplaySettings, ScoreSettings, is_address


def score(arguments: Sequence[str]) -> int:
    """Scores a running teacher; returns the exit code: 0 done, 3 the teacher cannot be used or was lost."""
    settings = parse(ScoreSettings, arguments)
    # Imported late, so that a wrong flag is answered at once
    from teacher_tools.score.pages import score_table, write_score  # noqa: PLC0415
    from teacher_tools.score.score import read_score, score_teacher  # noqa: PLC0415
    from teacher_tools.score.words import as_text, verdicts  # noqa: PLC0415

    try:
        scored = score_teacher(settings.url, settings, settings.out)
    except TeacherError as error:
        return fail("teacher score", error, 3)
    print(f"{settings.url}: {scored.identity}\n\n{as_text(score_table(scored))}\n")
    print("\n".join(verdicts(scored)))
    if settings.out:
        write_score(settings.out, read_score(settings.out))
        print(f"\nWritten: {settings.out}/score.md, and score.json, reliability.png and mistakes/ beside it")
        failed = sum(
            len(p.failures) for task in scored.tasks.values() for p in (task.argmax, task.sampled) if p
        )
        if failed:
            print(f"{failed} episodes without success: `teacher replay {settings.out}` lists them")
    return 0


def replay(arguments: Sequence[str]) -> int:
    """Lists or replays episodes without success; returns the exit code: 0 done, 3 the teacher was lost."""
    settings = parse(ReplaySettings, arguments)
    from teacher_tools.score import replay as replaying  # noqa: PLC0415
    from teacher_tools.score.score import read_score  # noqa: PLC0415

    scored = read_score(settings.score)
    episodes = replaying.failing_episodes(scored)
    if settings.seed is None:
        print("\n".join(episode.title for episode in episodes) or "no episode failed")
        return 0
    episode = replaying.choose(episodes, settings)
    steps: list[replaying.Step] = []
    try:
        for step in replaying.replay(episode, scored.identity, settings):
            if not steps:
                print(f"{episode.title}\n{step.scene.mission}\n")
            print(replaying.in_words(step), flush=True)
            steps.append(step)
    except TeacherError as error:
        return fail("teacher replay", error, 3)
    if settings.gif is not None:
        replaying.animate(steps, settings.gif)
        print(f"\nWritten: {settings.gif}")
    return 0


def compare(arguments: Sequence[str]) -> int:
    """Puts teachers side by side; returns the exit code: 0 done, 3 a teacher cannot be used or was lost."""
    settings = parse(CompareSettings, arguments)
    from teacher_tools.score.pages import Compared, write_comparison, write_score  # noqa: PLC0415
    from teacher_tools.score.score import read_score, score_teacher  # noqa: PLC0415
    from teacher_tools.score.words import as_text  # noqa: PLC0415

    teachers = []
    for name, where in zip(_names(settings.teachers), settings.teachers, strict=True):
        if is_address(where):
            folder = settings.out / "scores" / name.replace(":", "-")
            try:
                scored = score_teacher(where, settings, folder)
            except TeacherError as error:
                return fail("teacher compare", error, 3)
            write_score(folder, read_score(folder))
        else:
            scored = read_score(Path(where))
        teachers.append(Compared(name, where, scored))
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
    """Short names: a folder's own, an address's host and port; in full where two would be the same."""
    names = [urlsplit(each).netloc if is_address(each) else Path(each).resolve().name for each in teachers]
    return [name if names.count(name) == 1 else each for name, each in zip(names, teachers, strict=True)]
