"""The repository's checkpoint: a small, ordinary checkpoint that teaches the four tasks."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from gridworld.environments import make
from gridworld.pictures import draw, encode_png
from gridworld.tasks import TASKS
from gridworld.views import View, view_of
from student.labels.table import LabelTable
from teacher_api.client import TeacherClient
from teacher_api.processes import COMPACT, COMPACT_FLAGS, served_teacher
from teacher_api.schemas import Question
from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_tools.cli import main
from teacher_tools.train.card import trained_on
from teacher_tools.train.examples import ExampleEncoder
from teacher_tools.train.samples import Sampler, analysis_of
from tests.compact import assert_it_knows_its_tasks
from worlds.minigrid import MinigridWorld, Vocabulary, layout_of

pytestmark = pytest.mark.integration


def test_it_is_small_and_passes_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(file.stat().st_size for file in COMPACT.iterdir()) < 16 * 2**20
    assert main(["check", str(COMPACT), "--engine", "transformers"]) == 0
    checkpoint, told = read_checkpoint(COMPACT), capsys.readouterr().out
    digest = checkpoint.digest()
    assert digest in told
    assert "\nprompts       compact\n" in told
    assert "note" not in told
    # The prompt set is still the one that it was trained with
    prompts, recorded = load_prompt_set("compact"), checkpoint.trained_on
    assert recorded is not None
    tasks = {env_id: grids.task for env_id, grids in recorded.environments.items()}
    assert set(tasks.values()) == set(prompts.tasks)
    again = trained_on("compact", prompts, tasks)
    assert recorded == again.model_copy(update={"samples": recorded.samples})
    assert digest in (COMPACT / "README.md").read_text()


def test_stock_transformers_reads_pictures_with_it() -> None:
    model = AutoModelForImageTextToText.from_pretrained(COMPACT)
    tokenizer = AutoTokenizer.from_pretrained(COMPACT)
    processor = Qwen2VLImageProcessorPil.from_pretrained(COMPACT)  # AutoProcessor's needs torchvision
    encoder = ExampleEncoder(read_checkpoint(COMPACT), load_prompt_set("compact"))
    samples = Sampler([task.env_id for task in TASKS.values()], seed=2**31).block(0, 24)
    right = 0
    for sample in [each for each in samples if each.outside is None][:16]:
        example = encoder.encode(sample)
        prompt = example.token_ids[: example.analysis.start]
        seen = processor(images=[example.picture.image], return_tensors="pt")
        ids = tokenizer.pad({"input_ids": [list(prompt)]}, return_tensors="pt")
        ids["mm_token_type_ids"] = (ids["input_ids"] == model.config.image_token_id).int()
        answer = model.generate(**ids, **seen, max_new_tokens=120, do_sample=False)
        said = tokenizer.decode(answer[0, len(prompt) :], skip_special_tokens=True)
        right += json.loads(said) == analysis_of(sample.scene)
    assert right >= 15


def test_two_views_are_answered_as_two_questions(tmp_path: Path) -> None:
    """The transposed picture's answer, with left and right exchanged, is half of the answer."""
    env = make("MiniGrid-LavaGapS5-v0")
    env.reset(seed=3)
    mission, view = env.unwrapped.mission, view_of(env)
    pictures = [draw(view), draw(View(view.cells_HW.T, view.y, view.x, (5 - view.heading) % 4))]
    actions = ("left", "right", "forward")
    questions = [
        Question.about(encode_png(picture), mission=mission, task="lava_gap", actions=actions)
        for picture in pictures
    ]
    answers, identities = {}, set()
    for views in (1, 2):
        flags = {**COMPACT_FLAGS, "views": views}
        with (
            served_teacher(tmp_path / "answers.sqlite3", flags, tmp_path / "log.txt") as url,
            TeacherClient(url, deadline_s=60) as client,
        ):
            answers[views] = [client.ask(question) for question in questions]
            assert client.ask(questions[0]).confidence == answers[views][0].confidence
            assert client.ask(questions[0]).stored
            identities.add(client.teacher().identity)
    assert len(identities) == 2
    first, transposed = (answer.probabilities or {} for answer in answers[1])
    assert max(abs(first["left"] - first["right"]), abs(first["left"] - transposed["left"])) > 0.5
    back = {"left": transposed["right"], "right": transposed["left"], "forward": transposed["forward"]}
    mean = {action: (first[action] + back[action]) / 2 for action in actions}
    assert answers[2][0].probabilities == pytest.approx(mean, abs=1e-4)
    assert answers[2][0].analysis == answers[1][0].analysis
    assert 0 < (answers[2][0].confidence or 0) < 1


@pytest.mark.parametrize(
    ("flags", "status", "told"),
    [
        (["--prompts", "minigrid"], 1, "set --prompts to compact"),
        (["--prompts", "minigrid-zero-shot"], 0, "is used with another, minigrid-zero-shot"),
    ],
)
def test_the_check_says_what_it_was_not_trained_for(
    flags: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(COMPACT), "--engine", "transformers", *flags]) == status
    assert told in capsys.readouterr().out


def test_it_knows_its_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served_teacher(tmp_path / "answers.sqlite3", COMPACT_FLAGS, tmp_path / "log.txt") as url:
        capsys.readouterr()  # on a busy machine, the lines about a start that takes long
        with TeacherClient(url, deadline_s=60) as client:
            for env_id, note in (
                ("MiniGrid-GoToDoor-8x8-v0", None),
                ("MiniGrid-Dynamic-Obstacles-Random-6x6-v0", None),
                ("MiniGrid-FourRooms-v0", "for lava_gap, and not of 19 x 19"),
            ):
                LabelTable(MinigridWorld(layout_of(env_id), Vocabulary()), client).start()
                said = capsys.readouterr().err
                assert said.count("\n") == bool(note)
                assert (note or "") in said
        assert_it_knows_its_tasks(url, tmp_path / "score", states=40, episodes=10)
