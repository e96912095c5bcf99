"""Texts are UTF-8, whatever the locale: no file and no pipe is read or written in the locale's encoding."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("gridworld", "teacher_server", "student", "prompts", "benchmarks", "docker")
_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Variables that make ASCII the locale's encoding in Python."""


def _in_the_locales_encoding(tree: ast.AST) -> Iterator[int]:
    """The lines of calls that open a text, or a pipe as text, and name no encoding."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or any(keyword.arg == "encoding" for keyword in call.keywords):
            continue
        method = call.func.attr if isinstance(call.func, ast.Attribute) else None
        name = method or (call.func.id if isinstance(call.func, ast.Name) else "")
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        mode = given.get("mode") or (call.args[method is None :] or [None])[0]
        binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
        of_os = (
            method
            and isinstance(call.func.value, ast.Name)
            and call.func.value.id in ("os", "gzip", "Image", "Run", "pool")
        )
        texts = (
            (name == "open" and not binary and not of_os)
            or (name == "read_text" and not call.args)
            or (name == "write_text" and len(call.args) == 1)
        )
        pipes = name in ("run", "Popen", "check_output") and "text" in given
        if texts or pipes:
            yield call.lineno


@pytest.mark.unit
def test_no_text_is_opened_in_the_locales_encoding() -> None:
    found = [
        f"{path.relative_to(_ROOT)}:{line}"
        for package in _PACKAGES
        for path in sorted((_ROOT / package).rglob("*.py"))
        for line in _in_the_locales_encoding(ast.parse(path.read_bytes()))
    ]
    assert not found, f'say encoding="utf-8": {", ".join(found)}'


@pytest.mark.integration
def test_a_plan_and_a_prompt_set_in_utf_8_are_read_under_an_ascii_locale(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('# Größe ≥ 6\nenvs = ["MiniGrid-Grün-v0"]\n', encoding="utf-8")
    sweep = _run("student.cli", "sweep", str(plan), "--out", str(tmp_path / "out"))
    assert sweep.returncode == 2
    assert b"unknown environment" in sweep.stderr
    assert b"no TOML" not in sweep.stderr

    prompts = tmp_path / "set"
    for path in (_ROOT / "prompts/minigrid-zero-shot").rglob("*"):
        copy = prompts / path.relative_to(_ROOT / "prompts/minigrid-zero-shot")
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    with (prompts / "system.txt").open("a", encoding="utf-8") as system:
        system.write("Größe ≥ 6\n")
    picture = str(tmp_path / "picture.png")
    shown = _run("teacher_tools.cli", "prompts", "show", str(prompts), "--task", "fetch", "--out", picture)
    assert shown.returncode == 0, shown.stderr
    assert b"Gr\\xf6\\xdfe \\u2265 6" in shown.stdout  # what ASCII cannot say, as Python writes it


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    code = f"import sys, {module}; sys.exit({module}.main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env={**os.environ, **_ASCII}, capture_output=True, check=False)
