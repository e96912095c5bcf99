"""Every command of the README and the docs works, in the order of its page."""

import re
from pathlib import Path

import pytest

from tests.docs import exceptions
from tests.docs.exceptions import NOT_RUN, PLACEHOLDERS, SHORTER, not_run
from tests.docs.lookup import look_up
from tests.docs.pages import PAGES, ROOT, Command, Reply, Stop, inline_commands, steps
from tests.docs.reader import Reader

_ONE_AFTER_ANOTHER = (
    (
        *("README.md", "start/quickstart.md", "start/pandas.md"),
        *("guides/answers.md", "guides/train-student.md", "guides/export.md"),
    ),
    ("guides/sweeps.md", "guides/reports.md"),
    ("reference/policy.md", "start/checkpoint.md", "guides/swap.md"),
    ("guides/bench.md", "guides/score.md", "guides/playground.md", "guides/serve.md", "how/planner.md"),
    ("guides/prompts.md", "start/environment.md"),
)
"""Pages under docs/ that are read in one folder, beside the same servers: no command is run twice."""


def _commands(page: str) -> list[Command]:
    return [step for step in steps(page) if isinstance(step, Command)]


def _is_run(page: str) -> bool:
    return any(not_run(command.text) is None for command in _commands(page))


_GROUPS = [tuple(page if page in PAGES else f"docs/{page}" for page in pages) for pages in _ONE_AFTER_ANOTHER]
_READINGS = [
    *_GROUPS,
    *((page,) for page in PAGES if _is_run(page) and not any(page in pages for pages in _GROUPS)),
]


@pytest.mark.integration
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pages", _READINGS, ids="+".join)
def test_the_commands_of_a_page_work_in_their_order(pages: tuple[str, ...], tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    if any("models/A" in exceptions.as_typed(command.text) for page in pages for command in _commands(page)):
        reader.bring_checkpoints()
    try:
        for step in (step for page in pages for step in steps(page)):
            if isinstance(step, Stop):
                reader.stop_newest()
            elif isinstance(step, Reply):
                reader.compare(step)
            elif not_run(step.text) is None:
                reader.type(step)
    finally:
        reader.leave()


@pytest.mark.unit
@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_names_what_there_is(page: str) -> None:
    for command in _commands(page):
        if not_run(command.text) is not None:
            look_up(command, whole=True)
    for command in inline_commands(page):
        look_up(command, whole=False)


@pytest.mark.unit
def test_no_exception_outlives_its_command() -> None:
    texts = [command.text for page in PAGES for command in (*_commands(page), *inline_commands(page))]
    stale = {
        *(pattern for pattern in NOT_RUN if not any(not_run(text) == pattern for text in texts)),
        *(part for part in SHORTER if not any(part in text for text in texts)),
        *(word for word in PLACEHOLDERS if not any(re.search(rf"\b{word}\b", text) for text in texts)),
    }
    assert not stale, f"tests/docs/exceptions.py: no command needs {sorted(stale)} any more: take it away"


@pytest.mark.unit
def test_what_runs_them_instead_is_there() -> None:
    named = {path for reason in NOT_RUN.values() for path in re.findall(r"(?:tests|tools)/\S+", reason)}
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert named
    assert not missing, f"tests/docs/exceptions.py: NOT_RUN names {missing}"


@pytest.mark.unit
@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page: str) -> None:
    packages = (
        "gridworld|worlds|teacher_api|teacher_server|teacher_tools|student|tests|tools|benchmarks|prompts"
        "|sweeps"
    )
    named = set(re.findall(rf"`((?:{packages})/[\w./-]+)`", (ROOT / page).read_text(encoding="utf-8")))
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing, f"{page} names {missing}"
