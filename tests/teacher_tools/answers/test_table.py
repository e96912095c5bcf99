"""Answers as a table: `show`, `export --csv`, stored pictures, and the pandas example of the docs."""

import asyncio
import base64
import csv
import hashlib
import io
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from teacher_api.schemas import ACTIONS, Answer
from teacher_server.answers.rows import Key
from teacher_server.answers.sqlite import SqliteStore
from teacher_server.teachers.base import name_of
from teacher_tools import cli
from tests.conftest import AskAbout, StartTeacher
from tests.teacher_server.answers.stores import IDENTITY, TEACHER, answer_of, found, make_store, number

pytestmark = pytest.mark.integration

_MISSIONS = (
    "get a key, or two",
    'say "go"\nto the door',
    "a lone\rreturn",
    "=1+1",
    "+1",
    "-1",
    "@sum",
    "\tget",
    "'quoted",
    "＝1",
    "grün ключ 🔑",
    "",
)
_DOCS = Path(__file__).parents[3] / "docs/start/pandas.md"

Run = Callable[..., str]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEACHER_STORE", str(tmp_path / "answers.sqlite3"))
    return tmp_path / "answers.sqlite3"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `teacher answers` in a terminal of 80 columns, and returns what it printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(["answers", *map(str, arguments)]) == code
        return "".join(capsys.readouterr())

    return run


