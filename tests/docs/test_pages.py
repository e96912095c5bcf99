"""What the commands of the README and the docs name is there."""

import re

import pytest

from tests.docs.exceptions import NOT_RUN, PLACEHOLDERS, SHORTER, not_run
from tests.docs.lookup import look_up
from tests.docs.pages import PAGES, Command, inline_commands, steps


def _commands(page: str) -> list[Command]:
    return [step for step in steps(page) if isinstance(step, Command)]


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
