"""`student report` on folders with known curves, on real runs, and on folders that hold no sweep."""

import base64
import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from student.cli import main
from student.experiments.comparison import ArmComparison, arms_that_differ_in
from student.experiments.results import Cell, read_sweep
from tests.student.experiments.sweeps import (
    ALONE,
    ENV,
    EVERY,
    TAUGHT,
    TEACHER,
    step,
    write,
    write_run,
    write_sweep,
    write_teacher,
)

pytestmark = pytest.mark.integration

_STUDENT = [sys.executable, "-m", "student"]
_OTHER_ENV = "MiniGrid-Dynamic-Obstacles-5x5-v0"
_FEW = ("--resamples", "200")
_ALL = {"report.html", "report.md", "success.png", "ablations.png", "samples.png"}
_ALL |= {"curves.csv", "speedups.csv", "final.csv", "harm.csv", "questions.csv"}
_LENGTH = 30
"""Evaluations of a run."""


def _report(folder: Path, *flags: str | Path) -> Path:
    """Writes the report and returns its folder."""
    assert main(["report", str(folder), *_FEW, *map(str, flags)]) == 0
    return folder / "report"


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def _small(folder: Path, arms: dict[str, dict[str, Any]] | None = None) -> Path:
    """Three seeds of each arm; the first reaches the threshold at 16,000 frames, the others at 8,000."""
    arms = arms or {"alone": ALONE, "taught": TAUGHT}
    write_sweep(folder, arms, (1, 2, 3))
    for number, arm in enumerate(arms):
        for seed in (1, 2, 3):
            write_run(folder, arm, seed, step(8 if number else 16, 20))
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two environments, two algorithms, five arms, five seeds.

    In LavaGap `alone` reaches the threshold at 20,000 frames and `taught` at 8,000; in the other environment
    `alone` does not reach it within 30,000, and `taught` reaches it at 10,000. The other arms equal `taught`.
    """
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    arms = {"alone": ALONE, "taught": TAUGHT, "hard": {**TAUGHT, "targets": "hard"}}
    arms |= {f"lambda-{value:g}": {**TAUGHT, "lambda": value} for value in (0.1, 10.0)}
    algos, envs, seeds = ("ppo", "a2c"), (ENV, _OTHER_ENV), (1, 2, 3, 4, 5)
    write_sweep(folder, arms, seeds, envs, algos)
    for env, alone, taught in ((ENV, 20, 8), (_OTHER_ENV, _LENGTH + 1, 10)):
        write_teacher(folder, env=env)
        for algo in algos:
            for arm in arms:
                for seed in seeds:
                    at = alone if arm == "alone" else taught
                    write_run(folder, arm, seed, step(at, _LENGTH), algo, env)
    _report(folder)
    return folder


def test_speed_ups(sweep: Path) -> None:
    rows = {
        (row["env"], row["figure"], row["arm"], row["algo"]): row
        for row in _rows(sweep / "report" / "speedups.csv")
    }
    alone, taught = (rows[ENV, "success", arm, "ppo"] for arm in ("alone", "taught"))
    assert (float(alone["median"]), float(taught["median"])) == (20_000, 8_000)
    assert float(taught["speedup"]) == pytest.approx(2.5)
    assert taught["speedup_sign"] == alone["speedup"] == ""
    never, other = (rows[_OTHER_ENV, "success", arm, "a2c"] for arm in ("alone", "taught"))
    assert (never["reached"], never["seeds"], never["median_sign"]) == ("0", "5", ">=")
    assert float(other["speedup"]) == pytest.approx(3.0)  # the length of its runs over 10,000
    assert (other["speedup_sign"], other["speedup_low_sign"], other["speedup_high_sign"]) == (">=", "", ">=")
    mean = rows["", "success", "taught", "ppo"]
    assert float(mean["speedup"]) == pytest.approx((2.5 * 3.0) ** 0.5)
    assert mean["speedup_sign"] == ">="
    assert mean["environments"] == f"{ENV} {_OTHER_ENV}"
    assert float(rows[ENV, "return", "taught", "ppo"]["speedup"]) == pytest.approx(2.5)
    assert (_OTHER_ENV, "return", "taught", "ppo") not in rows


def test_the_papers_results_are_listed(sweep: Path) -> None:
    text = (sweep / "report" / "report.md").read_text()
    for algo, mean, lava_gap, samples in (("PPO", "2.56", "2.11", "5,260"), ("A2C", "2.86", "2.18", "9,180")):
        assert f"| {algo} | four tasks, in the paper |  | LVLM2P |  |  | {mean} |" in text
        assert (
            f"| {algo} | LavaGap, in the paper | return ≥ 0.91 | LVLM2P |  | {samples} | {lava_gap} |" in text
        )
    assert "| ≥ 3.00 |" in text


def test_questions_and_the_papers_count(sweep: Path) -> None:
    rows = {(row["algo"], row["arm"]): row for row in _rows(sweep / "report" / "questions.csv")}
    for algo, epochs in (("ppo", 4), ("a2c", 1)):
        assert float(rows[algo, "taught"]["papers_count"]) == _LENGTH * EVERY * epochs
        asked = [
            float(rows[algo, "taught"][name]) for name in ("states", "questions", "store_hits", "failed")
        ]
        assert asked == [300, 200, 90, 10]
        assert float(rows[algo, "taught"]["frames_per_second"]) == _LENGTH * EVERY / 10
    assert rows["ppo", "alone"]["papers_count"] == ""


def test_final_success_and_its_difference(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"alone": ALONE, "taught": TAUGHT}, (1, 2))
    for seed, alone, taught in ((1, 0.2, 0.9), (2, 0.4, 1.0)):
        write_run(tmp_path, "alone", seed, [alone] * 5)
        write_run(tmp_path, "taught", seed, [taught] * 5)
    rows = {row["arm"]: row for row in _rows(_report(tmp_path) / "final.csv") if row["env"]}
    assert float(rows["alone"]["success"]) == pytest.approx(0.3)
    assert [float(rows["alone"][f"success_{end}"]) for end in ("low", "high")] == [0.2, 0.4]
    assert float(rows["taught"]["difference"]) == pytest.approx(0.65)
    ends = [float(rows["taught"][f"difference_{end}"]) for end in ("low", "high")]
    assert ends == pytest.approx([0.6, 0.7]), "seed by seed"
    assert rows["alone"]["difference"] == ""


def test_a_difference_is_that_of_the_seeds_that_both_arms_have(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"alone": ALONE, "taught": TAUGHT}, (1, 2, 3))
    for seed, alone, taught in ((1, 0.2, 0.3), (2, 0.9, 1.0), (3, 0.0, None)):
        write_run(tmp_path, "alone", seed, [alone] * 5)
        if taught is not None:
            write_run(tmp_path, "taught", seed, [taught] * 5)
    rows = {row["arm"]: row for row in _rows(_report(tmp_path) / "final.csv") if row["env"]}
    found = [float(rows["taught"][f"difference{end}"]) for end in ("", "_low", "_high")]
    assert found == pytest.approx([0.1, 0.1, 0.1])


def test_the_lowest_success_after_the_threshold_was_held(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"alone": ALONE, "taught": TAUGHT}, (1, 2, 3))
    for seed, taught in enumerate(
        ([0.9, 0.9, 0.9], [0.2, 0.9, 0.95, 0.9, 0.6, 1.0], [1.0, 1.0, 1.0, 0.98]), 1
    ):
        write_run(tmp_path, "alone", seed, [0.1, 0.9, 0.9, 0.2, 0.1])
        write_run(tmp_path, "taught", seed, taught)
    rows = {row["arm"]: row for row in _rows(_report(tmp_path) / "final.csv") if row["env"]}
    assert (rows["alone"]["lowest"], rows["taught"]["lowest"]) == ("", "0.6")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| difference to the baseline | lowest after success ≥ 0.9 |" in text


def test_harm_and_arms_for_some_environments(tmp_path: Path) -> None:
    arms = {"alone": ALONE, "taught": TAUGHT, "narrow": {**TAUGHT, "lambda": 0.1, "envs": [ENV]}}
    arms["other-alone"] = {**ALONE, "lambda": 0.5}
    write_sweep(tmp_path, arms, (1, 2), (ENV, _OTHER_ENV))
    success = {("alone", ENV): (0.8, 0.8), ("taught", ENV): (0.9, 0.9), ("narrow", ENV): (0.5, 0.5)}
    success |= {("alone", _OTHER_ENV): (0.6, 0.6), ("taught", _OTHER_ENV): (0.5, 0.7)}
    success |= {("other-alone", env): (0.1, 0.1) for env in (ENV, _OTHER_ENV)}
    for (arm, env), values in success.items():
        for seed, value in enumerate(values, 1):
            write_run(tmp_path, arm, seed, [value] * 5, env=env)
    sweep = read_sweep(tmp_path)
    assert sweep.planned == 14
    assert not [note for note in sweep.notes if "left out" in note]
    out = _report(tmp_path)

    harms = {(row["arm"], row["env"]): row for row in _rows(out / "harm.csv")}
    expected = {
        ("taught", ENV): (1, 0.1, "0"),
        ("taught", _OTHER_ENV): (1, 0.0, "1"),  # the interval is -0.1 to 0.1
        ("taught", ""): (2, 0.05, "0"),
        ("narrow", ENV): (1, -0.3, "1"),
        ("narrow", ""): (1, -0.3, "1"),
        ("", ENV): (2, -0.1, "1"),
        ("", _OTHER_ENV): (1, 0.0, "1"),
        ("", ""): (3, -0.2 / 3, "1"),
    }
    assert harms.keys() == expected.keys()
    for key, (cells, difference, harmful) in expected.items():
        assert (int(harms[key]["cells"]), harms[key]["harmful"]) == (cells, harmful), key
        assert float(harms[key]["difference"]) == pytest.approx(difference), key
    ends = [float(harms["taught", _OTHER_ENV][f"difference_{end}"]) for end in ("low", "high")]
    assert ends == pytest.approx([-0.1, 0.1])
    text = (out / "report.md").read_text()
    assert "| arm, with PPO | LavaGapS5 | Dynamic-Obstacles-5x5 | all environments |" in text
    assert "| narrow | ▼ -0.300 [-0.300, -0.300] | – | ▼ -0.300 [-0.300, -0.300] |" in text
    assert "<td>▼ -0.300 [-0.300, -0.300]</td>" in (out / "report.html").read_text()

    finals = {(row["arm"], row["env"]): row for row in _rows(out / "final.csv")}
    assert float(finals["narrow", ""]["difference"]) == pytest.approx(-0.3), "to the baseline there alone"
    assert float(finals["alone", ""]["success"]) == pytest.approx(0.7)
    assert "| PPO | its environment | narrow | 2 |" in text
    assert "| PPO | geometric mean, 0 of 1 | success ≥ 0.9 | narrow |" in text


def test_without_teachers_there_is_no_harm(tmp_path: Path) -> None:
    out = _report(_small(tmp_path, {"alone": ALONE, "b": {**ALONE, "lambda": 0.1}}))
    assert _rows(out / "harm.csv") == []
    assert "Harm" not in (out / "report.md").read_text() + (out / "report.html").read_text()


class _Loads(HTMLParser):
    """The tags of a page, and the addresses that it loads or links."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [
            value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")
        ]


