"""The checkpoint that the repository has: an ordinary one, small, and a teacher of the four tasks."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from gridworld.tasks import TASKS
from student.teachers import COMPACT, COMPACT_FLAGS, served_teacher
from teacher_server.checkpoint import read_checkpoint
from teacher_server.cli import main
from teacher_server.forge.conversation import LessonWriter, analysis_of
from teacher_server.forge.samples import Sampler
from teacher_server.prompts import load_prompt_set
from tests.compact import assert_it_knows_its_tasks

pytestmark = pytest.mark.integration


def test_it_is_small_and_passes_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(file.stat().st_size for file in COMPACT.iterdir()) < 16 * 2**20
    assert main(["check", str(COMPACT), "--prompts", "compact", "--engine", "transformers"]) == 0
    digest = read_checkpoint(COMPACT).digest()
    assert digest in capsys.readouterr().out
    assert digest in (COMPACT / "README.md").read_text()


def test_stock_transformers_reads_pictures_with_it() -> None:
    model = AutoModelForImageTextToText.from_pretrained(COMPACT)
    tokenizer = AutoTokenizer.from_pretrained(COMPACT)
    processor = Qwen2VLImageProcessorPil.from_pretrained(COMPACT)  # AutoProcessor's needs torchvision
    writer = LessonWriter(read_checkpoint(COMPACT), load_prompt_set("compact"))
    samples = Sampler([task.env_id for task in TASKS.values()], seed=2**31).block(0, 16)
    right = 0
    for sample in samples:
        lesson = writer.lesson(sample)
        prompt = lesson.token_ids[: lesson.analysis.start]
        seen = processor(images=[lesson.picture.image], return_tensors="pt")
        ids = tokenizer.pad({"input_ids": [list(prompt)]}, return_tensors="pt")
        ids["mm_token_type_ids"] = (ids["input_ids"] == model.config.image_token_id).int()
        answer = model.generate(**ids, **seen, max_new_tokens=120, do_sample=False)
        said = tokenizer.decode(answer[0, len(prompt) :], skip_special_tokens=True)
        right += json.loads(said) == analysis_of(sample.scene)
    assert right >= 15


def test_it_knows_its_tasks(tmp_path: Path) -> None:
    with served_teacher(tmp_path / "answers.sqlite3", COMPACT_FLAGS, tmp_path / "log.txt") as url:
        assert_it_knows_its_tasks(url, tmp_path / "score", states=40, episodes=10)
