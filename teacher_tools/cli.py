"""The `teacher` command."""

from collections.abc import Callable, Sequence

from teacher_api.command_line import dispatch

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
    "teacher_tools.check:CheckSettings",
    "teacher_tools.swap:SwapSettings",
    "teacher_tools.prompts:ListSettings",
    "teacher_tools.prompts:ShowSettings",
    "teacher_tools.answers.settings:ShowSettings",
    "teacher_tools.answers.settings:ExportSettings",
    "teacher_tools.answers.settings:ImportSettings",
    "teacher_tools.answers.settings:StatsSettings",
    "teacher_tools.answers.settings:PruneSettings",
    "teacher_tools.train.settings:ForgeSettings",
    "teacher_tools.bench.settings:BenchSettings",
    "teacher_tools.score.settings:ScoreSettings",
    "teacher_tools.score.settings:CompareSettings",
    "teacher_tools.score.settings:ReplaySettings",
)
"""All commands' settings, loaded only where a variable is to be told from theirs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 failed while running, 2 could not start."""
    return dispatch("teacher", _USAGE, _COMMANDS, arguments, SETTINGS)


def _serve(arguments: Sequence[str]) -> int:
    # Imported late, so that `teacher --help` and a wrong flag answer at once
    from teacher_server.serve import main  # noqa: PLC0415

    return main(arguments)


def _check(arguments: Sequence[str]) -> int:
    from teacher_tools.check import main  # noqa: PLC0415

    return main(arguments)


def _swap(arguments: Sequence[str]) -> int:
    from teacher_tools.swap import main  # noqa: PLC0415

    return main(arguments)


def _bench(arguments: Sequence[str]) -> int:
    from teacher_tools.bench.command import main  # noqa: PLC0415

    return main(arguments)


def _prompts(arguments: Sequence[str]) -> int:
    from teacher_tools.prompts import main  # noqa: PLC0415

    return main(arguments)


def _score(arguments: Sequence[str]) -> int:
    from teacher_tools.score.commands import score  # noqa: PLC0415

    return score(arguments)


def _replay(arguments: Sequence[str]) -> int:
    from teacher_tools.score.commands import replay  # noqa: PLC0415

    return replay(arguments)


def _compare(arguments: Sequence[str]) -> int:
    from teacher_tools.score.commands import compare  # noqa: PLC0415

    return compare(arguments)


def _forge(arguments: Sequence[str]) -> int:
    from teacher_tools.train.command import main  # noqa: PLC0415

    return main(arguments)


def _answers(arguments: Sequence[str]) -> int:
    from teacher_tools.answers.command import main  # noqa: PLC0415

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
