"""Training on environments that are not MiniGrid's, with experts other than the planner."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridworld.pictures import draw, encode_png
from gridworld.scenes import Scene
from gridworld.views import code, names_of
from student.runs.trained import load_policy
from student.settings import TrainSettings
from student.trainer import train
from teacher_api.client import TeacherClient
from teacher_api.command_line import CannotStart
from teacher_api.schemas import Question
from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.prompting.prompt_files import misfit
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_tools.cli import main
from teacher_tools.train.compact import write_folder
from teacher_tools.train.examples import ExampleEncoder
from teacher_tools.train.experts import Advice, Expert, StudentExpert, expert_of
from teacher_tools.train.general import GeneralSampler
from teacher_tools.train.samples import Sampler
from tests.conftest import StartTeacher
from tests.waiting import LONG_S, wait_until_ready
from worlds.general import make
from worlds.minigrid import MinigridWorld

_LAKE = "random_lake:RandomLake-v0"
_EXAMPLES = Path(__file__).parents[3] / "examples"


class AlwaysDown:
    """An expert in three lines."""

    def __call__(self, env: Any) -> Advice | None:
        return Advice({"down": 2.0}, {"agent": int(env.s)}) if env.s else None


def no_advice(env: Any) -> Advice | None:
    return None


def broken(env: Any) -> Advice:
    raise RuntimeError("no idea")


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(_EXAMPLES)


def _sampler(expert: Expert, seed: int = 0, env_id: str = _LAKE) -> GeneralSampler:
    tasks = load_prompt_set("toy-text").tasks
    return GeneralSampler([(env_id, "frozen_lake")], tasks, expert, seed)


@pytest.mark.unit
def test_a_block_is_the_same_each_time_and_labelled_with_optimal_actions() -> None:
    sampler = _sampler(expert_of("value-iteration"))
    block, again = sampler.block(3, 40), _sampler(expert_of("value-iteration")).block(3, 40)
    assert [sample.probabilities for sample in block] == [sample.probabilities for sample in again]
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(block, again, strict=True))
    assert len({json.dumps(sample.analysis) for sample in block}) > 20
    assert len({sample.view.cells_HW.tobytes() for sample in block if sample.view}) > 5  # maps
    schema = load_prompt_set("compact-lake").schema
    for sample in block:
        assert sum(sample.probabilities.values()) == pytest.approx(1)
        assert sample.probabilities[sample.optimal[0]] == max(sample.probabilities.values())
        assert misfit(dict(sample.analysis), schema) is None
        row, column = sample.analysis["agent"]["row"], sample.analysis["agent"]["column"]
        assert (row, column) not in (*sample.hazards, *sample.targets)


@pytest.mark.unit
def test_every_cell_is_one_visual_token_and_the_analysis_is_short(tmp_path: Path) -> None:
    prompts = load_prompt_set("compact-lake")
    write_folder(tmp_path, prompts)
    encoder = ExampleEncoder(read_checkpoint(tmp_path, weights=False), prompts)
    for sample in _sampler(expert_of("value-iteration")).block(0, 8):
        example = encoder.encode(sample)
        assert example.picture.tokens == 5 * 5  # four cells a side, and the margin
        assert len(example.analysis) <= 16 + 4 * len(sample.hazards)
        assert set(example.cells.values()) == {sample.targets[0]}


@pytest.mark.unit
def test_an_expert_of_ones_own() -> None:
    sampler = _sampler(expert_of(f"{__name__}:AlwaysDown"))
    for sample in sampler.block(0, 10):
        assert sample.probabilities == {"left": 0, "down": 1, "right": 0, "up": 0}
        assert sample.optimal == ("down",)
        assert sample.analysis["agent"] != 0
        assert sample.view is None


@pytest.mark.unit
def test_babyais_bot_labels_its_levels_with_the_pictures_that_are_served() -> None:
    env_id = "BabyAI-PutNextLocal-v0"
    useful = {"put_next": ("left", "right", "forward", "pickup", "drop", "toggle")}
    sampler = GeneralSampler([(env_id, "put_next")], useful, expert_of("babyai-bot"), seed=3)
    block = sampler.block(0, 60)
    assert {"pickup", "drop", "forward"} <= {sample.optimal[0] for sample in block}
    for sample in block:
        assert sample.view is not None
        np.testing.assert_array_equal(sample.picture, draw(sample.view))
        assert sample.mission.startswith("put the ")
        colour, kind = sample.mission.split()[2:4]
        named = {names_of(int(sample.view.cells_HW[cell])) for cell in sample.targets}
        assert (kind, colour) in named or sample.view.carried == code(kind, colour)
        assert sample.analysis["targets"] == [list(cell) for cell in sample.targets]
        assert sample.probabilities[sample.optimal[0]] == 1


@pytest.mark.unit
@pytest.mark.parametrize(
    ("expert", "env_id", "told"),
    [
        (expert_of("babyai-bot"), _LAKE, "ValueError: babyai-bot knows BabyAI's levels alone"),
        (no_advice, _LAKE, "it had no advice in 100 episodes"),
        (broken, _LAKE, "RuntimeError: no idea"),
        (no_advice, "Taxi-v4", "Taxi-v4 has no action 'left', which the task frozen_lake has"),
    ],
)
def test_what_cannot_be_sampled_is_said_in_a_line(expert: Expert, env_id: str, told: str) -> None:
    with pytest.raises(CannotStart, match=told):
        _sampler(expert, env_id=env_id).block(0, 1)


@pytest.mark.integration
def test_a_lake_trains_a_checkpoint_that_is_served(tmp_path: Path, teacher_process: StartTeacher) -> None:
    flags = ["--env", _LAKE, "--task", "frozen_lake", "--expert", "value-iteration"]
    flags += ["--prompts", "compact-lake", "--pictures", "8", "--samples", "8", "--batch-size", "4"]
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *flags, "--precision", "float32", "--no-progress"]) == 0
    record = read_checkpoint(out / "checkpoint").trained_on
    assert record is not None
    assert {name: each.task for name, each in record.environments.items()} == {_LAKE: "frozen_lake"}
    assert "the probabilities of the expert `value-iteration`" in (out / "checkpoint/README.md").read_text()
    metrics = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["tile"] >= 0
    assert metrics["value"] >= 0
    served = ["--engine", "transformers", "--device", "cpu", "--min-label-mass", "0"]
    served += ["--model", str(out / "checkpoint"), "--prompts", "compact-lake"]
    teacher = teacher_process("--teacher", "prompted", *served)
    wait_until_ready(teacher)
    env = make(_LAKE)
    env.reset(seed=2**31)
    picture = encode_png(np.asarray(env.render(), np.uint8))
    actions = ("left", "down", "right", "up")
    with TeacherClient(teacher.url, deadline_s=LONG_S) as client:
        answer = client.ask(Question.about(picture, mission="", task="frozen_lake", actions=actions))
    said = json.loads(answer.analysis, strict=False)
    assert list(said) == ["agent", "target", "hazards", "direction"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["--env", "FrozenLake-v1", "--prompts", "toy-text"],
            "--expert: planner is for environments of MiniGrid's kind, which FrozenLake-v1 is not",
        ),
        (["--expert", "oracle"], "--expert 'oracle' is none of planner, value-iteration"),
        (
            ["--env", _LAKE, "--expert", "value-iteration", "--prompts", "toy-text"],
            "--task is missing: random_lake:RandomLake-v0 belongs to no known task",
        ),
        (
            ["--env", _LAKE, "--expert", "nowhere:Expert", "--prompts", "toy-text", "--task", "frozen_lake"],
            "--expert nowhere:Expert cannot be made",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), "--no-progress", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.unit
def test_a_random_lakes_seed_determines_its_map() -> None:
    env = make(_LAKE)
    maps = []
    for seed in (1, 2, 1):
        obs, _ = env.reset(seed=seed)
        inner: Any = env.unwrapped
        assert obs.tolist() == [3, *({"F": 0, "H": 1, "G": 2}[c.decode()] for c in inner.desc.ravel()[1:])]
        maps.append((inner.desc.tobytes(), inner.P))
    assert maps[0] == maps[2] != maps[1]
    inner.s = 0
    obs, *_ = env.step(int(np.flatnonzero([inner.P[0][a][0][1] for a in range(4)])[0]))
    assert obs[inner.s] >= 3 > obs[0]


@pytest.mark.integration
def test_a_students_policy_labels_the_scenes_of_its_world(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"env": "MiniGrid-LavaGapS5-v0", "frames": 64, "evaluation_episodes": 1}
    run = tmp_path / "student"
    train(TrainSettings.model_validate(settings | {"out": run, "progress": False}))
    label = StudentExpert(run, ["MiniGrid-LavaGapS5-v0"])
    world, policy = load_policy(run)
    assert isinstance(world, MinigridWorld)
    env = world.environment(lambda episode: 5)
    obs_K = np.frombuffer(env.reset(), np.uint8)
    scene = Scene("lava_gap", world.mission(obs_K), world.layout.view(obs_K))
    probabilities = np.exp(policy(obs_K[None])[0])
    useful = {name: float(probabilities[world.actions.index(name)]) for name in ("left", "right", "forward")}
    expected = {name: p / sum(useful.values()) for name, p in useful.items()}
    assert label(scene).probabilities == pytest.approx(expected, abs=1e-6)
    samples = Sampler(["MiniGrid-LavaGapS5-v0"], 0, label=label).block(0, 8)
    assert all(
        sample.probabilities == label(sample.scene).probabilities for sample in samples if not sample.outside
    )
    flags = ["--env", "MiniGrid-LavaGapS5-v0", "--expert", str(run), "--pictures", "4", "--samples", "4"]
    flags += ["--batch-size", "4", "--precision", "float32", "--no-progress"]
    assert main(["train", "--out", str(tmp_path / "run"), *flags]) == 0
    with pytest.raises(CannotStart, match="cannot play MiniGrid-LavaGapS6-v0"):
        StudentExpert(run, ["MiniGrid-LavaGapS6-v0"])
    with pytest.raises(CannotStart, match="is no run"):
        StudentExpert(tmp_path, ["MiniGrid-LavaGapS5-v0"])
