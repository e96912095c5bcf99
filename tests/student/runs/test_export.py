"""An exported student plays as its run does, without torch, and mistakes with it cost nothing."""

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from student.cli import main
from student.runs.export import ExportReport, TeacherLatency, export, table
from student.runs.onnx_student import FORMAT, About, open_exported
from student.runs.policies import evaluate
from student.runs.settings import ExportSettings
from student.runs.trained import load_policy, load_trained
from tests.conftest import StartTeacher
from tests.waiting import LONG_S
from worlds.minigrid import layout_of
from worlds.world import Environments

pytestmark = pytest.mark.integration  # onnx is imported late: the vLLM suites' environment is without it

_ENV = "MiniGrid-GoToDoor-5x5-v0"
_STUDENT = str(Path(sys.executable).with_name("student"))
_DOC = Path(__file__).parents[3] / "docs/guides/export.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run whose weights were shaken, so that what it does varies from state to state."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = ("--preset", "fast", "--frames", "512", "--evaluation-episodes", "2", "--no-progress")
    assert main(["train", "--env", _ENV, "--out", str(folder), *flags, "--success-above", "0.9"]) == 0
    noise = torch.Generator().manual_seed(3)

    def shake(state: dict[str, Any]) -> None:
        for weights in state["network"].values():
            weights.add_(0.05 * torch.randn(weights.shape, generator=noise))

    _change_checkpoint(folder, shake)
    return folder


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    assert main(["export", str(run)]) == 0
    return run / "student.onnx"


def _change_checkpoint(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = max((run / "checkpoints").glob("*.pt"))
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 2) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


def test_it_judges_as_the_runs_network_does(run: Path, file: Path) -> None:
    trained, student = load_trained(run), open_exported(file)
    envs = Environments(student.world, 64, 1)
    rng = np.random.default_rng(1)
    obs_BK = envs.reset()
    for _ in range(20):
        obs_BK = envs.step(rng.integers(0, 3, 64)).obs_NK
    for size in (1, 7, 64):
        logits_BA, values_B = student.judge(obs_BK[:size])
        with torch.inference_mode():
            expected_BA, expected_B = trained.network(torch.from_numpy(obs_BK[:size]))
        np.testing.assert_allclose(logits_BA, expected_BA, 1e-5, 1e-5)
        np.testing.assert_allclose(values_B, expected_B, 1e-5, 1e-5)
    assert len(np.unique(logits_BA.argmax(1))) > 1
    np.testing.assert_allclose(np.exp(student.policy(obs_BK)).sum(1), 1, 1e-5)


def test_it_plays_every_episode_as_the_run_does(run: Path, file: Path) -> None:
    world, policy = load_policy(run)
    student = open_exported(file)
    assert student.world.fits(world)
    for seed in (5, None):
        sides = (policy, world), (student.policy, student.world)
        ours, theirs = (
            evaluate(played, each, 50, None if seed is None else np.random.default_rng(seed))
            for played, each in sides
        )
        np.testing.assert_array_equal(ours.returns_E, theirs.returns_E)
        np.testing.assert_array_equal(ours.lengths_E, theirs.lengths_E)
        assert len(np.unique(ours.lengths_E)) > 1


