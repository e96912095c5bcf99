"""The `student` command."""

from collections.abc import Sequence

from teacher_api.commands import Command, Group, dispatch

COMMANDS = Group(
    "train students, alone or with a teacher, and compare them",
    {
        "train": Command(
            "train a student, alone or with a teacher; or resume a run",
            "student.settings:train_settings_for",
            "student.train:main",
        ),
        "evaluate": Command(
            "play held-out episodes with a student or with a teacher",
            "student.runs.settings:EvaluateSettings",
            "student.runs.evaluate:main",
        ),
        "export": Command(
            "write a student into one file that plays without torch, and measure it",
            "student.runs.settings:ExportSettings",
            "student.runs.export:main",
        ),
        "report": Command(
            "make figures, tables and a page from runs, or from a sweep's folder",
            "student.experiments.settings:ReportSettings",
            "student.experiments.report:main",
        ),
        "sweep": Command(
            "train all students of a plan, many at once; or resume a sweep",
            "student.experiments.settings:SweepSettings",
            "student.experiments.sweep:main",
        ),
    },
)

FURTHER_SETTINGS = ("student.demo:DemoSettings",)
"""Of `python -m student.demo`, whose variables begin with STUDENT_ too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0 done, 1 runs of a sweep failed, 2 could not start, 3 the teacher cannot be used or
        was lost, 4 the run's folder takes no more, 5 the environment failed, 130 interrupted.
    """
    return dispatch("student", COMMANDS, arguments, FURTHER_SETTINGS)
