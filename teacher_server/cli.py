"""The `teacher` command."""

from collections.abc import Callable, Sequence

from teacher_server.command_line import CannotStart, dispatch, parse

_USAGE = """usage: teacher [--version] COMMAND ...

commands:
  serve      answer questions over HTTP; `teacher serve --help` lists the settings
  bench      measure how fast teachers answer: latency, rates, where the time goes
  check      examine a checkpoint's folder: can it be served here, offline?
  swap       have a running teacher serve another checkpoint, without a restart
  score      how good a running teacher is: as a policy, against the planner, stage by stage
  replay     list a score's failed episodes, or play one again, step by step
  compare    put scored or running teachers side by side, on one page
  answers    export, import, count or prune the stored answers
  forge      make a teacher: train a small checkpoint, or adapt a large one
  prompts    list the prompt sets, or show what a model gets to see
"""


SETTINGS = (
    "teacher_server.settings:Settings",
    "teacher_server.check:CheckSettings",
    "teacher_server.swap:SwapSettings",
    "teacher_server.show:ListSettings",
    "teacher_server.show:ShowSettings",
    "teacher_server.answers.settings:ShowSettings",
    "teacher_server.answers.settings:ExportSettings",
    "teacher_server.answers.settings:ImportSettings",
    "teacher_server.answers.settings:StatsSettings",
    "teacher_server.answers.settings:PruneSettings",
    "teacher_server.forge.settings:ForgeSettings",
    "teacher_server.bench.settings:BenchSettings",
    "teacher_server.score.settings:ScoreSettings",
    "teacher_server.score.settings:CompareSettings",
    "teacher_server.score.settings:ReplaySettings",
)
"""All commands' settings, loaded only where a variable is to be told from theirs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 failed while running, 2 could not start."""
    return dispatch("teacher", _USAGE, _COMMANDS, arguments, SETTINGS)


def _serve(arguments: Sequence[str]) -> int:
    # Imported late, so that `teacher --help` and a wrong flag answer at once
    from teacher_server.settings import Settings  # noqa: PLC0415

    settings = parse(Settings, arguments)
    from teacher_server.answers import StoreError  # noqa: PLC0415
    from teacher_server.serving import CannotListen, serve  # noqa: PLC0415
    from teacher_server.teachers.choice import CannotTeach  # noqa: PLC0415

    try:
        return serve(settings)
    except (CannotListen, CannotTeach, StoreError) as error:
        raise CannotStart(str(error)) from error


def _check(arguments: Sequence[str]) -> int:
    from teacher_server.check import main  # noqa: PLC0415

    return main(arguments)


def _swap(arguments: Sequence[str]) -> int:
    from teacher_server.swap import main  # noqa: PLC0415

    return main(arguments)


def _bench(arguments: Sequence[str]) -> int:
    from teacher_server.bench.command import main  # noqa: PLC0415

    return main(arguments)


def _prompts(arguments: Sequence[str]) -> int:
    from teacher_server.show import main  # noqa: PLC0415

    return main(arguments)


def _score(arguments: Sequence[str]) -> int:
    from teacher_server.score.commands import score  # noqa: PLC0415

    return score(arguments)


def _replay(arguments: Sequence[str]) -> int:
    from teacher_server.score.commands import replay  # noqa: PLC0415

    return replay(arguments)


def _compare(arguments: Sequence[str]) -> int:
    from teacher_server.score.commands import compare  # noqa: PLC0415

    return compare(arguments)


def _forge(arguments: Sequence[str]) -> int:
    from teacher_server.forge.command import main  # noqa: PLC0415

    return main(arguments)


def _answers(arguments: Sequence[str]) -> int:
    from teacher_server.answers.commands import main  # noqa: PLC0415

    return main(arguments)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": _serve,
    "bench": _bench,
    "check": _check,
    "swap": _swap,
    "score": _score,
    "replay": _replay,
    "compare": _compare,
    "answers": _answers,
    "forge": _forge,
    "prompts": _prompts,
}