def test_the_report_is_complete_and_its_page_loads_no_other_file(sweep: Path) -> None:
    assert {path.name for path in (sweep / "report").iterdir()} == _ALL
    assert len(_rows(sweep / "report" / "curves.csv")) == 5 * 2 * 2 * 5 * _LENGTH
    page = (sweep / "report" / "report.html").read_text()
    loads = _Loads()
    loads.feed(page)
    assert not {"script", "link", "iframe", "object"} & loads.tags
    assert not re.search(r"@import|url\(", page)
    assert len(loads.sources) == 3
    figures = set()
    for source in loads.sources:
        assert source.startswith("data:image/png;base64,")
        figures.add(base64.b64decode(source.partition(",")[2]))
    assert figures == {path.read_bytes() for path in (sweep / "report").glob("*.png")}
    for figure in figures:
        with Image.open(io.BytesIO(figure)) as image:
            assert image.convert("L").getextrema() != (255, 255)


def test_the_page_has_teachers_settings_and_commands(sweep: Path) -> None:
    page = (sweep / "report" / "report.html").read_text()
    for said in (
        TEACHER,
        "planner",
        f"student sweep PLAN --out {sweep}",
        f"student report {sweep}",
        "&#34;noise&#34;",
    ):
        assert said in page
    assert "<td>targets</td>" in page
    assert "0.970 [0.940, 1.000]" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    page = (_report(_small(tmp_path, {"a<i>b|": ALONE, "c": TAUGHT})) / "report.html").read_text()
    assert "a&lt;i&gt;b|" in page
    assert "a<i>b" not in page
    assert r"| a<i>b\| |" in (tmp_path / "report" / "report.md").read_text()


