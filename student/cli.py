"""The `student` command."""

from collections.abc import Callable, Sequence
from typing import Any

from teacher_api.client import TeacherError
from teacher_api.command_line import dispatch, fail, parse
from teacher_api.terminal import say

_USAGE = """usage: student [--version] COMMAND ...

commands:
  train       train a student, alone or with a teacher; or go on with a run
  evaluate    play held-out episodes with a student or with a teacher
  export      write a student into one file that plays without torch, and measure it
  report      make figures, tables and a page from runs, or from a sweep's folder
  sweep       train all students of a plan, many at once; or go on with a sweep

`student COMMAND --help` lists a command's settings.
"""


SETTINGS = (
    "student.settings:TrainSettings",
    "student.settings:EvaluateSettings",
    "student.settings:ExportSettings",
    "student.experiments.plans:SweepSettings",
    "student.experiments.report:ReportSettings",
    "student.demo:DemoSettings",
)
"""All commands' settings, loaded only where a variable is to be told from theirs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0 done, 1 runs of a sweep failed, 2 could not start, 3 the teacher cannot be used or
        was lost, 4 the run's folder takes no more, 5 the environment failed, 130 interrupted.
    """
    return dispatch("student", _USAGE, _COMMANDS, arguments, SETTINGS)


def _train(arguments: Sequence[str]) -> int:
    # Imported late, so that `student --help` and a wrong flag answer at once
    from student.settings import train_settings_for  # noqa: PLC0415

    settings = parse(train_settings_for(arguments), arguments)
    if settings.teacher == "none" and settings.preset == "fast" and settings.resume is None:
        say(
            "note: --preset fast is for a student with a teacher; alone it learns better by --preset alone,"
            " the default"
        )
    from student.train import train_seeds  # noqa: PLC0415
    from student.trainer import Stopped, train  # noqa: PLC0415

    successes = []
    try:
        for summary in train_seeds(settings) if settings.seeds > 1 else [train(settings)]:
            _print_summary(summary)
            successes.append(summary["success"])
    except Stopped as error:
        return fail("student train", error, error.exit_code)
    except TeacherError as error:
        return fail("student train", error, 3)
    if settings.seeds > 1:
        print(
            f"{settings.seeds} seeds: success {sum(successes) / len(successes):.3f} on average, from"
            f" {min(successes):.3f} to {max(successes):.3f}; curves: student report {settings.out}"
        )
    return 0


def _print_summary(summary: dict[str, Any]) -> None:
    print(_in_a_line(summary))
    _print_report({"sampled": summary["sampled"], "argmax": summary["argmax"]})


def _in_a_line(summary: dict[str, Any]) -> str:
    """What a run came to."""
    from student.labels.failures import in_words  # noqa: PLC0415

    line = f"{summary['env']}: {summary['frames']} frames in {summary['seconds']:.0f} s of training"
    if summary["frames_per_second"]:
        line += f" ({summary['frames_per_second']:.0f} frames/s)"
    if summary["teacher"] is None:
        return f"{line}; without a teacher"
    line += f"; asked {summary['questions']} questions, {summary['store_hits']} more from the store"
    if summary["failed"]:
        # Runs of earlier versions kept no reasons
        why = in_words(summary.get("failures", []))
        line += f"; {summary['failed']} of these states have no label{f': {why}' if why else ''}"
    return line


def _evaluate(arguments: Sequence[str]) -> int:
    from student.settings import EvaluateSettings  # noqa: PLC0415

    settings = parse(EvaluateSettings, arguments)
    from student.runs.evaluate import score  # noqa: PLC0415
    from student.runs.folder import write_json  # noqa: PLC0415

    try:
        report = score(settings)
    except TeacherError as error:
        return fail("student evaluate", error, 3)
    _print_report(report)
    if settings.out:
        write_json(settings.out, report)
    return 0


def _export(arguments: Sequence[str]) -> int:
    from student.settings import ExportSettings  # noqa: PLC0415

    settings = parse(ExportSettings, arguments)
    from student.runs.export import export, table  # noqa: PLC0415

    try:
        figures = export(settings)
    except TeacherError as error:
        return fail("student export", error, 3)
    print(table(figures))
    return 0


def _report(arguments: Sequence[str]) -> int:
    from student.experiments.report import ReportSettings, report  # noqa: PLC0415

    out, notes = report(parse(ReportSettings, arguments))
    for note in notes:
        say(f"note: {note}")
    print(f"Written: {out}/report.html, and its figures and tables beside it")
    return 0


def _sweep(arguments: Sequence[str]) -> int:
    from student.experiments.plans import SweepSettings, ignore_variables, read_plan  # noqa: PLC0415

    settings = parse(SweepSettings, arguments)
    ignore_variables()
    plan = read_plan(settings.plan)
    for note in plan.notes():
        say(f"note: {note}")
    from student.experiments.sweep import Interrupted, sweep  # noqa: PLC0415

    try:
        failed = sweep(settings, plan)
    except Interrupted as error:
        return fail("student sweep", error, 130)
    except TeacherError as error:
        return fail("student sweep", error, 3)
    for name, why in failed.items():
        fail("student sweep", f"{name}: {why}", 1)
    return 1 if failed else 0


def _print_report(report: dict[str, dict[str, Any]]) -> None:
    print(f"{'actions':9}{'episodes':>9}{'success':>9}  {'95 %':15}{'return':>7}  {'95 %':15}{'length':>7}")
    for name, row in report.items():
        print(
            f"{name:9}{row['episodes']:9}{row['success']:9.3f}  {_interval(row['success_interval']):15}"
            f"{row['return']:7.3f}  {_interval(row['return_interval']):15}{row['length']:7.1f}"
        )


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}..{interval[1]:.3f}"


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "sweep": _sweep,
}