def _picture(number: int) -> bytes:
    return b"\x89PNG" + bytes([number % 256, number // 256]) * 2000


def _key(number: int, mission: str = "", identity: str = IDENTITY) -> Key:
    digest = hashlib.sha256(_picture(number)).digest()
    return Key(identity, digest, mission, "fetch", ("left", "right"))


def _with_store(path: Path, work: Callable[[SqliteStore], Any], **settings: Any) -> None:
    """Opens a store, registers the teacher, runs the coroutine on it, and closes it."""

    async def run() -> None:
        store = SqliteStore(path, **settings)
        store.register(IDENTITY, TEACHER, "qwen, tuned")
        await work(store)
        await store.close()

    asyncio.run(run())


def _unmarked(cell: str) -> str:
    """Returns the text of a cell, as the docs say."""
    return re.sub(r"^'(?=[=+\-@\t\r'＝＋－＠])", "", cell)


def test_the_table_holds_what_the_store_does(path: Path, run: Run, tmp_path: Path) -> None:
    async def fill(store: SqliteStore) -> None:
        for i, mission in enumerate(_MISSIONS):
            await store.put(_key(i, mission), answer_of(i), _picture(i) if i % 2 else None)

    _with_store(path, fill)
    folder = tmp_path / "pictures"
    assert "12 answers written" in run("export", "--csv", tmp_path / "a.csv", "--pictures", folder)
    text = (tmp_path / "a.csv").read_bytes().decode()
    rows = {row["picture"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert len(rows) == len(_MISSIONS)
    documented = set(re.findall(r"^\| `([a-z_]+)`", _DOCS.read_text("utf-8"), re.MULTILINE))
    assert documented == {re.sub("^p_.*", "p_", name) for name in next(iter(rows.values()))}
    for i, mission in enumerate(_MISSIONS):
        row, answer = rows[_key(i).picture.hex()], Answer.model_validate_json(answer_of(i))
        assert not row["mission"].startswith(("=", "+", "-", "@", "\t", "\r", "＝"))
        assert _unmarked(row["mission"]) == mission
        assert (row["teacher"], row["checkpoint"], row["task"]) == (IDENTITY, "qwen, tuned", "fetch")
        shown = {action: float(row[f"p_{action}"]) for action in ACTIONS if row[f"p_{action}"]}
        assert shown == answer.probabilities
        assert (row["action"], row["analysis"], row["label_mass"]) == (answer.action, answer.analysis, "")
        kept = Path(row["picture_file"]).read_bytes() if row["picture_file"] else None
        assert kept == (_picture(i) if i % 2 else None)
    assert len(list(folder.iterdir())) == len(_MISSIONS) // 2

    assert "--task needs --csv: " in run("export", tmp_path / "a.jsonl", "--task", "fetch", code=2)
    (tmp_path / "file").touch()
    err = run("export", "--csv", tmp_path / "b.csv", "--pictures", tmp_path / "file" / "x", code=2)
    assert "--pictures: " in err
    assert not (tmp_path / "b.csv").exists()


def test_the_newest_are_shown_in_80_columns(path: Path, run: Run) -> None:
    long = "avoid \x1b[31m the lava and get to the green goal square, and then to another one"

    async def fill(store: SqliteStore) -> None:
        for i in range(30):
            await store.put(_key(i, f"{i} {long}"), answer_of(i))

    _with_store(path, fill)
    lines = run("show").splitlines()
    assert lines[0] == f"{IDENTITY} (qwen, tuned)"
    assert len(lines) == 22
    assert max(map(len, lines)) == 80
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+  fetch  right   0\.971  29 avoid  \[31m the .*…", lines[2])
    for teacher in (IDENTITY, "qwen, tuned"):
        chosen = run("show", "--teacher", teacher, "--limit", "2", "--task", "fetch").splitlines()
        assert (chosen[0], len(chosen)) == (lines[0], 4)
    assert run("show", "--task", "lava_gap") == "no answers about lava_gap\n"
    assert "'qwen' is not in the store" in run("show", "--teacher", "qwen", code=2)
    assert "qwen, tuned" in run("stats")


def test_a_picture_stays_as_long_as_an_answer_about_it(path: Path, run: Run) -> None:
    other = Key("planner-0000000000000000", *_key(0).columns[1:4], ("left", "right"))

    async def fill(store: SqliteStore) -> None:
        store.register(other.identity, {})
        await store.put(_key(0), answer_of(0), _picture(0))
        await store.put(other, answer_of(0, other.identity), _picture(0))
        await store.put(_key(1), answer_of(1))
        await store.keep({_key(1).picture: _picture(1), _key(2).picture: _picture(2)})

    _with_store(path, fill)
    kept = "SELECT count(*) FROM pictures"
    assert number(path, kept) == 2  # and not the picture without an answer
    run("prune", "--teacher", IDENTITY)
    assert number(path, kept) == 1
    run("prune", "--teacher", other.identity)
    assert number(path, kept) == 0


def test_pictures_count_in_the_size_limit(path: Path) -> None:
    async def fill(store: SqliteStore) -> None:
        for i in range(800):
            await store.put(_key(i), answer_of(0), _picture(i))
        while store._evicting is not None and not store._evicting.done():
            await asyncio.sleep(0.01)

    _with_store(path, fill, max_mib=1)
    pages = number(path, "PRAGMA page_count") - number(path, "PRAGMA freelist_count")
    assert pages * 4096 <= 2**20
    answers = number(path, "SELECT count(*) FROM answers")
    assert 0 < answers == number(path, "SELECT count(*) FROM pictures") < 800


def test_a_store_of_version_2_is_upgraded(path: Path, run: Run) -> None:
    answers = make_store(path, range(20))
    connection = sqlite3.connect(path)
    connection.executescript("DROP TRIGGER last_answer; DROP TABLE pictures; DROP TABLE names")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    assert found(path, answers) == answers
    assert number(path, "PRAGMA user_version") == 3
    assert not list(path.parent.glob("*.damaged*"))
    assert "20 answers written" in run("export", "--csv", "-")  # without a name


def test_a_teacher_has_the_name_of_its_checkpoint(tmp_path: Path) -> None:
    class Named:
        kind = "prompted"

        def __init__(self, **hosting: str) -> None:
            self.hosting = hosting

    snapshot = tmp_path / "models--Qwen--Qwen2.5-VL-3B-Instruct" / "snapshots" / "66285546d2b8"
    for hosting, name in (
        ({}, "prompted"),
        ({"model": "checkpoints/compact/"}, "compact"),
        ({"model": str(snapshot)}, "Qwen/Qwen2.5-VL-3B-Instruct"),
        ({"model": "Qwen/Qwen2.5-VL-7B", "server": "http://gpu:8000/v1"}, "Qwen/Qwen2.5-VL-7B"),
    ):
        assert name_of(Named(**hosting)) == name  # type: ignore[arg-type]


def test_a_teacher_stores_pictures_with_keep_pictures_and_keeps_its_identity(
    teacher_process: StartTeacher, ask_about: AskAbout, tmp_path: Path
) -> None:
    store = str(tmp_path / "answers.sqlite3")
    questions = [ask_about("MiniGrid-LavaGapS5-v0", seed=seed) for seed in range(3)]
    identities = []
    for flags, asked in (((), questions[:2]), (("--keep-pictures",), questions)):
        teacher = teacher_process(*flags, store=store)
        for question in asked:
            answer = httpx.post(f"{teacher.url}/policy", json=question.model_dump()).json()
            identities.append(answer["teacher"])
        assert teacher.stop() == 0
        files = {base64.b64decode(question.image) for question in asked} if flags else set()
        connection = sqlite3.connect(store)
        assert {file for (file,) in connection.execute("SELECT file FROM pictures")} == files
        connection.close()
    assert len(set(identities)) == 1


def test_the_pandas_example_of_the_docs_runs(
    path: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas")

    async def fill(store: SqliteStore) -> None:
        for i, mission in enumerate(_MISSIONS):
            await store.put(_key(i, mission), answer_of(i))

    _with_store(path, fill)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", _DOCS.read_text("utf-8"), re.DOTALL)
    run("export", "--csv", "labels.csv")
    names: dict[str, Any] = {}
    exec(block, names)
    answers = names["answers"]
    assert isinstance(answers, pandas.DataFrame)
    assert len(answers) == len(_MISSIONS)
    assert names["sure"][("qwen, tuned", "fetch")] == pytest.approx(
        sum(max((Answer.model_validate_json(answer_of(i)).probabilities or {}).values()) for i in range(12))
        / 12
    )