def test_some_arms_alone(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    flags = ["report", str(sweep), *_FEW, "--out", str(out), "--arms"]
    assert main([*flags, "hard,taught"]) == 0
    capsys.readouterr()
    whole = {(row["arm"], row["algo"], row["env"]): row for row in _rows(sweep / "report" / "final.csv")}
    rows = _rows(out / "final.csv")
    assert {row["arm"] for row in rows} == {"alone", "taught", "hard"}
    assert [row["success"] for row in rows] == [
        whole[row["arm"], row["algo"], row["env"]]["success"] for row in rows
    ]
    assert "| lambda-10 |" not in (out / "report.md").read_text()
    assert main([*flags, "taught,soft"]) == 2
    assert "--arms 'soft' is not an arm; the arms are 'alone'" in capsys.readouterr().err


def test_a_sweep_of_the_baseline_alone(tmp_path: Path) -> None:
    out = _report(_small(tmp_path, {"alone": ALONE}))
    assert "LVLM2P |" not in (out / "report.md").read_text().split("return ≥ 0.91")[0]
    assert {row["arm"] for row in _rows(out / "speedups.csv")} == {"alone"}


def test_arms_that_differ_in_one_setting_alone(tmp_path: Path) -> None:
    slow = {**TAUGHT, "learning_rate": 1e-4}
    arms = {
        "alone": ALONE,
        "b": TAUGHT,
        "hard": {**TAUGHT, "targets": "hard"},
        "a": {**TAUGHT, "lambda": 0.1},
    }
    arms |= {
        "slow": slow,
        "slow-2": {**slow, "lambda": 2.0},
        "elsewhere": {**TAUGHT, "teacher": "http://b:1"},
    }
    sweep = read_sweep(_small(tmp_path, arms))
    assert arms_that_differ_in("targets", sweep, "ppo", ENV) == [{"soft": "b", "hard": "hard"}]
    lambdas = arms_that_differ_in("lambda", sweep, "ppo", ENV)
    assert lambdas == [{0.1: "a", 1.0: "b"}, {1.0: "slow", 2.0: "slow-2"}]


def test_a_teacher_is_drawn_where_runs_learned_from_it(tmp_path: Path) -> None:
    write_teacher(_small(tmp_path))
    another = json.loads((tmp_path / "teachers" / "planner" / f"{ENV}.json").read_text())
    write(tmp_path / "teachers" / "noisy" / f"{ENV}.json", another | {"teacher": "noisy-1"})
    sweep = read_sweep(tmp_path)
    assert [teacher.name for teacher in sweep.teachers_of("ppo", ENV)] == ["planner"]
    assert sweep.notes == []
    (tmp_path / "teachers" / "planner" / f"{ENV}.json").unlink()
    assert sum(f"teacher {TEACHER} on {ENV}" in note for note in read_sweep(tmp_path).notes) == 1


def test_curves_are_interquartile_means(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"alone": ALONE}, (1, 2, 3, 4))
    for seed, value in ((1, 0.0), (2, 0.4), (3, 0.6), (4, 1.0)):
        write_run(tmp_path, "alone", seed, [value] * 80)
    curve = ArmComparison(read_sweep(tmp_path), 0.9, 300, 1).curves[Cell("alone", "ppo", ENV)]
    assert curve.frames_T.tolist() == [EVERY * (i + 1) for i in range(80)]
    assert curve.success_T == pytest.approx(0.5)
    assert (curve.low_T < 0.45).all()
    assert (curve.high_T > 0.55).all()


