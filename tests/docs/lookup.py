"""Commands that are not run: what they name is looked up."""

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from pydantic_settings import BaseSettings

import student.cli
import teacher_tools.cli
from teacher_api.command_line import CannotStart, parse
from teacher_api.commands import Command as Entry
from teacher_api.commands import Group, load_settings
from tests.docs.exceptions import as_typed
from tests.docs.pages import ROOT, Command

_PROGRAMS = {"teacher": teacher_tools.cli.COMMANDS, "student": student.cli.COMMANDS}


def look_up(command: Command, *, whole: bool) -> None:
    """Fails where a command names what there is not.

    Args:
        whole: the command is complete: its values are looked at too. Else its flags alone are.
    """
    try:
        words = shlex.split(as_typed(command.text).split("|")[0])
    except ValueError as error:
        pytest.fail(f"{command}: {error}")
    folders = []
    while words and (variable := re.match(r"([A-Z_]+)=(.*)", words[0])):
        folders += [variable[2]] if variable[1] == "PYTHONPATH" else []
        words.pop(0)
    program = words[0].rsplit("/", 1)[-1]
    try:
        with pytest.MonkeyPatch.context() as patch:
            for folder in folders:
                patch.syspath_prepend(ROOT / folder)
            if program in _PROGRAMS:
                _ours(program, words[1:], whole=whole)
            elif program in _LOOK_UPS:
                _LOOK_UPS[program](words)
    except (LookupError, OSError, CannotStart) as error:
        pytest.fail(f"{command}: {error}: mend the page; what is no command is not to look like one")


def _ours(program: str, words: list[str], *, whole: bool) -> None:
    ours, _, theirs = " ".join(map(shlex.quote, words)).partition(" -- ")
    kind, arguments = _settings(program, shlex.split(ours))
    known = {
        f"--{no}{(field.alias or name).replace('_', '-')}"
        for name, field in kind.model_fields.items()
        for no in ("", "no-")
    } | {"--help"}
    if unknown := {word.split("=")[0] for word in words_that_are_flags(arguments)} - known:
        raise LookupError(f"`{program} {words[0]}` knows no {', '.join(sorted(unknown))}")
    if whole and "--help" not in arguments:
        parse(kind, arguments)
    if theirs:  # of the `teacher serve` that is started
        _ours("teacher", ["serve", *shlex.split(theirs)], whole=False)


def words_that_are_flags(words: Sequence[str]) -> list[str]:
    """The words that begin with two dashes."""
    return [word for word in words if word.startswith("--")]


def _settings(program: str, words: list[str]) -> tuple[type[BaseSettings], list[str]]:
    """The settings that a command reads, and the arguments that are left to them."""
    found: Entry | Group = _PROGRAMS[program]
    rest = list(words)
    while isinstance(found, Group):
        if rest in ([], ["--help"]):
            return BaseSettings, []  # a group of commands, such as `teacher answers`
        if rest[0] not in found.commands:
            raise LookupError(f"no command `{program} {' '.join(words)}`")
        found = found.commands[rest.pop(0)]
    return load_settings(found.settings, rest), rest


def _make(words: list[str]) -> None:
    for target in words[1:]:
        if not re.search(
            rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        ):
            raise LookupError(f"the Makefile has no {target}")


def _python(words: list[str]) -> None:
    if words[1] == "-m":
        if importlib.util.find_spec(words[2]) is None:
            raise LookupError(f"no module {words[2]}")
        source = importlib.util.find_spec(words[2])
        text = (ROOT / f"{words[2].replace('.', '/')}.py").read_text(encoding="utf-8") if source else ""
    elif words[1] == "-c":
        return
    else:
        text = (ROOT / words[1]).read_text(encoding="utf-8")
    for flag in words_that_are_flags(words):
        if flag not in text and not re.search(rf"^    {flag[2:].replace('-', '_')}: ", text, re.MULTILINE):
            raise LookupError(f"{words[1]} knows no {flag}")


def _docker(words: list[str]) -> None:
    for before, name in pairwise(words):
        if before == "-f":
            (ROOT / name).read_bytes()
    if words[1] != "compose":
        return
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    services = re.findall(r"^  ([a-z]+):$", compose.split("\nservices:\n")[1], re.MULTILINE)
    for verb in ("run", "exec"):
        if verb in words:
            rest = words[words.index(verb) + 1 :]
            while rest[0].startswith("-"):
                rest.pop(0)
            if rest[0] not in services:
                raise LookupError(f"docker-compose.yml has no service {rest[0]}")
            program, *arguments = rest if verb == "run" else rest[1:]
            if program in _PROGRAMS:
                _ours(program, arguments, whole=False)


def _pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
        if extra not in project["optional-dependencies"]:
            raise LookupError(f"pyproject.toml has no extra {extra}")


_LOOK_UPS: dict[str, Callable[[list[str]], None]] = {
    "make": _make,
    "python": _python,
    "docker": _docker,
    "pip": _pip,
}
