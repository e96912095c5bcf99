"""Flags, variables, help and errors of every command."""

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

import student.cli
import teacher_tools.cli
from student.demo import DemoSettings
from student.settings import TrainSettings
from teacher_api.command_line import BadSetting, flags_of, groups_of, parse
from teacher_api.commands import load_settings, settings_of
from teacher_api.terminal import say, speak_as
from teacher_server.settings import Settings
from teacher_tools.fleet import DeploySettings
from teacher_tools.train.train import serve_command

pytestmark = pytest.mark.unit

_ROOT = Path(__file__).parents[2]
_SETTINGS = (*settings_of(teacher_tools.cli.COMMANDS), *settings_of(student.cli.COMMANDS))


def _help(kind: type[BaseSettings], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        parse(kind, ["--help"])
    return capsys.readouterr().out


def test_every_settings_class_belongs_to_a_command() -> None:
    found = {
        getattr(importlib.import_module(".".join(path.relative_to(_ROOT).with_suffix("").parts)), name)
        for package in ("teacher_server", "teacher_tools", "student")
        for path in (_ROOT / package).rglob("*.py")
        for name in re.findall(
            r"^class (\w+)\(.*\b(?:Base)?Settings\):", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert found == {*map(load_settings, _SETTINGS), DemoSettings}


@pytest.mark.parametrize("where", _SETTINGS)
def test_help_names_values_by_their_meaning(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = _help(load_settings(where), capsys)
    assert not re.findall(r"--[a-z-]+ (?:str|int|float|bool|Path|list|tuple)\b", said)
    assert "(default: null)" not in said


@pytest.mark.parametrize("kind", [Settings, DeploySettings, TrainSettings])
def test_long_helps_are_in_groups(kind: type[BaseSettings], capsys: pytest.CaptureFixture[str]) -> None:
    groups = groups_of(kind)
    assert "" not in groups.values()
    said = _help(kind, capsys)
    for title in groups.values():
        assert said.count(f"\n{title}:\n") == 1


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--enviroment=X", "unknown flag --enviroment: did you mean --environments or --env?"),
        ("--Seed", "unknown flag --Seed: did you mean --seed?"),
        ("--fram", "unknown flag --fram: did you mean --frames?"),
        ("--rollout_steps", "unknown flag --rollout_steps: did you mean --rollout-steps?"),
        ("-seed", "unknown flag -seed: did you mean --seed?"),
        ("--zzz", "unknown flag --zzz; `student train --help` lists them"),
        ("runs/x", "'runs/x' is one argument too many; `student train --help` shows the usage"),
    ],
)
def test_unknown_flags_get_a_suggestion(flag: str, said: str) -> None:
    with pytest.raises(BadSetting) as refused:
        parse(TrainSettings, [flag])
    assert str(refused.value) == said


def test_an_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert student.cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "student: error: no command 'trian': did you mean train?\n"


def test_an_error_names_flags_in_place_of_settings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert teacher_tools.cli.main(["check"]) == 2
    assert capsys.readouterr().err == "teacher check: error: MODEL is missing: name the checkpoint's folder\n"
    assert (
        student.cli.main(["train", "--teacher", "http://127.0.0.1:9", "--env", "MiniGrid-MemoryS7-v0"]) == 2
    )
    assert capsys.readouterr().err.startswith("student train: error: --task is missing: MiniGrid-MemoryS7-v0")
    speak_as("teacher serve", flags_of(Settings))
    say("`max_model_len` and `model` are settings; `teacher serve` and `policy` are not")
    assert capsys.readouterr().err == (
        "teacher serve: --max-model-len and --model are settings; `teacher serve` and `policy` are not\n"
    )


def test_unknown_variables_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("STUDENT_FRAME", "student_lamda", "STUDENT_ZZZ"):
        monkeypatch.setenv(name, "3")
    for name in ("STUDENT_LAMBDA", "student_seed", "STUDENT_RESAMPLES", "STUDENT_RUN", "STUDENT_DEMO_FRAMES"):
        monkeypatch.setenv(name, "3")  # of some command, or of docker-compose.yml
    monkeypatch.setenv("STUDENT_EMPTY", "")
    monkeypatch.setenv("STUDENT_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("STUDENT_SERVICE_HOST", "10.0.0.1")
    assert student.cli.main(["evaluate", str(tmp_path)]) == 2
    *warnings, _ = capsys.readouterr().err.splitlines()
    assert warnings == [
        "student: warning: no command reads the variable STUDENT_FRAME: did you mean STUDENT_FRAMES?",
        "student: warning: no command reads the variable STUDENT_LAMDA: did you mean STUDENT_LAMBDA?",
        "student: warning: no command reads the variable STUDENT_ZZZ",
    ]


def test_the_extra_of_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "teacher_server.serve", raising=False)  # so that it is imported anew
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert teacher_tools.cli.main(["serve"]) == 2
    assert capsys.readouterr().err == (
        "teacher serve: error: uvicorn is not installed: pip install 'lvlm2p[teacher]'\n"
    )


def test_the_command_that_train_prints_serves_here(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    program, command, *flags = shlex.split(serve_command(folder, "compact"))
    settings = parse(Settings, flags)
    assert (program, command, settings.model, settings.prompts) == ("teacher", "serve", folder, "compact")
    assert importlib.util.find_spec(settings.engine) is not None