def test_a_curve_ends_with_the_shortest_seed(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"alone": ALONE}, (1, 2))
    write_run(tmp_path, "alone", 1, [0.0, 0.2, 0.4, 0.6])
    write_run(tmp_path, "alone", 2, [0.0, 0.4, 0.8])
    sweep = read_sweep(tmp_path)
    curve = ArmComparison(sweep, 0.9, 300, 1).curves[Cell("alone", "ppo", ENV)]
    assert curve.success_T == pytest.approx([0.0, 0.3, 0.6])
    assert sweep.notes == [f"alone/ppo/{ENV}: its seeds ran for different numbers of frames"]


def test_the_threshold_can_be_set(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"alone": ALONE, "taught": TAUGHT}, (1, 2))
    for seed in (1, 2):
        write_run(tmp_path, "alone", seed, step(10, 20, top=0.6))
        write_run(tmp_path, "taught", seed, step(5, 20, top=0.6))
    for flags, reached in (((), "0"), (("--threshold", "0.5"), "2")):
        row = _rows(_report(tmp_path, *flags) / "speedups.csv")[1]
        assert (row["figure"], row["arm"], row["reached"]) == ("success", "taught", reached)
    assert main(["report", str(tmp_path), "--threshold", "2"]) == 2


def test_the_same_seed_gives_the_same_report(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"alone": ALONE, "taught": TAUGHT}, range(1, 9))
    for seed in range(1, 9):
        write_run(tmp_path, "alone", seed, step(10 + seed, 30, top=0.9 + seed / 100))
        write_run(tmp_path, "taught", seed, step(2 + seed, 30, top=0.9 + seed / 100))

    def tables(seed: int) -> list[bytes]:
        out = _report(tmp_path, "--seed", str(seed))
        return [path.read_bytes() for path in sorted(out.iterdir()) if path.suffix in (".csv", ".png")]

    first = tables(1)
    assert first == tables(1)
    assert first != tables(2)


