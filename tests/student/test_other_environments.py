"""Environments of no known family, from another package, through the commands."""

import json
from pathlib import Path

import pytest

from student.cli import main
from student.experiments.plans import BadPlan, read_plan
from student.runs.folder import Run
from tests.conftest import StartTeacher, TeacherProcess
from tests.student.ends import assert_same_end

_CUSTOM = "tests.student.custom_environments:Custom-Painted-v0"


@pytest.mark.integration
def test_another_packages_environment_is_learnt_resumed_and_evaluated(
    shared_teacher: TeacherProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The planner needs a goal and walls, not a known id."""
    run, teacher = tmp_path / "run", shared_teacher.url
    small = ("--evaluation-episodes", "5", "--no-progress")
    told = ("--env", _CUSTOM, "--task", "lava_gap", "--teacher", teacher)
    assert main(["train", *told, *small, "--frames", "512", "--out", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--frames", "1024"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["env"], summary["frames"], summary["failed"]) == (_CUSTOM, 1024, 0)
    assert summary["states"] > 20
    assert Run.open(run).config["settings"]["task"] == "lava_gap"
    assert main(["evaluate", str(run), "--episodes", "5", "--gif", str(tmp_path / "student.gif")]) == 0
    assert (tmp_path / "student.gif").stat().st_size > 0
    report = tmp_path / "teacher.json"
    asked = ("--env", _CUSTOM, "--task", "lava_gap", "--episodes", "20", "--out", str(report))
    assert main(["evaluate", teacher, *asked]) == 0
    assert json.loads(report.read_text())["argmax"]["success"] == 1
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--task", "fetch", "--env", _CUSTOM]) == 2
    assert "--task cannot be changed when a run is resumed" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.usefixtures("examples_on_path")
def test_where_each_step_is_rewarded_a_student_learns_from_labels_and_from_large_rewards(
    teacher_process: StartTeacher, tmp_path: Path
) -> None:
    """CliffWalking pays -1 a step and -100 at the cliff, after which the episode goes on."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    teacher = teacher_process("--teacher", "value_iteration:CliffWalking")
    train = ["train", "--env", "CliffWalking-v1", "--task", "cliff_walking", "--success-above", "-18"]
    train += [
        "--teacher",
        teacher.url,
        "--evaluate-every",
        "0",
        "--evaluation-episodes",
        "5",
        "--no-progress",
    ]
    assert main([*train, "--frames", "5120", "--out", str(whole)]) == 0
    assert main([*train, "--frames", "1024", "--out", str(parts)]) == 0
    assert main(["train", "--resume", str(parts), "--frames", "5120"]) == 0
    assert_same_end(whole, parts)
    assert json.loads((whole / "summary.json").read_text())["argmax"]["return"] == -13  # the best there is


@pytest.mark.integration
def test_a_run_says_how_many_labels_failed_and_why(
    shared_teacher: TeacherProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BabyAI's missions name boxes and places, which the task does not have."""
    run, small = (
        tmp_path / "run",
        ("--evaluation-episodes", "2", "--no-progress", "--environments", "4", "--seed", "2"),
    )
    told = ("--env", "BabyAI-PickupLoc-v0", "--task", "fetch", "--teacher", shared_teacher.url)
    assert main(["train", *told, *small, "--frames", "512", "--out", str(run)]) == 0
    out, err = capsys.readouterr()
    summary = json.loads((run / "summary.json").read_text())
    kind = "422 mission: the mission '…' names no coloured key or ball"
    (count,) = (each["count"] for each in summary["failures"] if each["reason"] == kind)
    assert sum(each["count"] for each in summary["failures"]) == summary["failed"] > 0
    assert f"; {summary['failed']} of these states have no label: {count:,} x {kind}" in out
    # With this seed most of the first hundred
    assert err.count("student train: note: the teacher gave no answer to ") == 1
    assert main(["train", "--resume", str(run), "--frames", "576"]) == 0
    again = json.loads((run / "summary.json").read_text())
    assert sum(each["count"] for each in again["failures"]) == again["failed"] >= summary["failed"]


@pytest.mark.unit
def test_a_sweeps_teacher_needs_to_be_told_the_task(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    lines = [f'envs = ["{_CUSTOM}"]', 'algos = ["ppo"]', "seeds = 1", 'baseline = "alone"']
    lines += ["[arms.alone]", 'teacher = "none"']
    plan.write_text("\n".join(lines))
    assert read_plan(plan).settings_of("alone", "ppo", _CUSTOM).task is None
    lines += ["[arms.taught]", 'teacher = { teacher = "uniform" }']
    plan.write_text("\n".join(lines))
    with pytest.raises(BadPlan, match=f"`task` is missing: {_CUSTOM}"):
        read_plan(plan)
    lines += [f'[env."{_CUSTOM}"]', 'task = "lava_gap"']
    plan.write_text("\n".join(lines))
    assert read_plan(plan).settings_of("taught", "ppo", _CUSTOM).task == "lava_gap"


@pytest.mark.unit
def test_a_run_whose_environment_fails_is_saved_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, flags = tmp_path / "run", ("--environments", "8", "--rollout-steps", "16", "--no-progress")
    env = "tests.student.custom_environments:Custom-Failing-v0"
    assert main(["train", "--env", env, *flags, "--frames", "600", "--out", str(run)]) == 5
    said = capsys.readouterr().err
    assert "failed in step 21 of the episode with seed " in said
    assert "RecursionError: rejection sampling failed; saved after 128 frames; repair" in said
    assert "Traceback" not in said
    assert Run.open(run).load_checkpoint()["frames"] == 128
    assert main(["train", "--resume", str(run)]) == 5
    assert main(["evaluate", str(run), "--episodes", "2"]) == 2
    assert f"the environment '{env}' failed in step 21 of" in capsys.readouterr().err
