"""`teacher score`, `teacher compare` and `teacher replay` against real served teachers."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gridworld.tasks import ALL_TASKS, TASKS
from student.runs.evaluate import score as evaluate
from student.runs.settings import EvaluateSettings
from teacher_tools.cli import main
from teacher_tools.score.results import Score, TaskScore
from tests.conftest import StartTeacher, TeacherProcess
from tests.waiting import LONG_S, wait_for

pytestmark = pytest.mark.integration

_TEACHER = str(Path(sys.executable).with_name("teacher"))
_SMALL = ("--env", "MiniGrid-GoToDoor-5x5-v0", "--no-progress")
_ENV = "MiniGrid-GoToDoor-5x5-v0"


def _score(url: str, out: Path, *flags: str) -> dict[str, Any]:
    assert main(["score", url, "--out", str(out), *flags]) == 0
    found: dict[str, Any] = json.loads((out / "score.json").read_text())
    return found


def test_the_planner_is_optimal_and_agrees_with_the_students_evaluation(
    shared_teacher: TeacherProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*_SMALL, "--episodes", "10", "--states", "40")
    found = _score(shared_teacher.url, tmp_path / "a", *flags)["tasks"][_ENV]
    printed = capsys.readouterr().out
    assert found["agreement"]["optimal"]["value"] == 1.0
    assert found["agreement"]["mistakes"]["count"] == 0
    assert found["perception"] is None
    assert "perception and reasoning are not measured" in printed
    assert re.search(r"arg-max is optimal +1\.000 \[0\.9", printed)
    assert "GoToDoor-5x5: better than chance in agreement with the planner" in printed

    # The same episodes in other code
    settings = EvaluateSettings(policy=shared_teacher.url, env=_ENV, episodes=10)
    theirs, ours = evaluate(settings)["argmax"], found["argmax"]
    assert ours["success"]["value"] == theirs["success"]
    assert ours["mean_return"]["value"] == pytest.approx(theirs["return"])
    assert [ours["mean_return"]["low"], ours["mean_return"]["high"]] == pytest.approx(
        theirs["return_interval"]
    )
    assert ours["length"] == theirs["length"]


def test_a_random_teacher_is_not_distinguishable_from_chance(
    teacher_process: StartTeacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = teacher_process("--teacher", "uniform").url
    _score(url, tmp_path, *_SMALL, "--episodes", "5", "--states", "30")
    assert (
        "GoToDoor-5x5: not distinguishable from chance in agreement with the planner, success"
        in capsys.readouterr().out
    )


def test_mistakes_are_measured_replayed_and_compared(
    teacher_process: StartTeacher,
    shared_teacher: TeacherProcess,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    noisy = teacher_process("--noise", "0.3", "--seed", "1").url
    flags = (*_SMALL, "--episodes", "5", "--states", "80")
    found = _score(noisy, tmp_path / "noisy", *flags)["tasks"][_ENV]
    rate = found["agreement"]["mistakes"]
    assert rate["low"] <= 0.3 <= rate["high"]
    # The planner does not know of its noise: its confidence is 1, and wrong as often as the planner
    assert found["confidence"]["error"] == pytest.approx(1 - found["agreement"]["optimal"]["value"])
    assert [level["answers"]["value"] for level in found["confidence"]["levels"]] == [1.0] * 5
    for diagram in ("reliability.png", "confidence.png"):
        assert (tmp_path / "noisy" / diagram).read_bytes().startswith(b"\x89PNG")
        assert f"]({diagram})" in (tmp_path / "noisy/score.md").read_text()
    assert len(list((tmp_path / "noisy/mistakes").glob("*.png"))) == len(found["mistakes"]) == 6
    assert "is optimal" in (tmp_path / "noisy/score.md").read_text()

    capsys.readouterr()
    replay = ["replay", str(tmp_path / "noisy")]
    assert main(replay) == 0
    listed = capsys.readouterr().out.splitlines()
    played = {policy: found[policy] for policy in ("argmax", "sampled")}
    assert len(listed) == sum(5 - each["success"]["count"] for each in played.values()) > 0
    policy = next(policy for policy, each in played.items() if each["failures"])
    failure = min(played[policy]["failures"], key=lambda failure: len(failure["actions"]))
    which = ["--seed", str(failure["seed"]), "--policy", policy]
    assert main([*replay, *which, "--url", noisy, "--gif", str(tmp_path / "a.gif")]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^   chose (\w+)", printed, re.MULTILINE) == failure["actions"]
    assert "   optimal: " in printed
    with Image.open(tmp_path / "a.gif") as animation:
        assert 1 < animation.n_frames <= len(failure["actions"]) + 1  # GIF joins equal frames
    assert main([*replay, *which, "--url", shared_teacher.url]) == 2
    assert f"{shared_teacher.url} is planner-" in _only_line(capsys)
    assert main([*replay, "--seed", "7"]) == 2
    assert "--seed: no selected episode failed with seed 7" in _only_line(capsys)

    out = tmp_path / "both"
    assert main(["compare", shared_teacher.url, str(tmp_path / "noisy"), "--out", str(out), *flags]) == 0
    printed = capsys.readouterr().out
    difference = re.search(r"difference to 127\.0\.0\.1:\d+ +– +(-0\.\d+) \[(-0\.\d+), (-0\.\d+)\]", printed)
    assert difference is not None
    assert float(difference[1]) == pytest.approx(found["agreement"]["optimal"]["value"] - 1, abs=6e-4)
    page = (out / "compare.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page is not self-contained"
    assert page.count('class="mistake"') == 6
    assert page.count('<img alt="How often the arg-max is optimal') == 2
    for mistake in found["mistakes"]:
        assert mistake["picture"] in page
    assert json.loads((out / "scores" / shared_teacher.url[7:].replace(":", "-") / "score.json").read_text())


def test_an_interrupted_score_is_resumed(shared_teacher: TeacherProcess, tmp_path: Path) -> None:
    out = tmp_path / "score"
    flags = ("--all", "--episodes", "2", "--states", "20", "--no-progress")
    command = [_TEACHER, "score", shared_teacher.url, "--out", str(out), *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: (out / "score.json").exists() and _tasks(out), "the first environment")
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=LONG_S)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors == "teacher score: interrupted\n"
    first = _tasks(out)
    assert 0 < len(first) < 4
    assert set(_score(shared_teacher.url, out, *flags)["tasks"]) == {task.env_id for task in TASKS.values()}
    assert {env: task for env, task in _tasks(out).items() if env in first} == first


def test_several_environments_are_scored_in_one_table(shared_teacher: TeacherProcess, tmp_path: Path) -> None:
    envs = ("MiniGrid-GoToDoor-5x5-v0", "MiniGrid-LavaGapS5-v0")
    flags = ("--env", ",".join(envs), "--episodes", "1", "--states", "5", "--no-progress")
    scored = _score(shared_teacher.url, tmp_path, *flags)["tasks"]
    assert {env: task["task"] for env, task in scored.items()} == dict(
        zip(envs, ("go_to_door", "lava_gap"), strict=True)
    )


def _tasks(out: Path) -> dict[str, TaskScore]:
    return Score.model_validate_json((out / "score.json").read_bytes()).tasks


def test_a_task_beyond_the_papers_four_is_scored_by_its_name(
    shared_teacher: TeacherProcess, tmp_path: Path
) -> None:
    flags = ("--task", "go_to_object", "--episodes", "10", "--states", "60", "--no-progress")
    (scored,) = _score(shared_teacher.url, tmp_path, *flags)["tasks"].values()
    assert (scored["env"], scored["states"]) == ("MiniGrid-GoToObject-6x6-N2-v0", 60)
    assert scored["agreement"]["optimal"]["value"] == scored["argmax"]["success"]["value"] == 1.0
    assert scored["chance"]["success"]["value"] < scored["sampled"]["success"]["value"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, f"nothing to score: set --task ({', '.join(ALL_TASKS)}), --env or --all"),
        (["--task", "chess"], 2, "--task: the planner, which answers are compared with, knows lava_gap"),
        (["--all", "--task", "fetch"], 2, "--all excludes --task and --env"),
        (["--env", "MiniGrid-Nowhere-v0"], 2, "--env: unknown environment 'MiniGrid-Nowhere-v0'"),
        (["--env", "MiniGrid-MemoryS7-v0"], 2, "--task is missing"),
        (["--task", "fetch", "--episodes", "0"], 2, "--episodes (or TEACHER_SCORE_EPISODES)"),
        (["--task", "fetch", "--teacher-wait-s", "0.1"], 3, "gave no answer"),
    ],
)
def test_an_unusable_setting_is_reported_in_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "http://127.0.0.1:9", *arguments]) == code
    assert message in _only_line(capsys)


def test_a_folder_refuses_another_teacher_and_other_settings(
    shared_teacher: TeacherProcess,
    teacher_process: StartTeacher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, flags = tmp_path / "a", (*_SMALL, "--episodes", "1", "--states", "5")
    _score(shared_teacher.url, out, *flags)
    before = (out / "score.json").read_bytes()
    capsys.readouterr()
    other = teacher_process("--noise", "0.5").url
    assert main(["score", other, "--out", str(out), *flags]) == 2
    assert "holds the score of planner-" in _only_line(capsys)
    assert main(["score", shared_teacher.url, "--out", str(out), *flags, "--seed", "3"]) == 2
    assert "holds a score with --episodes 1, --states 5, --seed 1" in _only_line(capsys)
    assert (out / "score.json").read_bytes() == before
    assert main(["compare", str(tmp_path)]) == 2
    assert "holds no score" in _only_line(capsys)
    (tmp_path / "score.json").write_text('{"format": 1}')
    assert main(["compare", str(tmp_path)]) == 2
    assert "is not a score of format 1" in _only_line(capsys)


def _only_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line