def test_evaluate_reports_the_same_for_the_file(
    run: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, reports = [], []
    for policy in (run, file):
        report = tmp_path / f"{policy.name}.json"
        capsys.readouterr()
        assert main(["evaluate", str(policy), "--episodes", "40", "--out", str(report)]) == 0
        said.append(capsys.readouterr())
        reports.append(json.loads(report.read_text()))
    assert said[0] == said[1]
    assert reports[0] == reports[1]
    assert reports[0]["sampled"]["episodes"] == 40


def test_it_needs_no_torch(file: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from student.runs.onnx_student import open_exported; import numpy as np\n"
        "student = open_exported(Path(sys.argv[1]))\n"
        "obs_BK = np.ones((2, student.world.length), np.uint8)\n"
        "print(student.policy(obs_BK).shape)"
    )
    command = [sys.executable, "-c", code, str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("(2, 7)\n", "")


def test_the_file_says_all_about_itself(run: Path, file: Path) -> None:
    import onnx  # noqa: PLC0415

    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    written = {each.key: each.value for each in model.metadata_props}
    state = torch.load(max((run / "checkpoints").glob("*.pt")), weights_only=True)
    config = json.loads((run / "config.json").read_text())
    assert written == {
        "format": FORMAT,
        "env": _ENV,
        "height": "5",
        "width": "5",
        "success_above": "0.9",
        "actions": "left right forward pickup drop toggle done",
        "words": " ".join(state["words"]),
        "algorithm": "ppo",
        "seed": "1",
        "frames": "512",
        "teacher": "none",
        "version": config["versions"]["lvlm2p"],
    }
    assert {"go", "to", "the", "door"} <= set(written["words"].split())
    content = file.read_bytes()
    assert not any(place in content for place in (b"site-packages", b"/student/", b"networks.py"))


def test_the_example_for_strangers_plays_as_written(
    run: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", _DOC.read_text(), re.DOTALL)
    assert len(blocks) == 1
    assert "student." not in blocks[0].replace('"student.onnx"', "")
    monkeypatch.chdir(run)
    capsys.readouterr()
    theirs: dict[str, Any] = {}
    exec(blocks[0], theirs)

    world, policy = load_policy(run)
    env = world.environment(lambda _: 7)
    row, ended = env.reset(), False
    while not ended:
        last_1K = np.frombuffer(bytearray(row), np.uint8)[None]
        row, reward, terminated, truncated = env.step(int(policy(last_1K).argmax()))
        ended = terminated or truncated
    assert [int(number) for number in theirs["row"]] == last_1K[0].tolist()
    assert capsys.readouterr().out == f"{env.length} steps, reward {reward:.3f}\n"


def test_a_teacher_is_measured_on_questions_that_its_store_does_not_know(
    run: Path, teacher_process: StartTeacher, tmp_path: Path
) -> None:
    teacher = teacher_process("--delay-ms", "60")
    file = tmp_path / "new" / "x.onnx"
    flags: dict[str, Any] = {"run": run, "out": file, "teacher": teacher.url, "questions": 8}
    figures = export(ExportSettings(**flags))
    first = figures.teacher
    assert first is not None
    assert (len(first.fresh), len(first.stored), first.failed) == (8, 0, 0)
    assert statistics.median(first.fresh) >= 60
    assert 0 < figures.one_ms < 60
    assert figures.size == file.stat().st_size
    trained = load_trained(run)
    assert figures.parameters == sum(weights.numel() for weights in trained.network.parameters())

    again = export(ExportSettings(**flags, overwrite=True)).teacher
    assert again is not None
    assert (len(again.fresh), len(again.stored)) == (8, 8)
    assert statistics.median(again.stored) < 60 <= statistics.median(again.fresh)


def test_the_table_sets_both_side_by_side() -> None:
    about = About(
        env=_ENV,
        height=5,
        width=5,
        actions=("left",),
        words=(),
        algorithm="a2c",
        seed=2,
        frames=9,
        teacher="t",
    )
    teacher = TeacherLatency("prompted-1", 6_000_000_000, (100.0, 300.0, 200.0), (2.0,), 1)
    lines = table(ExportReport(Path("x.onnx"), about, 500_000, 1234, 0.02, 0.25, teacher)).splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert rows == [
        [f"x.onnx: {_ENV}, 9 frames of a2c, seed 2, teacher t"],
        ["student", "teacher", "ratio"],
        ["size", "0.500 MB", "6,000.000 MB", "12,000 x"],
        ["parameters", "1,234"],
        ["one observation", "0.020 ms", "200.000 ms", "10,000 x"],
        ["a batch of 64", "0.250 ms"],
        ["... from its store", "2.000 ms"],
        [
            "prompted-1: medians of 3 questions that it answered and 1 that its store answered,"
            " 1 without an answer"
        ],
    ]


def test_a_file_that_is_there_stays_unless_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.onnx"
    file.write_bytes(b"mine")
    assert "exists already" in _fails(capsys, "export", run, "--out", file)
    assert file.read_bytes() == b"mine"
    command = [_STUDENT, "export", str(run), "--out", str(file), "--overwrite"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=True)
    assert result.stderr == ""
    assert result.stdout.startswith(f"{file}: {_ENV}, 512 frames of ppo, seed 1, teacher none\nsize ")
    assert open_exported(file).about.env == _ENV
    assert [path.name for path in tmp_path.iterdir()] == ["mine.onnx"]


def test_places_that_cannot_be_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("mine")
    for out, said in (
        ("folder.onnx", "is a folder"),
        ("student.pt", "has to end in .onnx"),
        ("file/student.onnx", "cannot write"),
    ):
        assert said in _fails(capsys, "export", run, "--out", tmp_path / out, "--overwrite")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.onnx"]


def test_runs_that_cannot_be_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "student.onnx"
    bare = tmp_path / "bare"
    (bare / "checkpoints").mkdir(parents=True)
    assert "no config.json" in _fails(capsys, "export", bare, "--out", out)
    (bare / "config.json").write_bytes((run / "config.json").read_bytes())
    assert "has no checkpoint: the run stopped" in _fails(capsys, "export", bare, "--out", out)
    checkpoint = max((run / "checkpoints").glob("*.pt"))
    for change, said in (
        (lambda state: state["network"].popitem(), "a network that this version does not know"),
        (lambda state: state.update(format=99), "has format 99"),
    ):
        (bare / "checkpoints" / checkpoint.name).write_bytes(checkpoint.read_bytes())
        _change_checkpoint(bare, change)
        assert said in _fails(capsys, "export", bare, "--out", out)
        assert said in _fails(capsys, "evaluate", bare)
    assert not out.exists()


def test_a_teacher_that_is_not_there(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--out", tmp_path / "x.onnx", "--teacher", "http://127.0.0.1:9", "--teacher-wait-s", "0.2")
    assert "http://127.0.0.1:9 gave no answer" in _fails(capsys, "export", run, *flags, code=3)
    assert not (tmp_path / "x.onnx").exists()


def test_files_that_are_no_exported_student(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx  # noqa: PLC0415

    assert "No such file" in _fails(capsys, "evaluate", tmp_path / "nowhere.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(file.read_bytes()[:1000])
    assert "cannot be read as an ONNX file" in _fails(capsys, "evaluate", broken)
    changes: tuple[tuple[dict[str, str], str], ...] = (
        ({}, "is not an exported student"),
        ({"format": "lvlm2p-student-99"}, "has format lvlm2p-student-99, and this version reads"),
        ({"seed": "many"}, "seed: Input should be"),
        ({"env": "MiniGrid-Nowhere-v0"}, "has no usable description: unknown environment"),
        ({"env": "MiniGrid-GoToDoor-6x6-v0"}, "with another size or other actions"),
        ({"env": "MiniGrid-GoToDoor-6x6-v0", "height": "6", "width": "6"}, "a network that does not fit"),
    )
    for change, said in changes:
        model = onnx.load(file)
        props = {each.key: each.value for each in model.metadata_props} | change if change else {}
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, props)
        onnx.save(model, tmp_path / "other.onnx")
        assert said in _fails(capsys, "evaluate", tmp_path / "other.onnx")


def test_an_environment_of_another_shape(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for env, fits in (("MiniGrid-GoToDoor-6x6-v0", False), ("MiniGrid-Fetch-5x5-N2-v0", True)):
        assert (layout_of(env).height == 5) == fits
        if fits:
            assert main(["evaluate", str(file), "--env", env, "--episodes", "2"]) == 0
        else:
            assert f"{env} has another size or other actions" in _fails(
                capsys, "evaluate", file, "--env", env
            )


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra(
    run: Path,
    file: Path,
    tmp_path: Path,
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # what importing then does is what it does without it
    out = tmp_path / "x.onnx"
    said = f"{missing} is not installed here: pip install -e '.[export]'"
    assert said in _fails(capsys, "export", run, "--out", out)
    assert not out.exists()
    if missing == "onnxruntime":
        assert said in _fails(capsys, "evaluate", file)


def test_a_student_of_another_kind_of_world_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    lake = ["--env", "FrozenLake-v1", "--frames", "64", "--evaluation-episodes", "1", "--no-progress"]
    assert main(["train", *lake, "--out", run]) == 0
    capsys.readouterr()
    assert main(["export", run]) == 2
    assert "not of MiniGrid's kind: only students of those" in capsys.readouterr().err
    assert not (tmp_path / "run/student.onnx").exists()
