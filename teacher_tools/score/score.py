"""`teacher score`: measures how good a running teacher is."""

from teacher_tools.score.report import score_table, write_score
from teacher_tools.score.scoring import read_score, score_teacher
from teacher_tools.score.settings import ScoreSettings
from teacher_tools.score.tables import as_text, verdicts


def main(settings: ScoreSettings) -> int:
    """Runs the command; returns 0."""
    scored = score_teacher(settings.url, settings, settings.out)
    print(f"{settings.url}: {scored.identity}\n\n{as_text(score_table(scored))}\n")
    print("\n".join(verdicts(scored)))
    if settings.out:
        write_score(settings.out, read_score(settings.out))
        print(f"\nWritten: {settings.out}/score.md, score.json, reliability.png and mistakes/")
        failed = sum(
            len(p.failures) for task in scored.tasks.values() for p in (task.argmax, task.sampled) if p
        )
        if failed:
            print(f"{failed} episodes failed: `teacher replay {settings.out}` lists them")
    return 0
