"""`teacher prompts` and the making of examples, run as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teacher_server.prompting.prompt_set import SETS, load_prompt_set
from tests.waiting import LONG_S

pytestmark = pytest.mark.integration


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    teacher = Path(sys.executable).with_name("teacher")
    command = [teacher, "prompts", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False, cwd=folder)


def test_the_list_names_every_set(tmp_path: Path) -> None:
    done = _run(tmp_path, "list")
    assert done.returncode == 0
    assert done.stderr == ""
    for name in ("compact", "minigrid", "minigrid-zero-shot", "toy-text"):
        prompts = load_prompt_set(name)
        assert f"{name}  {prompts.digest[:12]}\n    {prompts.description}\n" in done.stdout
    assert "tasks: lava_gap, dynamic_obstacles, fetch, go_to_door" in done.stdout
    assert "tasks: frozen_lake, cliff_walking, taxi" in done.stdout


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    teacher = Path(sys.executable).with_name("teacher")
    command = f"{teacher} prompts list | head -1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=LONG_S, check=False, cwd=tmp_path
    )
    assert done.stdout.startswith("compact  ")
    assert done.stderr == ""


def test_show_prints_the_conversation_and_writes_the_picture(tmp_path: Path) -> None:
    done = _run(
        tmp_path, "show", "minigrid", "--task", "fetch", "--seed", "3", "--env", "MiniGrid-Fetch-6x6-N2-v0"
    )
    assert done.returncode == 0
    assert done.stderr == ""
    picture = tmp_path / "minigrid-fetch-3.png"
    with Image.open(picture) as image:
        assert image.size == (7 * 56, 7 * 56)  # six cells and the margin
    prompts = load_prompt_set("minigrid")
    conversation = prompts.conversation(
        task="fetch", mission="go fetch a blue ball", actions=prompts.tasks["fetch"], readout="labels"
    )
    for message in (*conversation.opening, conversation.question, conversation.followup):
        text = "".join(part["text"] if part["type"] == "text" else "\n" for part in message["content"])
        for line in text.splitlines():
            assert f"{line}\n" in done.stdout
    assert "[picture 1: 392 x 392, examples/fetch/01.png]" in done.stdout
    assert "[picture 6: 392 x 392, minigrid-fetch-3.png]" in done.stdout
    assert "one of left, right, forward, pick]" in done.stdout


def test_show_takes_any_environment(tmp_path: Path) -> None:
    done = _run(tmp_path, "show", "toy-text", "--task", "taxi", "--env", "Taxi-v4", "--seed", "3")
    assert done.returncode == 0
    assert "The stop with a thick dark border is the destination" in done.stdout
    assert "one of south, north, east, west, pick, drop]" in done.stdout
    with Image.open(tmp_path / "toy-text-taxi-3.png") as image:
        assert image.size == (19 * 28, 16 * 28)


def test_show_takes_a_folder_a_readout_and_a_file(tmp_path: Path) -> None:
    mine = shutil.copytree(SETS / "minigrid-zero-shot", tmp_path / "mine")
    (mine / "system.txt").write_text("Hello.\n{{ rules }}")
    how = ["--task", "lava_gap", "--readout", "numbers", "--token-side", "32"]
    done = _run(tmp_path, "show", "./mine", *how, "--out", "seen.png")
    assert done.stdout.startswith("--- system\nHello.\n- The target is the green goal square.")
    assert "probabilities as JSON" in done.stdout
    with Image.open(tmp_path / "seen.png") as image:
        assert image.size == (4 * 32, 4 * 32)  # the nearest to 5 * 28


def test_the_documents_own_task(tmp_path: Path) -> None:
    """The commands under "A task of your own" in docs/start/environment.md, as the document has them."""
    section = (SETS.parent / "docs/start/environment.md").read_text().split("## A task of your own")[1]
    commands = section.split("```sh\n")[1].split("```")[0]
    (tmp_path / "prompts").symlink_to(SETS)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
    )
    assert done.returncode == 0, done.stderr
    prompts = load_prompt_set(str(tmp_path / "my-task"))
    assert prompts.tasks["empty"] == ("left", "right", "forward")
    assert "- There are no hazards. Going forward against a wall does nothing.\n" in done.stdout
    assert "get to the green goal square" in done.stdout
    with Image.open(tmp_path / "my-task-empty-0.png") as image:
        assert image.size == (6 * 28, 6 * 28)
    summary = json.loads((tmp_path / "runs/empty-alone/summary.json").read_text())
    assert (summary["env"], summary["teacher"]) == ("MiniGrid-Empty-6x6-v0", None)
    assert summary["frames"] >= 1000
    told = _run(tmp_path, "show", "./my-task", "--task", "empty")
    assert told.returncode == 2
    assert "--env is missing: name an environment of the task empty" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["lst"], "no command 'lst'"),
        (["list", "--all"], "--all"),
        (["show", "minigrid"], "--task (or TEACHER_TASK) is missing"),
        (["show", "nothing", "--task", "fetch"], "name one of compact, compact-lake, minigrid"),
        (["show", "minigrid", "--task", "maze"], "choose one of lava_gap, dynamic_obstacles, fetch"),
        (
            ["show", "minigrid", "--task", "fetch", "--env", "CartPole-v1"],
            "--env: CartPole-v1 has no action 'forward', which the task fetch of the prompt set minigrid has",
        ),
        (
            ["show", "minigrid", "--task", "fetch", "--env", "MountainCarContinuous-v0"],
            "--env: the environment 'MountainCarContinuous-v0' has the action space Box",
        ),
        (["show", "minigrid", "--task", "fetch", "--env", "MiniGrid-No-v0"], "--env: unknown environment"),
        (
            ["show", "minigrid", "--task", "fetch", "--env", "MiniGrid-LavaGapS5-v0"],
            "belongs to the task lava_gap",
        ),
        (["show", "minigrid", "--task", "fetch", "--seed", "-1"], "--seed"),
        (["show", "minigrid", "--task", "fetch", "--readout", "words"], "'words'"),
        (["show", "minigrid", "--task", "fetch", "--out", "no/where.png"], "cannot write no/where.png"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = _run(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("teacher prompts")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_broken_set_is_refused_with_its_file(tmp_path: Path) -> None:
    mine = shutil.copytree(SETS / "minigrid-zero-shot", tmp_path / "mine")
    (mine / "question.txt").write_text("{{ picture }} {{ goal }}")
    done = _run(tmp_path, "show", "mine", "--task", "fetch")
    assert done.returncode == 2
    assert "mine/question.txt: unknown variable 'goal'; known variables are" in done.stderr


@pytest.mark.parametrize(("name", "files"), [("minigrid", 40), ("toy-text", 22)])
def test_making_the_examples_again_gives_the_same(name: str, files: int, tmp_path: Path) -> None:
    copied = tmp_path / "mine"
    copied.mkdir()
    shutil.copy(SETS / name / "examples.toml", copied)
    for _ in range(2):  # over those that are there, too
        subprocess.run([sys.executable, SETS / "make_examples.py", copied], check=True, timeout=LONG_S)
    made, kept = (
        {path.relative_to(folder): path for path in sorted(folder.glob("examples/*/*"))}
        for folder in (copied, SETS / name)
    )
    assert len(made) == files
    assert list(made) == list(kept)
    for file, path in made.items():
        if path.suffix == ".json":
            assert path.read_bytes() == kept[file].read_bytes()
        else:  # the same pixels: how PNG packs them depends on the library
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(kept[file])))
