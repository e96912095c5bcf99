"""A run that cannot be written down any more, was cut off in a line, or is written by another process."""

import json
import resource
import subprocess
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest

from student.cli import main
from student.runs.folder import BadRun, CannotWrite, Run
from tests.student.ends import assert_same_end
from tests.waiting import LONG_S

pytestmark = pytest.mark.integration

_STUDENT = str(Path(sys.executable).with_name("student"))
_SMALL = (
    *("--env", "MiniGrid-LavaGapS5-v0", "--environments", "4", "--rollout-steps", "32", "--frames", "2000"),
    *("--evaluate-every", "0", "--evaluation-episodes", "5", "--checkpoint-every", "512", "--no-progress"),
    "--go-on",
)


def _train(out: Path, most_bytes: int = resource.RLIM_INFINITY) -> tuple[int, str]:
    """Exit code and stderr of a run that can write no file of more bytes."""
    process = subprocess.run(
        [_STUDENT, "train", *_SMALL, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes)),
    )
    return process.returncode, process.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert _train(out) == (0, "")
    return out


@pytest.mark.parametrize("room", ["config", "log", "checkpoint"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(whole: Path, tmp_path: Path, room: str) -> None:
    """Files may grow to a little less than the named one needs."""
    run = tmp_path / "run"
    needs = {"config": "config.json", "log": "metrics.jsonl", "checkpoint": "checkpoints/*.pt"}[room]
    size = min(path.stat().st_size for path in whole.glob(needs))
    code, said = _train(run, size - 10)
    assert code == (2 if room == "config" else 4)
    (line,) = said.splitlines()
    assert f"student train: error: cannot write to {run}: File too large" in line
    assert not list(run.rglob("*.part"))
    assert _train(run) == (0, "")
    assert_same_end(whole, run)


def test_a_run_that_was_cut_off_in_a_line_is_gone_on_with(whole: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", json.loads((whole / "config.json").read_text()))
    log = run.folder / "metrics.jsonl"
    log.write_text('{"frames": 128}\n{"frames": 256, "retu')
    assert run.metrics() == [{"frames": 128}]
    run.start_logging(128)
    run.log({"frames": 256})
    run.stop_logging()
    assert log.read_text() == '{"frames": 128}\n{"frames": 256}\n'
    log.write_text('{"frames": 128, "retu\n{"frames": 256}\n')
    with pytest.raises(BadRun, match=r"metrics\.jsonl cannot be read"):
        run.metrics()


def test_a_run_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    begun, new = Run.create(tmp_path / "begun", {"settings": {}}), Run(tmp_path / "new")
    with pytest.raises(BadRun, match="another process trains in"):
        Run.open(begun.folder).hold()
    begun.release()
    with Run.open(begun.folder).held(), pytest.raises(BadRun, match="another process trains in"):
        Run.open(begun.folder).hold()
    new.folder.mkdir()
    with new.held(), pytest.raises(BadRun, match="another process trains in"):
        Run.create(new.folder, {"settings": {}})
    assert not Run.is_in(new.folder)
    Run.create(new.folder, {"settings": {}}).release()


def test_the_same_command_started_twice_is_refused_in_one_line(tmp_path: Path) -> None:
    """The first is in its first frames, or past its first checkpoint: the second touches nothing."""
    out = tmp_path / "run"
    command = ["train", *_SMALL, "--frames", "1000000", "--out", str(out)]
    first = subprocess.Popen([_STUDENT, *command], stderr=subprocess.PIPE, text=True)
    try:
        for glob in ("config.json", "checkpoints/*.pt"):
            while not list(out.glob(glob)):
                assert first.poll() is None
            with redirect_stderr(StringIO()) as err:
                assert main(command) == 2
            assert err.getvalue().splitlines() == [
                f"student train: error: another process trains in {out}: wait for its end, stop it, or choose"
                " another --out"
            ]
    finally:
        first.terminate()
        _, said = first.communicate(timeout=LONG_S)
    assert first.returncode == 130
    assert len(said.splitlines()) == 1


def test_a_log_on_a_full_device_says_so(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"settings": {}})
    run.start_logging(0)
    run._metrics = Path("/dev/full").open("a", buffering=1)  # noqa: SIM115 - the run closes it
    with pytest.raises(CannotWrite, match="No space left"):
        run.log({"frames": 128})
    run.stop_logging()
