"""`teacher bench` against real teachers: its files, its errors, and Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from teacher_tools.cli import main
from tests.conftest import StartTeacher, TeacherProcess
from tests.waiting import LONG_S, metric

pytestmark = pytest.mark.integration

_FAST = ("--concurrency", "1", "--questions", "8", "--warm-up", "2", "--task", "fetch")


def _bench(*flags: str) -> int:
    return main(["bench", *flags])


def test_a_run_writes_json_tables_and_plots(
    shared_teacher: TeacherProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _asked_and_stored(shared_teacher)
    flags = ("--concurrency", "1,3", "--rate", "80", "--questions", "12", "--warm-up", "4", "--seed", "5")
    assert _bench(shared_teacher.url, *flags, "--target-ms", "60000", "--out", str(tmp_path / "out")) == 0
    out, err = capsys.readouterr()
    names = {"bench.json", "bench.md", "latency.png", "distribution.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert all((tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG" for name in names if "png" in name)
    assert err.splitlines()[1:] == [f"teacher bench: {load}" for load in ("1 at once", "3 at once", "80/s")]

    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert (written["seed"], written["interrupted"], written["questions"]) == (5, False, 12)
    assert written["teachers"]["teacher"]["identity"].startswith("planner-")
    points = written["points"]
    loads = [(p.get("concurrency"), p.get("rate"), p["pass"]) for p in points]
    assert loads == [
        *((1, None, "cold"), (1, None, "warm"), (3, None, "cold"), (3, None, "warm")),
        *((None, 80, "cold"), (None, 80, "warm")),
    ]
    for point in points:
        assert (point["asked"], point["answered"], point["errors"]) == (12, 12, {})
        assert point["stored"] == (12 if point["pass"] == "warm" else 0)
        assert point["good_per_s"] == point["answered_per_s"] == pytest.approx(12 / point["seconds"])
        spread = point["latency_ms"]
        assert 0 < spread["p50"] <= spread["p90"] <= spread["p95"] <= spread["p99"] <= spread["maximum"]
        assert max(sample["latency_ms"] for sample in point["samples"]) == spread["maximum"]
        assert point["parts_ms"]["total"]["mean"] < spread["mean"]
        assert ("teacher" in point["parts_ms"]) == (point["pass"] == "cold")
        assert (point["late_ms"] is not None) == ("rate" in point)
        assert _median_in(out, point) == pytest.approx(spread["p50"], rel=0.01)
    # The teacher's own count: other clients of a closed loop go on until the last counted answer
    for after, earlier in zip(_asked_and_stored(shared_teacher), before, strict=True):
        assert 3 * (4 + 12) <= after - earlier <= 3 * (4 + 12) + 2


def _asked_and_stored(teacher: TeacherProcess) -> list[float]:
    return [metric(teacher, "teacher_questions_total", way=way) for way in ("asked", "stored")]


def _median_in(table: str, point: dict[str, Any]) -> float:
    load = f"{point['concurrency']:g} at once" if "concurrency" in point else f"{point['rate']:g}/s"
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    column = next(row for row in rows if "p50" in row).index("p50")
    return float(next(row for row in rows if row[1:3] == [load, point["pass"]])[column])


def test_two_teachers_take_turns(shared_teacher: TeacherProcess, tmp_path: Path) -> None:
    flags = ("--vs", shared_teacher.url, "--rounds", "4", "--no-warm", "--seed", "6", "--out", str(tmp_path))
    assert _bench(shared_teacher.url, *_FAST, *flags) == 0
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [point["teacher"] for point in written["points"]] == ["teacher", "vs"]
    # Both share a store; as it had no answer, the two got different questions
    assert all(point["answered"] == 8 and point["stored"] == 0 for point in written["points"])
    assert {sample["round"] for sample in written["points"][0]["samples"]} == {0, 1, 2, 3}
    (ratio,) = written["ratios"]
    assert (ratio["of"], ratio["to"]) == ("teacher", "vs")
    assert ratio["p50"]["low"] <= ratio["p50"]["value"] <= ratio["p50"]["high"]
    assert "Ratios of teacher to the others" in (tmp_path / "bench.md").read_text()


def test_one_teacher_can_be_measured_in_rounds(shared_teacher: TeacherProcess, tmp_path: Path) -> None:
    flags = ("--concurrency", "3", "--rounds", "2", "--questions", "8", "--no-warm", "--seed", "8")
    assert _bench(shared_teacher.url, *flags, "--task", "fetch", "--out", str(tmp_path)) == 0
    (point,) = json.loads((tmp_path / "bench.json").read_text())["points"]
    # At least four questions a round, equally many for each client
    assert Counter(sample["round"] for sample in point["samples"]) == {0: 6, 1: 6}


def test_a_repeated_run_is_warned_of_stored_answers(
    shared_teacher: TeacherProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (shared_teacher.url, *_FAST, "--no-warm", "--seed", "7")
    assert _bench(*flags) == 0
    assert "the store had" not in capsys.readouterr().out
    assert _bench(*flags) == 0
    assert "the store had answers to 8 of 8 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--rate", "0"), "--rate (or TEACHER_BENCH_RATE): Input should be greater than 0, not '0'"),
        (("--rate", "5,x"), "--rate (or TEACHER_BENCH_RATE)"),
        (("--concurrency", "0"), "--concurrency (or TEACHER_BENCH_CONCURRENCY)"),
        (("--concurrency", "none"), "there is no load to measure: set --concurrency or --rate"),
        (
            ("--vs", "http://127.0.0.1:9", "--rounds", "1"),
            "--rounds is 1: a comparison of two teachers needs at least 2",
        ),
        (("--task", "chess"), "unknown task 'chess'; the tasks are lava_gap"),
        (("nowhere",), "'nowhere' is neither a teacher's address"),
        (("ftp://127.0.0.1",), "write it as http://HOST:PORT"),
        (("--vs", "nowhere"), "--vs: 'nowhere' is neither"),
        (("http://127.0.0.1:9", "--", "--eager"), "the flags after -- (--eager)"),
        (("http://127.0.0.1:9", "--wait-s", "0.2"), "http://127.0.0.1:9 gave no answer"),
        (("--vs-openai", "http://127.0.0.1:9"), "does not answer like an OpenAI-compatible server"),
        (("--vs-openai", "http://127.0.0.1:9", "--prompts", "none-such"), "--prompts: no prompt set"),
    ],
)
def test_an_unusable_setting_is_reported_in_one_line(
    flags: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(*flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("teacher bench: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_unusable_folder_is_reported_in_one_line(
    shared_teacher: TeacherProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert _bench(shared_teacher.url, "--out", str(tmp_path / "file" / "out")) == 2
    assert "--out: cannot write to" in capsys.readouterr().err
    assert _bench(shared_teacher.url, "--vs", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path}: config.json: is missing" in err
    assert err.count("\n") == 1


def test_failures_are_counted_by_status_and_a_key_is_required(
    teacher_process: StartTeacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("sesame")
    teacher = teacher_process("--delay-ms", "500", "--timeout-s", "0.02", "--api-key-file", str(key))
    assert _bench(teacher.url, *_FAST) == 2
    assert "needs a key" in capsys.readouterr().err
    flags = ("--teacher-key-file", str(key), "--out", str(tmp_path / "out"))
    assert _bench(teacher.url, *_FAST, *flags) == 1
    out, err = capsys.readouterr()
    assert "1 at once, cold: not answered: 8 x 504" in out
    assert err.endswith("teacher bench: error: no question was answered\n")
    # No warm pass, since there is no answered question to repeat
    (point,) = json.loads((tmp_path / "out" / "bench.json").read_text())["points"]
    assert (point["answered"], point["errors"], point["latency_ms"]) == (0, {"504": 8}, None)


def test_ctrl_c_keeps_the_measurements(shared_teacher: TeacherProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "teacher_tools", "bench", shared_teacher.url, "--no-warm"]
    command += ["--concurrency", "2", "--rate", "0.5", "--questions", "10", "--warm-up", "0"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stderr is not None
        line = ""
        while "0.5/s" not in line:  # the first load is complete
            line = process.stderr.readline()
            assert line, "the run ended too early"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    assert re.search(r"^teacher bench: interrupted; the measurements so far are in \S+$", err, re.MULTILINE)
    assert "Traceback" not in err
    assert "Interrupted" in out
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["interrupted"] is True
    whole = written["points"][0]
    assert (whole["concurrency"], whole["answered"]) == (2, 10)
    assert {"bench.md", "latency.png"} <= {file.name for file in tmp_path.iterdir()}