def _cut_off(run: Path) -> None:
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"frames": 21000, "evaluation_succ')


def _still_going(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"frames": 21000, "evaluation_success": 1.0, "evaluation_return": 1.0}\n')


def _failed(run: Path) -> None:
    """Seed 1 failed too, but is finished by now."""
    (run / "summary.json").unlink()
    failures = {f"taught/ppo/{ENV}/seed-{seed}": "the teacher gave no answer" for seed in (1, 2)}
    write(run.parents[4] / "failed.json", failures)


def _of_another_seed(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["settings"]["seed"] = 7
    write(run / "config.json", config)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda run: (run / "summary.json").unlink(),
            "unfinished: it has no summary.json, and its last evaluation",
        ),
        (_cut_off, "unfinished: it has no summary.json, and its metrics.jsonl is cut off in line 41"),
        (lambda run: (run / "metrics.jsonl").unlink(), "its metrics.jsonl cannot be read"),
        (lambda run: (run / "config.json").write_text("{"), "its config.json cannot be read"),
        (lambda run: (run / "summary.json").write_text("[]"), "its summary.json is not a JSON object"),
        (lambda run: (run / "summary.json").write_text("{}"), "this program cannot read its files: KeyError"),
        (_failed, "failed: the teacher gave no answer"),
        (_still_going, "unfinished: it was resumed after it wrote its summary.json"),
        (_of_another_seed, f"its config.json belongs to another run: ppo {ENV} 7"),
    ],
)
def test_a_run_that_is_left_out_is_noted(tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(_small(tmp_path) / "runs" / "taught" / "ppo" / ENV / "seed-2")
    sweep = read_sweep(tmp_path)
    assert [run.seed for run in sweep.runs[Cell("taught", "ppo", ENV)]] == [1, 3]
    assert [run.seed for run in sweep.runs[Cell("alone", "ppo", ENV)]] == [1, 2, 3]
    (note,) = sweep.notes[:-1]  # the last one says that the teacher was not evaluated
    assert note.startswith(f"taught/ppo/{ENV} seed 2: left out: {said}")


def test_notes_are_on_the_page_and_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _small(tmp_path)
    write_sweep(tmp_path, {"alone": ALONE, "taught": TAUGHT, "slow": TAUGHT}, (1, 2, 3, 4))
    write_run(tmp_path, "alone", 9, step(5, 20))
    write_run(tmp_path, "taught", 4, [1.0, 1.0])
    write(tmp_path / "teachers" / "odd" / f"{ENV}.json", {"teacher": TEACHER})
    out = _report(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    for said in (
        f"slow/ppo/{ENV} seeds 1, 2, 3, 4: left out: missing",
        f"alone/ppo/{ENV} seed 4: left out: missing",
        f"alone/ppo/{ENV}/seed-9: left out: it is not in sweep.json",
        f"taught/ppo/{ENV} seed 4: too few evaluations (2)",
        f"teachers/odd/{ENV}.json: left out",
    ):
        assert sum(line.startswith(f"student report: note: {said}") for line in lines) == 1, lines
        assert f"<li>{said}" in (out / "report.html").read_text()
        assert f"- {said}" in (out / "report.md").read_text()
    assert "7 of 12 runs are finished" in (out / "report.md").read_text()
    assert {row["arm"] for row in _rows(out / "speedups.csv")} == {"alone", "taught"}


def test_runs_under_a_former_name_of_their_algorithm_are_read(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"alone": ALONE}, (1, 2), algos=("dqn",))
    for seed in (1, 2):
        run = write_run(tmp_path, "alone", seed, step(5, 20), algo="dqn")
    config = json.loads((run / "config.json").read_text())
    config["settings"]["algo"] = "soft-q"  # as a run that was trained after the algorithm was renamed
    write(run / "config.json", config)
    assert [len(runs) for runs in read_sweep(tmp_path).runs.values()] == [2]


def test_an_environment_without_a_baseline_has_no_speed_up(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"alone": ALONE, "taught": TAUGHT}, (1, 2), (ENV, _OTHER_ENV))
    for seed in (1, 2):
        write_run(tmp_path, "alone", seed, step(10, 20))
        write_run(tmp_path, "taught", seed, step(5, 20))
        write_run(tmp_path, "taught", seed, step(5, 20), env=_OTHER_ENV)
    rows = {(row["env"], row["figure"], row["arm"]): row for row in _rows(_report(tmp_path) / "speedups.csv")}
    assert rows[_OTHER_ENV, "success", "taught"]["speedup"] == ""
    assert float(rows["", "success", "taught"]["speedup"]) == pytest.approx(2.0)
    assert rows["", "success", "taught"]["environments"] == ENV


