"""Checkpoints exchanged in a running teacher, by transformers: who answers what, and the way back."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from student.labels.table import LabelTable, TeacherChanged
from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, ErrorAnswer, ErrorBody, Question, Swapped
from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.prompting.prompt_set import SETS
from teacher_tools.bench.questions import distinct_questions
from teacher_tools.cli import main
from tests.conftest import StartTeacher, TeacherProcess, started_teachers
from tests.teacher_server.checkpoints.breaking import (
    BLIND,
    NOT_NUMBERS,
    WITHOUT_VISION,
    Break,
    change_tensors,
    quantise,
)
from tests.waiting import LONG_S, metric, wait_for, wait_until_ready
from tools.random_checkpoint import make_checkpoint
from worlds.minigrid import MinigridWorld, Vocabulary, layout_of
from worlds.world import Environments

pytestmark = pytest.mark.integration

_KEY = "the-admin-key"
_HEADERS = {"Authorization": f"Bearer {_KEY}"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, `one` and `two`, of different shapes."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "one")
    make_checkpoint(folder / "two", seed=1, config_changes={"num_hidden_layers": 3, "intermediate_size": 192})
    return folder


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "admin-key"
    file.write_text(f"{_KEY}\n")
    return file


@pytest.fixture(scope="module")
def teacher(
    tmp_path_factory: pytest.TempPathFactory, models: Path, key_file: Path
) -> Iterator[TeacherProcess]:
    """Serves `one`; its analyses are a word long."""
    word = {"front": {"enum": ["wall", "nothing"]}}
    prompts = _prompts(tmp_path_factory.mktemp("prompts"), word, tokens=40)
    with started_teachers(tmp_path_factory) as start:
        yield _start(start, models / "one", prompts, key_file)


def _prompts(folder: Path, properties: dict[str, Any], tokens: int) -> Path:
    """A prompt set of one task, whose analyses have these properties."""
    prompts = Path(shutil.copytree(SETS / "minigrid-zero-shot", folder / "set"))
    settings = (prompts / "set.toml").read_text()
    settings = re.sub(r"analysis_max_tokens = \d+", f"analysis_max_tokens = {tokens}", settings)
    (prompts / "set.toml").write_text(re.sub(r"tasks = .*", 'tasks = ["lava_gap"]', settings))
    for other in set((prompts / "tasks").iterdir()) - {prompts / "tasks" / "lava_gap.toml"}:
        other.unlink()
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    (prompts / "analysis.schema.json").write_text(json.dumps(schema | {"additionalProperties": False}))
    return prompts


def _start(start: StartTeacher, model: Path, prompts: Path, key_file: Path) -> TeacherProcess:
    teacher = start(
        *("--teacher", "prompted", "--engine", "transformers", "--device", "cpu", "--model", str(model)),
        *("--prompts", str(prompts), "--min-label-mass", "0", "--admin-key-file", str(key_file)),
        *("--timeout-s", "600"),
    )
    wait_until_ready(teacher)
    return teacher


def _swap(teacher: TeacherProcess, model: Path, **wanted: Any) -> httpx.Response:
    body = {"model": str(model), **wanted}
    return httpx.post(f"{teacher.url}/admin/checkpoint", json=body, headers=_HEADERS, timeout=LONG_S)


def _swapped(teacher: TeacherProcess, model: Path) -> Swapped:
    reply = _swap(teacher, model)
    assert reply.status_code == 200, reply.text
    return Swapped.model_validate_json(reply.content)


def _refused(reply: httpx.Response) -> ErrorBody:
    error = ErrorAnswer.model_validate_json(reply.content).error
    assert error.status == reply.status_code
    return error


def _identity(teacher: TeacherProcess) -> str:
    info = httpx.get(f"{teacher.url}/teacher").json()
    assert info["state"] == "ready"
    assert metric(teacher, "teacher_info", identity=info["identity"], kind="prompted") == 1
    assert metric(teacher, "teacher_info") == 1
    return str(info["identity"])


def _state(teacher: TeacherProcess) -> str:
    return str(httpx.get(f"{teacher.url}/admin/checkpoint", headers=_HEADERS).json()["state"])


def _questions(count: int, seed: int = 0) -> list[Question]:
    return [q for q in distinct_questions(4 * count, seed=seed) if q.task == "lava_gap"]


def _answers(teacher: TeacherProcess, questions: list[Question]) -> list[Answer]:
    with TeacherClient(teacher.url, deadline_s=60) as client:
        outcomes = client.ask_batch(questions)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    assert len(answers) == len(questions), outcomes
    return answers


def _spoilt(models: Path, folder: Path, spoil: Break) -> Path:
    model = Path(shutil.copytree(models / "two", folder / "model"))
    spoil(model)
    return model


def test_another_checkpoint_answers_and_then_the_first_again(teacher: TeacherProcess, models: Path) -> None:
    questions = _questions(4)
    one = _identity(teacher)
    by_one = _answers(teacher, questions)
    there = _swapped(teacher, models / "two")
    assert (there.old, there.how) == (one, "new engine")
    assert there.new == _identity(teacher) != one
    assert list(there.seconds) == ["checking", "draining", "loading", "trying"]
    assert there.sight is not None
    assert there.sight.apart > 0.01
    assert there.sight.readable == 2
    by_two = _answers(teacher, questions)
    assert {answer.teacher for answer in by_two} == {there.new}
    assert not any(answer.stored for answer in by_two)
    assert [a.probabilities for a in by_two] != [a.probabilities for a in by_one]

    back = _swapped(teacher, models / "one")
    assert (back.old, back.new) == (there.new, one)
    again = _answers(teacher, questions)
    assert all(answer.stored and answer.teacher == one for answer in again)
    assert [a.probabilities for a in again] == [a.probabilities for a in by_one]
    fresh = _questions(1, seed=9)
    assert _answers(teacher, fresh)[0].teacher == one
    with sqlite3.connect(teacher.store) as connection:
        known = {row[0] for row in connection.execute("SELECT identity FROM teachers")}
    assert known == {one, there.new}
    assert metric(teacher, "teacher_swaps_total", outcome="swapped") == 2


def test_what_is_served_already_is_left_alone(teacher: TeacherProcess, models: Path) -> None:
    identity = _identity(teacher)
    digest = read_checkpoint(models / "one").digest()
    reply = _swap(teacher, models / "one", digest=digest)
    told = Swapped.model_validate_json(reply.content)
    assert (told.old, told.new, told.how, told.sight) == (identity, identity, "served already", None)


@pytest.mark.parametrize(
    ("wanted", "field", "reason"),
    [
        ({"model": "/no/such/folder"}, "model", "/no/such/folder is not a folder here"),
        ({"model": "models/two"}, "model", "an absolute path on the teacher's machine, not 'models/two'"),
        ({"model": ""}, "model", "write an absolute path"),
        ({"model": "/a\0b"}, "model", "write an absolute path"),
        ({"model": 7}, "model", "path"),
        ({}, "model", "missing"),
        ({"model": "/m", "folder": "/m"}, "folder", "no such key"),
        ({"model": "{two}", "digest": "0" * 64}, "digest", "not 000"),
        ({"model": "{without vision}"}, "model", "lack 30 tensors (the first: visual."),
        ({"model": "{quantised}"}, "model", "quantised by awq"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_is_touched(
    teacher: TeacherProcess,
    models: Path,
    tmp_path: Path,
    wanted: dict[str, Any],
    field: str,
    reason: str,
) -> None:
    identity, asked = _identity(teacher), metric(teacher, "teacher_questions_total", way="asked")
    model, spoil = wanted.get("model"), {"{without vision}": WITHOUT_VISION, "{quantised}": quantise}
    if model in spoil:
        wanted = wanted | {"model": str(_spoilt(models, tmp_path, spoil[model]))}
    elif model == "{two}":
        wanted = wanted | {"model": str(models / "two")}
    reply = httpx.post(f"{teacher.url}/admin/checkpoint", json=wanted, headers=_HEADERS, timeout=LONG_S)
    error = _refused(reply)
    assert (error.status, error.field) == (422, field), error
    assert reason in error.reason
    assert _identity(teacher) == identity
    assert metric(teacher, "teacher_questions_total", way="asked") == asked


@pytest.mark.parametrize(("spoil", "reason"), [(NOT_NUMBERS, "not numbers"), (BLIND, "changing one tile")])
def test_the_vision_check_stops_what_does_not_see_and_the_one_before_answers_again(
    teacher: TeacherProcess, models: Path, tmp_path: Path, spoil: Break, reason: str
) -> None:
    identity, went_back = _identity(teacher), metric(teacher, "teacher_swaps_total", outcome="went_back")
    model = _spoilt(models, tmp_path, spoil)
    error = _refused(_swap(teacher, model))
    assert error.status == 502
    assert str(model) in error.reason
    assert reason in error.reason
    assert f"the previous teacher, {identity}, answers again" in error.reason
    assert _identity(teacher) == identity
    assert _answers(teacher, _questions(1, seed=int(spoil is NOT_NUMBERS) + 20))[0].teacher == identity
    assert metric(teacher, "teacher_swaps_total", outcome="went_back") == went_back + 1


def test_without_a_way_back_nothing_is_swapped(teacher: TeacherProcess, models: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(models / "one", tmp_path / "mine"))
    _swapped(teacher, mine)
    change_tensors(lambda tensors: tensors["model.norm.weight"].fill(2))(mine)
    identity = _identity(teacher)
    for model in (models / "two", mine):
        error = _refused(_swap(teacher, model))
        assert error.status == 409
        assert "could not be restored if the swap failed" in error.reason
        assert "changed since it was loaded" in error.reason
    assert _identity(teacher) == identity
    shutil.rmtree(mine)
    shutil.copytree(models / "one", mine)
    _swapped(teacher, models / "one")


def test_students_stop_or_go_on_as_told(teacher: TeacherProcess, models: Path) -> None:
    layout, vocabulary = layout_of("MiniGrid-LavaGapS5-v0"), Vocabulary()
    obs_NK = Environments(MinigridWorld(layout, vocabulary), 16, seed=1).reset()
    obs_NK = np.unique(obs_NK, axis=0)
    clients = [TeacherClient(teacher.url, deadline_s=60) for _ in range(2)]
    pinned = LabelTable(MinigridWorld(layout, vocabulary), clients[0])
    allowing = LabelTable(MinigridWorld(layout, vocabulary), clients[1], allow_change=True)
    for table in (pinned, allowing):
        assert table.labels_of(table.rows_of(obs_NK[:1])).given_B.all()
    swapped = _swapped(teacher, models / "two")
    with pytest.raises(TeacherChanged, match=f"learns from the teacher {swapped.old}.*now {swapped.new}"):
        pinned.labels_of(pinned.rows_of(obs_NK))
    assert allowing.labels_of(allowing.rows_of(obs_NK)).given_B.all()
    assert allowing.identity == swapped.new
    _swapped(teacher, models / "one")
    assert pinned.labels_of(pinned.rows_of(obs_NK)).given_B.all()
    for table in (pinned, allowing):
        table.close()


def test_the_command_swaps_and_says_what_came_of_it(
    teacher: TeacherProcess,
    models: Path,
    key_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(models)
    flags = ["--url", teacher.url, "--admin-key-file", str(key_file)]
    one = _identity(teacher)
    assert main(["swap", "two", *flags]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"now       {one}  {models / 'one'}"
    assert out[-2:] == [f"was       {one}", f"is        {_identity(teacher)}"]
    assert main(["swap", "one", *flags]) == 0
    assert f"is        {one}" in capsys.readouterr().out
    assert main(["swap", str(_spoilt(models, tmp_path, BLIND)), *flags]) == 1
    assert "answers again" in _line(capsys)

    wrong_key = tmp_path / "wrong"
    wrong_key.write_text("wrong")
    for arguments, said in (
        (["nowhere", *flags], f"{models / 'nowhere'} is not a folder here"),
        (["two", *flags, "--digest", "abc"], "not abc"),
        (["two", "--url", teacher.url], "this teacher requires a key"),
        (["two", "--url", teacher.url, "--admin-key-file", str(wrong_key)], "is not valid"),
        (["two", "--url", "http://127.0.0.1:9"], "no teacher answers at http://127.0.0.1:9"),
        (["two", "--url", "teacher:8000"], "is no address of a teacher"),
        (flags, "FOLDER is missing"),
        (["two", "--in-plaice"], "--in-plaice"),
    ):
        assert main(["swap", *arguments]) == 2
        assert said in _line(capsys)
    assert _identity(teacher) == one


def _line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that failed."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("teacher swap: error: ")
    return line


def test_only_who_bears_the_admin_key_may_swap(
    teacher_process: StartTeacher, key_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "api-key").write_text("api")
    (tmp_path / "empty").write_text("\n")
    keyed = teacher_process("--api-key-file", str(tmp_path / "api-key"), admin_key_file=str(key_file))
    keyless = teacher_process("--admin-key-file", str(tmp_path / "empty"))
    for teacher, bearer, status, reason in (
        (keyless, None, 403, "start it with `admin_key_file`"),
        (keyless, _KEY, 403, "start it with `admin_key_file`"),
        (keyed, None, 401, "from the file of `admin_key_file`"),
        (keyed, "api", 401, "is not valid"),
        (keyed, _KEY, 409, "a planner teacher has no checkpoint"),
    ):
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        url = f"{teacher.url}/admin/checkpoint"
        error = _refused(httpx.post(url, json={"model": "/models/two"}, headers=headers))
        assert error.status == status
        assert reason in error.reason
        assert _KEY not in error.reason
    assert httpx.get(f"{keyed.url}/admin/checkpoint", headers=_HEADERS).json()["state"] == "ready"
    assert httpx.get(f"{keyed.url}/teacher", headers=_HEADERS).status_code == 401


@pytest.fixture
def slow(
    teacher_process: StartTeacher, models: Path, key_file: Path, tmp_path: Path
) -> Callable[[], TeacherProcess]:
    """Serves a copy of `one`, `tmp_path`/model; its analyses are cut after seconds."""
    shutil.copytree(models / "one", tmp_path / "model")
    endless = {"endless": {"type": "string", "minLength": 40_000, "maxLength": 50_000}}
    prompts = _prompts(tmp_path, endless, tokens=1000)
    return lambda: _start(teacher_process, tmp_path / "model", prompts, key_file)


def test_what_is_in_progress_is_finished_and_the_service_ends_if_nothing_can_be_loaded(
    slow: Callable[[], TeacherProcess], models: Path, tmp_path: Path
) -> None:
    teacher = slow()
    bad = _spoilt(models, tmp_path / "bad", NOT_NUMBERS)
    (question,) = _questions(1)
    body = question.model_dump(mode="json")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(httpx.post, f"{teacher.url}/policy", json=body, timeout=LONG_S)
        wait_for(lambda: metric(teacher, "teacher_in_flight") == 1, "the question")
        swap = pool.submit(_swap, teacher, bad)
        wait_for(lambda: _state(teacher) == "draining", "the drain")
        shutil.rmtree(tmp_path / "model")
        assert not asked.done()
        for reply in (
            httpx.get(f"{teacher.url}/readyz"),
            httpx.post(f"{teacher.url}/policy", json=body),
            httpx.post(f"{teacher.url}/policy/batch", json=[body]),
        ):
            assert _refused(reply).reason == "the teacher is not ready: its checkpoint is being exchanged"
            assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
        assert httpx.get(f"{teacher.url}/livez").status_code == 200
        second = _refused(_swap(teacher, models / "two"))
        assert second.status == 409
        assert "another swap is running" in second.reason
        assert _refused(asked.result()).reason.startswith(
            "analysis: the text is incomplete after 1000 tokens"
        )
        error = _refused(swap.result())
    assert error.status == 500
    assert f"{bad} cannot be served" in error.reason
    assert f"the previous checkpoint, {tmp_path / 'model'}, cannot be loaded" in error.reason
    assert teacher.process.wait(30) == 1
    assert "teacher serve: error: the teacher is gone" in teacher.stderr
