"""Plans that cannot be used, and sweeps: killed, interrupted, with runs that fail, on Ray."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from gridworld.tasks import TASKS
from student.cli import main
from student.experiments.plans import (
    BadPlan,
    SweepPlan,
    as_stored,
    differences,
    load_plan,
    read_plan,
    store_plan,
    teacher_name,
)
from tests.student.ends import metrics, summary
from tests.waiting import LONG_S, wait_for

_ENV = "MiniGrid-LavaGapS5-v0"
_OTHER_ENV = "MiniGrid-Fetch-5x5-N2-v0"
_PLAN = f"""
envs = ["{_ENV}"]
algos = ["ppo"]
seeds = 2
baseline = "alone"
teacher-episodes = 50
[settings]
frames = 1500
environments = 4
checkpoint-every = 256
evaluate-every = 512
evaluation_episodes = 5
[arms.alone]
teacher = "none"
[arms.taught]
teacher = {{ noise = 0.1 }}
targets = "hard"
"""


def _write(folder: Path, *changes: tuple[str, str], text: str = _PLAN) -> Path:
    """Writes a plan file, with changes to the text."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / "plan.toml"
    file.write_text(text)
    return file


@pytest.mark.unit
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "frames =",
            "framse =",
            "settings: 'framse' is not a setting of `student train`; did you mean 'frames'?",
        ),
        (
            "frames = 1500",
            "lambda = -1",
            "settings.lambda: Input should be greater than or equal to 0, not -1",
        ),
        ("frames = 1500", "seed = 3", "settings: 'seed' is set by the sweep: use envs, algos and seeds"),
        ('targets = "hard"', 'targets = "medium"', "arms.taught.targets: Input should be 'soft' or 'hard'"),
        ('targets = "hard"', 'students = "hard"', "arms.taught: 'students' is not a setting"),
        ('teacher = "none"', "", "arms.alone.teacher is missing"),
        ('teacher = "none"', 'teacher = "http://x"', 'arms.alone.teacher: write "none", "given" or flags'),
        ("[arms.alone]", '[arms."a/b"]', 'arms."a/b": String should match'),
        ("noise = 0.1", 'api_key_file = "x"', "arms.taught.teacher: api-key-file is set by the sweep"),
        (
            "seeds = 2",
            "seeds = []",
            "seeds: write the number of seeds or a list of at least one seed, not []",
        ),
        ("seeds = 2", "seeds = [1, 2, 1]", "seeds: 1 is listed more than once"),
        ("seeds = 2", "", "seeds is missing"),
        ("seeds = 2", "seeds = 2\nspeed = 3", "speed: no such key; correct its name"),
        ("seeds = 2", "seeds = = 2", "is not TOML"),
        (
            'baseline = "alone"',
            'baseline = "none"',
            "baseline: 'none' is not an arm; the arms are alone, taught",
        ),
        ("LavaGapS5", "LavaGapS50", "envs.0: unknown environment 'MiniGrid-LavaGapS50-v0'"),
        ('"ppo"', '"sac"', "algos.0: unknown algorithm 'sac': choose one of ppo, a2c, soft-q"),
        ("[settings]", '[env."MiniGrid-Fetch-5x5-N2-v0"]\nframes = 1\n[settings]', "envs does not list it"),
        ("[settings]", "[algo.ppo]\nepochs = 0\n[settings]", "algo.ppo.epochs: Input should be greater than"),
        (
            'targets = "hard"',
            f'envs = ["{_OTHER_ENV}"]',
            f"arms.taught.envs: the plan's envs do not list {_OTHER_ENV}; add it there",
        ),
        ('targets = "hard"', "envs = []", "arms.taught.envs: List should have at least 1 item"),
        ('targets = "hard"', f'envs = ["{_ENV}", "{_ENV}"]', f"arms.taught.envs: {_ENV} is listed more than"),
        ('targets = "hard"', f'envs = "{_ENV}"', "arms.taught.envs: Input should be a valid list"),
    ],
)
def test_plans_that_cannot_be_used(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = _write(tmp_path, (old, new))
    with pytest.raises(BadPlan) as refused:
        read_plan(file)
    assert said in str(refused.value)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.unit
def test_settings_of_one_algorithm(tmp_path: Path) -> None:
    both = ('"ppo"', '"ppo", "a2c"')
    with pytest.raises(BadPlan, match=r"`epochs` cannot be used with `algo` a2c; .* \[algo.NAME\]"):
        read_plan(_write(tmp_path, both, ("frames = 1500", "epochs = 2")))
    plan = read_plan(_write(tmp_path, both, ("[settings]", "[algo.ppo]\nepochs = 2\n[settings]")))
    assert plan.settings_of("alone", "ppo", _ENV).epochs == 2
    assert plan.settings_of("alone", "a2c", _ENV).rollout_steps == 5


@pytest.mark.unit
def test_a_former_name_of_an_algorithm_stays_in_the_names_of_runs(tmp_path: Path) -> None:
    plan = read_plan(
        _write(tmp_path, ('"ppo"', '"dqn"'), ("[settings]", "[algo.dqn]\nepochs = 2\n[settings]"))
    )
    assert {run.name.split("/")[1] for run in plan.runs()} == {"dqn"}
    settings = plan.settings_of("alone", "dqn", _ENV)
    assert (settings.algo, settings.epochs) == ("soft-q", 2)


@pytest.mark.unit
def test_the_precedence_of_settings(tmp_path: Path) -> None:
    tables = f'[env."{_ENV}"]\nframes = 7\nlambda = 0.7\n[settings]'
    plan = read_plan(_write(tmp_path, ("[settings]", tables), ('"hard"', '"hard"\nlambda = 0.9')))
    alone, taught = (plan.settings_of(arm, "ppo", _ENV) for arm in ("alone", "taught"))
    assert (alone.frames, alone.environments, alone.teacher_lambda, alone.targets) == (7, 4, 0.7, "soft")
    assert (taught.frames, taught.environments, taught.teacher_lambda, taught.targets) == (7, 4, 0.9, "hard")
    assert len(list(plan.runs())) == 4


_NARROW = ((f'["{_ENV}"]', f'["{_OTHER_ENV}", "{_ENV}"]'), ('"hard"', f'"hard"\nenvs = ["{_ENV}"]'))
"""Changes to the plan: two environments, of which the taught arm is for one."""


@pytest.mark.unit
def test_an_arm_for_some_environments(tmp_path: Path) -> None:
    both = (f'["{_ENV}"]', f'["{_OTHER_ENV}", "{_ENV}"]')
    # In the other environment this task could not be used
    plan = read_plan(_write(tmp_path, *_NARROW, ('"hard"', '"hard"\ntask = "lava_gap"')))
    cells = [("alone", _OTHER_ENV), ("alone", _ENV), ("taught", _ENV)]
    assert [(run.seed, run.arm, run.env) for run in plan.runs()] == [
        (seed, *cell) for seed in (1, 2) for cell in cells
    ]
    assert plan.settings_of("taught", "ppo", _ENV).targets == "hard"
    with pytest.raises(BadPlan, match=f"the baseline must be for every environment; add {_OTHER_ENV}"):
        read_plan(_write(tmp_path, both, ('"none"', f'"none"\nenvs = ["{_ENV}"]')))

    def stored(*changes: tuple[str, str]) -> SweepPlan:
        store_plan(tmp_path, read_plan(_write(tmp_path, *changes)))
        read = load_plan(tmp_path)
        assert read == load_plan(tmp_path, to_report=True)
        return read

    old, narrow, wide = stored(), stored(*_NARROW), stored(both)
    assert "envs" not in as_stored(wide)["arms"]["taught"]
    assert as_stored(narrow)["arms"]["taught"]["envs"] == [_ENV]
    assert differences(old, narrow) == differences(narrow, wide) == []
    assert differences(wide, narrow) == [f"arms.taught.envs: {_OTHER_ENV} is no longer there"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("plan", "alone", "taught"),
    [
        *(
            (name, "alone", "fast")
            for name in ("smoke", "compact", "keeps", "questions", "wrong", "wrong-larger")
        ),
        ("fast-lambda", "fast", "fast"),
        *((name, "paper", "paper") for name in ("paper", "paper-lambda")),
    ],
)
def test_the_presets_of_the_published_plans(plan: str, alone: str, taught: str) -> None:
    read = read_plan(Path(__file__).parents[3] / "sweeps" / f"{plan}.toml")
    for arm, algo, env in read.cells():
        assert read.settings_of(arm, algo, env).preset == (alone if arm == "alone" else taught)
    assert not list(read.notes())


@pytest.mark.unit
@pytest.mark.parametrize(("name", "frames"), [("wrong", 40_960), ("wrong-larger", 61_440)])
def test_the_plans_of_wrong_teachers(name: str, frames: int) -> None:
    plan = read_plan(Path(__file__).parents[3] / "sweeps" / f"{name}.toml")
    assert plan.algos == ["ppo", "a2c"]
    assert (set(plan.envs) == {task.env_id for task in TASKS.values()}) == (name == "wrong")
    assert {plan.settings_of(*cell).frames for cell in plan.cells()} == {frames}


@pytest.mark.unit
def test_a_baseline_with_the_preset_fast_is_noted_unless_it_is_intended(tmp_path: Path) -> None:
    fast = ("frames = 1500", 'frames = 1500\npreset = "fast"')
    (note,) = read_plan(_write(tmp_path, fast)).notes()
    assert note.startswith("arms.alone has no teacher, and the preset fast")
    assert not list(read_plan(_write(tmp_path, ('"none"', '"none"\npreset = "fast"'))).notes())
    given = read_plan(_write(tmp_path, ("{ noise = 0.1 }", '"given"')))
    assert given.settings_of("taught", "ppo", _ENV).preset == "fast"


@pytest.mark.unit
def test_sweeps_of_earlier_versions_keep_their_defaults(tmp_path: Path) -> None:
    """Version 1: the preset fast without a teacher too; up to version 2: labels were not judged; up to 3: no
    recovery, and another replay and epsilon in the preset fast."""
    plan = read_plan(_write(tmp_path, ('algos = ["ppo"]', 'algos = ["a2c"]')))

    def found(version: int) -> list[str]:
        (tmp_path / "sweep.json").write_text(json.dumps(as_stored(plan) | {"version": version}))
        return differences(load_plan(tmp_path), plan)

    assert f"preset was 'fast' and is 'alone' (alone, a2c, {_ENV})" in found(1)
    of_taught = {
        f"{change} (taught, a2c, {_ENV})"
        for change in (
            "judge_labels was False and is True",
            "recover was False and is True",
            "replay_ratio was 32.0 and is 48.0",
            "optimiser_epsilon was 1e-05 and is 0.01",
        )
    }
    for version, expected in ((1, of_taught), (2, of_taught), (3, of_taught - {min(of_taught)}), (4, set())):
        assert {line for line in found(version) if "(taught," in line} == expected


@pytest.mark.unit
def test_a_plan_may_grow_and_not_change(tmp_path: Path) -> None:
    old = read_plan(_write(tmp_path))
    store_plan(tmp_path, old)
    stored = load_plan(tmp_path)
    assert stored == old == load_plan(tmp_path, to_report=True)

    def changed(*changes: tuple[str, str]) -> list[str]:
        return differences(stored, read_plan(_write(tmp_path, *changes)))

    assert (
        changed(("seeds = 2", "seeds = 3"), ("[arms.alone]", '[arms.more]\nteacher = "none"\n[arms.alone]'))
        == []
    )
    assert changed(("frames = 1500", "frames = 1500\nlambda = 1.0")) == []  # the default
    assert changed(("seeds = 2", "seeds = [2]")) == ["seeds: 1 is no longer there"]
    assert changed(("noise = 0.1", "")) == ["arms.taught.teacher was {'noise': 0.1} and is {}"]
    assert changed(('targets = "hard"', "")) == [f"targets was 'hard' and is 'soft' (taught, ppo, {_ENV})"]


@pytest.mark.unit
def test_teachers_have_names_for_files() -> None:
    assert teacher_name({}) == "planner"
    assert (
        teacher_name({"noise": 0.3, "seed": 2})
        == teacher_name({"seed": 2, "noise": 0.3})
        == "planner-noise-0.3-seed-2"
    )
    compact = {"teacher": "prompted", "model": "checkpoints/compact", "prompts": "compact"}
    assert re.fullmatch("prompted-compact-[0-9a-f]{8}", teacher_name(compact))
    assert teacher_name(compact) != teacher_name(compact | {"prompts": "minigrid"})
    names = {
        teacher_name({"teacher": "prompted", "model": model}) for model in ("a/b", "a_b", "a b", "x" * 99)
    }
    assert len(names) == 4
    assert all("/" not in name and " " not in name and len(name) <= 80 for name in names)


def _command(plan: Path, out: Path, *flags: str) -> list[str]:
    return ["sweep", str(plan), "--out", str(out), "--jobs", "2", *flags]


def _start(plan: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "student", *_command(plan, out, *flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _results(out: Path) -> dict[str, Any]:
    """Returns the summaries and logs of finished runs, without figures that depend on the clock."""
    runs = (file.parent for file in sorted((out / "runs").glob("*/*/*/*/summary.json")))
    return {str(run.relative_to(out / "runs")): (summary(run), metrics(run)) for run in runs}


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed sweep."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(_command(_write(folder), folder / "out", "--no-progress")) == 0
    return folder / "out"


@pytest.mark.integration
def test_a_sweep_leaves_what_the_report_needs(whole: Path) -> None:
    runs = [f"{arm}/ppo/{_ENV}/seed-{seed}" for arm in ("alone", "taught") for seed in (1, 2)]
    assert list(_results(whole)) == runs
    config = json.loads((whole / "runs" / runs[-1] / "config.json").read_text())
    settings = config["settings"]
    assert (settings["seed"], settings["targets"], settings["frames"]) == (2, "hard", 1500)
    stored = json.loads((whole / "sweep.json").read_text())
    assert stored["seeds"] == [1, 2]
    assert stored["arms"]["taught"] == {"teacher": {"noise": 0.1}, "targets": "hard"}
    assert stored["teachers"] == {"alone": None, "taught": "planner-noise-0.1"}
    played = json.loads((whole / "teachers" / "planner-noise-0.1" / f"{_ENV}.json").read_text())
    assert played["teacher"] == config["teacher"]["identity"]
    assert played["sampled"]["episodes"] == played["argmax"]["episodes"] == 50
    assert 0.5 < played["sampled"]["success"] < 1
    assert (whole / "teachers" / "planner-noise-0.1.sqlite3").exists()
    assert not (whole / "failed.json").exists()


@pytest.mark.integration
def test_a_sweep_and_its_report_of_an_arm_for_some_environments(tmp_path: Path) -> None:
    small = [("seeds = 2", "seeds = 1"), ("frames = 1500", "frames = 256")]
    out = tmp_path / "out"
    unplayed = ("teacher-episodes = 50", "teacher-episodes = 0")
    assert main(_command(_write(tmp_path, *_NARROW, *small, unplayed), out, "--no-progress")) == 0
    assert not list(out.glob("teachers/*/*.json"))
    plan = _write(tmp_path, *_NARROW, *small, ("seeds = 1", "seeds = [1]"))
    assert main(_command(plan, out, "--no-progress")) == 0
    cells = [("alone", _OTHER_ENV), ("alone", _ENV), ("taught", _ENV)]
    assert list(_results(out)) == [f"{arm}/ppo/{env}/seed-1" for arm, env in cells]
    assert [path.stem for path in out.glob("teachers/*/*.json")] == [_ENV]
    assert main(["report", str(out), "--resamples", "200"]) == 0
    text = (out / "report" / "report.md").read_text()
    assert "3 of 3 runs are finished" in text
    assert "## Harm" in text


@pytest.mark.integration
def test_a_killed_sweep_leaves_no_process_and_resumes_to_the_same_results(
    whole: Path, tmp_path: Path
) -> None:
    plan, out = _write(tmp_path), tmp_path / "out"
    process = _start(plan, out)
    wait_for(lambda: any(out.glob("runs/taught/*/*/*/checkpoints/*.pt")), "a checkpoint")
    helpers = _descendants(process.pid)
    assert len(helpers) >= 4  # two workers, the teacher and its watchdog
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = _start(plan, out)
    wait_for(lambda: not any(map(_alive, helpers)), "the helpers' end")
    unfinished = len(_results(out))
    said, errors = again.communicate(timeout=LONG_S)
    assert again.returncode == 0, errors
    assert unfinished < 4
    assert sum(": success " in line for line in said.splitlines()) == 4 - unfinished
    assert _results(out) == _results(whole)


@pytest.mark.integration
def test_a_killed_worker_costs_one_attempt_and_an_interrupted_sweep_is_resumed(
    whole: Path, tmp_path: Path
) -> None:
    alone = _PLAN.split("[arms.taught]", maxsplit=1)[0]
    plan, out = _write(tmp_path, ("seeds = 2", "seeds = 5"), text=alone), tmp_path / "out"
    process = _start(plan, out, "--jobs", "1")
    wait_for(lambda: any(out.glob("runs/*/*/*/*/checkpoints/*.pt")), "a checkpoint")
    # multiprocessing has a process of its own too
    (worker,) = (each for each in _descendants(process.pid) if "spawn_main" in " ".join(each.cmdline()))
    worker.kill()
    wait_for(lambda: _results(out), "the first run's end")
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    assert re.fullmatch(
        r"student sweep: interrupted; [1-4] of 5 runs are done: run it again to resume\n", errors
    )
    assert main(_command(plan, out, "--no-progress")) == 0
    found = _results(out)
    assert len(found) == 5
    for seed in (1, 2):
        name = f"alone/ppo/{_ENV}/seed-{seed}"
        assert found[name] == _results(whole)[name]


@pytest.mark.integration
def test_a_failed_run_does_not_stop_the_others(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = _write(tmp_path), tmp_path / "out"
    shutil.copytree(whole, out)
    bad, other = (f"alone/ppo/{_ENV}/seed-{seed}" for seed in (1, 2))
    (out / "runs" / bad / "summary.json").unlink()
    for checkpoint in (out / "runs" / bad / "checkpoints").iterdir():
        checkpoint.write_bytes(b"damaged")
    shutil.rmtree(out / "runs" / other)
    assert main(_command(plan, out, "--no-progress", "--jobs", "1")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"student sweep: error: {bad}: ")
    assert "cannot be read as a checkpoint" in line
    assert list(json.loads((out / "failed.json").read_text())) == [bad]
    assert _results(out) == {name: row for name, row in _results(whole).items() if name != bad}
    shutil.copytree(
        whole / "runs" / bad / "checkpoints", out / "runs" / bad / "checkpoints", dirs_exist_ok=True
    )
    assert main(_command(plan, out, "--no-progress", "--jobs", "1")) == 0
    assert not (out / "failed.json").exists()
    assert _results(out) == _results(whole)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changes", "flags", "said"),
    [
        ([("frames = 1500", "frames = 1600")], (), "frames was 1500 and is 1600 (alone, ppo,"),
        ([("[arms.taught]", "[arms.pupil]")], (), "arms: taught is no longer there"),
        (
            [("{ noise = 0.1 }", '"given"')],
            (),
            'arms.taught.teacher is "given": give its address as --teacher',
        ),
        ([], ("--teacher", "http://127.0.0.1:9"), "--teacher: no arm of"),
        (
            [("[arms.alone]", "[arms.odd]\nteacher = { noise = 3 }\n[arms.alone]")],
            (),
            "arms.odd.teacher: teacher serve: error: --noise",
        ),
        ([], ("--jobs", "0"), "--jobs (or STUDENT_JOBS)"),
    ],
)
def test_refusals_change_nothing(
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[tuple[str, str]],
    flags: tuple[str, ...],
    said: str,
) -> None:
    def content() -> dict[Path, bytes]:
        files = [*whole.glob("*.json"), *(whole / "runs").rglob("*")]
        return {path: path.read_bytes() for path in files if path.is_file()}

    before = content()
    assert main([*_command(_write(tmp_path, *changes), whole, "--no-progress"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert content() == before


@pytest.fixture
def ray_address() -> Iterator[str]:
    """A Ray cluster on this machine, with two CPUs."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    start = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert any("Ray runtime started" in line for line in process.stdout)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=LONG_S)


@pytest.mark.integration
def test_the_same_sweep_on_a_ray_cluster(whole: Path, tmp_path: Path, ray_address: str) -> None:
    """A sweep that is interrupted and resumed on a cluster has the results of local processes."""
    plan, out = _write(tmp_path), tmp_path / "out"
    process = _start(plan, out, "--ray", ray_address)
    wait_for(lambda: any(out.glob("runs/*/*/*/*/checkpoints/*.pt")), "a checkpoint")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 130, errors
    assert "run it again to resume" in errors
    process = _start(plan, out, "--ray", ray_address)
    _, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, errors
    assert _results(out) == _results(whole)


@pytest.mark.integration
def test_a_ray_cluster_that_does_not_answer(tmp_path: Path) -> None:
    """Connects to a port that accepts connections and never answers."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        process = _start(_write(tmp_path), tmp_path / "out", "--ray", address)
        said, errors = process.communicate(timeout=LONG_S)
    assert (process.returncode, said) == (2, "")
    assert len(errors.splitlines()) == 1
    assert errors.startswith(
        f"student sweep: error: no Ray cluster answered at {address} for 15 s. HOST:PORT is"
    )
    assert time.monotonic() - began < 40