def _nothing(folder: Path) -> None:
    """Creates no folder."""


def _broken(folder: Path) -> None:
    folder.mkdir()
    (folder / "sweep.json").write_text('{"version": 1, "envs": [')


def _newer(folder: Path) -> None:
    write(
        folder / "sweep.json",
        {**json.loads((write_sweep(folder, {"a": ALONE}, [1]) / "sweep.json").read_text()), "version": 5},
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_nothing, "there is no folder"),
        (lambda folder: folder.mkdir(), "holds no run and no sweep"),
        (_broken, "is not the plan of a sweep: JSONDecodeError"),
        (_newer, "has version 5, and this program reads 1 to 4"),
        (
            lambda folder: write_sweep(folder, {"a": ALONE}, [1], baseline="b"),
            "sweep.json: baseline: 'b' is not an arm; the arms are a",
        ),
        (
            lambda folder: write_sweep(folder, {"a": ALONE}, []),
            "sweep.json: seeds: write the number of seeds",
        ),
        (lambda folder: write_sweep(folder, {"a": ALONE}, [1, 2]), "has no finished run"),
    ],
)
def test_a_folder_without_a_readable_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Any], said: str
) -> None:
    folder = tmp_path / "sweep"
    make(folder)
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert str(folder) in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_report_replaces_a_report_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = _small(
        tmp_path / "sweep", {"alone": ALONE, "soft": TAUGHT, "hard": {**TAUGHT, "targets": "hard"}}
    )
    out = _report(sweep)
    assert (out / "ablations.png").exists()
    for summary in sweep.glob("runs/hard/*/*/*/summary.json"):
        summary.unlink()
    assert {path.name for path in _report(sweep).iterdir()} == _ALL - {"ablations.png"}
    for page in ("report.html", "report.md"):
        assert "There are no ablations" in (out / page).read_text()
    before = {path: path.read_bytes() for path in out.iterdir()}
    summaries = {summary: summary.read_bytes() for summary in sweep.glob("runs/*/*/*/*/summary.json")}
    for summary in summaries:
        summary.unlink()
    assert main(["report", str(sweep)]) == 2  # the old report stays
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    for summary, content in summaries.items():
        summary.write_bytes(content)
    (out / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    capsys.readouterr()
    for flags, said in (
        ((), "holds notes.txt, and a report needs a folder of its own: choose another --out"),
        (("--out", sweep), "holds report, and a report needs a folder of its own"),
        (("--out", tmp_path / "file"), "is not a folder"),
        (("--out", tmp_path / "file" / "report"), "cannot write to"),
    ):
        assert main(["report", str(sweep), *_FEW, *map(str, flags)]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert said in line
    assert (out / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "file"}
    assert {path.name for path in sweep.iterdir()} == {"sweep.json", "runs", "report"}


def test_real_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report reads what `student train` writes."""
    alone = {"teacher": "none"}
    write_sweep(tmp_path, {"alone": alone, "wide": {**alone, "environments": 8}, "absent": alone}, (1,))
    small = ("--env", ENV, "--frames", "1024", "--rollout-steps", "16", "--minibatch-size", "64")
    small += ("--evaluate-every", "256", "--evaluation-episodes", "2")
    begun = []
    for arm, seed, environments in (("alone", 1, "16"), ("wide", 1, "8")):
        run = tmp_path / "runs" / arm / "ppo" / ENV / f"seed-{seed}"
        command = [*_STUDENT, "train", *small, "--seed", str(seed), "--out", str(run)]
        command += ["--environments", environments]
        begun.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    assert [process.wait(120) for process in begun] == [0, 0]
    _report(tmp_path)
    said = capsys.readouterr()
    note = f"absent/ppo/{ENV} seed 1: left out: missing: it has not been started"
    assert said.err == f"student report: note: {note}\n"
    assert said.out.startswith(f"Wrote {tmp_path}/report/report.html")
    rows = [
        row for row in _rows(tmp_path / "report" / "curves.csv") if (row["arm"], row["seed"]) == ("wide", "1")
    ]
    log = (tmp_path / "runs" / "wide" / "ppo" / ENV / "seed-1" / "metrics.jsonl").read_text().splitlines()
    logged = [row for row in map(json.loads, log) if "evaluation_success" in row]
    assert len(logged) == 4
    assert [(int(row["frames"]), float(row["success"]), float(row["return"])) for row in rows] == [
        (row["frames"], row["evaluation_success"], row["evaluation_return"]) for row in logged
    ]
    assert "<td>environments</td><td>16</td><td>8</td>" in (tmp_path / "report" / "report.html").read_text()


def test_plain_runs_are_compared_by_what_their_settings_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a plan, runs that differ in the seed alone are an arm, in whatever folders they are."""
    weak, arms = {**TAUGHT, "lambda": 0.1}, {"a": ALONE, "b": TAUGHT}
    write_sweep(tmp_path / "made", arms | {"c": weak, "copy": weak}, (1, 2, 3))
    for arm, at in (("a", 16), ("b", 8), ("c", 12), ("copy", 12)):
        for seed in (1, 2, 3) if arm != "copy" else (1,):
            run = write_run(tmp_path / "made", arm, seed, step(at, 20))
            run.rename(tmp_path / f"{arm}-{seed}")
    (tmp_path / "made" / "sweep.json").unlink()
    write(tmp_path / "unfinished" / "config.json", {"settings": {"env": ENV, "algo": "ppo", "seed": 4}})
    write(tmp_path / "checkpoint" / "config.json", {"model_type": "qwen2_5_vl"})
    out = _report(tmp_path)
    rows = {(row["arm"], row["env"], row["figure"]): row for row in _rows(out / "speedups.csv")}
    for arm, frames, speed_up in (("taught, lambda 1.0", 8000, 2.0), ("taught, lambda 0.1", 12000, 4 / 3)):
        row = rows[arm, ENV, "success"]
        assert (float(row["median"]), int(row["seeds"])) == (frames, 3)
        assert float(row["speedup"]) == pytest.approx(speed_up)
    assert rows["alone", ENV, "success"]["speedup"] == ""
    err = capsys.readouterr().err
    assert f"{tmp_path}/copy-1: left out: {tmp_path}/c-1 has the same settings and the same seed" in err
    assert f"{tmp_path}/unfinished: left out: unfinished" in err
    assert f"{tmp_path}/checkpoint" not in err
    text = (out / "report.md").read_text()
    assert "9 of 11 runs are finished" in text
    assert "student sweep" not in text

    some = [str(tmp_path / name) for name in ("b-1", "b-2", "c-1")]
    baseline = ("--baseline", "taught, lambda 0.1", "--out", str(tmp_path / "r"))
    assert main(["report", *some, *_FEW, *baseline]) == 0
    rows = {(row["arm"], row["env"], row["figure"]): row for row in _rows(tmp_path / "r" / "speedups.csv")}
    assert float(rows["taught, lambda 1.0", ENV, "success"]["speedup"]) == pytest.approx(1.5)
    capsys.readouterr()
    assert main(["report", *some, "--baseline", "alone"]) == 2
    assert "--baseline 'alone' is not an arm" in capsys.readouterr().err


def test_a_figure_holds_its_whole_legend(tmp_path: Path) -> None:
    """A single panel is narrower than the names of its arms: the legend has several rows."""
    long = {f"taught-by-a-teacher-of-a-long-name-{i}": {**TAUGHT, "lambda": float(i)} for i in range(1, 7)}
    out = _report(_small(tmp_path, {"alone": ALONE} | long))
    for name in ("success.png", "samples.png"):
        with Image.open(out / name) as image:
            inked = image.convert("L").point(lambda value: 255 if value < 250 else 0).getbbox()
            size = image.size
        assert inked is not None
        left, upper, right, lower = inked
        assert min(left, upper, size[0] - right, size[1] - lower) >= 3
