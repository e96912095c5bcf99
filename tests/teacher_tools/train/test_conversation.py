"""What a forged teacher reads and writes: its tokenizer, its lessons, and the batches they are taught in."""

import json
import re

import numpy as np
import pytest
import torch
import xgrammar
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gridworld.tasks import TASKS
from teacher_server.checkpoints.checkpoint import Checkpoint, label_problems, read_checkpoint
from teacher_server.engines.constraints import grammar_of
from teacher_server.engines.processor import picture_processor
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_tools.train.batches import UNTOLD, Batch, Patches, in_batches
from teacher_tools.train.conversation import Lesson, LessonWriter, analysis_of
from teacher_tools.train.folder import write_folder
from teacher_tools.train.samples import Sampler

pytestmark = pytest.mark.unit

_PROMPTS = load_prompt_set("compact")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("compact")
    write_folder(folder, _PROMPTS)
    return read_checkpoint(folder, weights=False)


@pytest.fixture(scope="module")
def lessons(checkpoint: Checkpoint) -> list[Lesson]:
    envs = [env_id for task in TASKS.values() for env_id in task.env_ids]
    writer = LessonWriter(checkpoint, _PROMPTS)
    return [writer.lesson(sample) for sample in Sampler(envs, seed=0).block(0, 4 * len(envs))]


def _batch(lessons: list[Lesson], checkpoint: Checkpoint) -> Batch:
    patches = Patches(picture_processor(checkpoint.dimensions))
    vocabulary = checkpoint.dimensions.text.vocab_size
    return Batch.of(lessons, patches, vocabulary=vocabulary, padding=checkpoint.end_token_id)


def test_labels_are_tokens_and_stock_transformers_reads_all_alike(checkpoint: Checkpoint) -> None:
    assert label_problems(checkpoint, _PROMPTS.labels) == []
    stock = AutoTokenizer.from_pretrained(checkpoint.folder)
    for text in (
        '{"agent": {"row": 10, ',
        "go fetch a red ball",
        "<|im_start|>user\nwhat is naïve? 🙂  \n\n",
    ):
        ids = checkpoint.tokenizer.encode(text, add_special_tokens=False).ids
        assert stock.encode(text, add_special_tokens=False) == ids
        assert checkpoint.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_what_the_service_says_and_hears_takes_no_bytes(
    lessons: list[Lesson], checkpoint: Checkpoint
) -> None:
    spelt = re.compile("[A-Za-z]")
    for lesson in lessons:
        pieces = [checkpoint.tokenizer.decode([token]) for token in lesson.token_ids]
        assert [piece for piece in pieces if spelt.fullmatch(piece)] == []
        assert len(lesson.analysis) < 70


def test_a_lesson_is_what_the_service_sends_and_lets_be_said(
    lessons: list[Lesson], checkpoint: Checkpoint
) -> None:
    tokenizer = checkpoint.tokenizer
    info = xgrammar.TokenizerInfo.from_huggingface(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer),
        vocab_size=checkpoint.dimensions.text.vocab_size,
        stop_token_ids=[checkpoint.end_token_id],
    )
    grammar = xgrammar.GrammarCompiler(info).compile_grammar(grammar_of(_PROMPTS.schema))
    for lesson in lessons:
        scene = lesson.sample.scene
        conversation = _PROMPTS.conversation(
            task=scene.task, mission=scene.mission, actions=_PROMPTS.tasks[scene.task], readout="labels"
        )
        before, after = checkpoint.chat_format.stages(conversation)
        said = lesson.token_ids[lesson.analysis.start : lesson.analysis.stop - 1]
        assert lesson.token_ids[-len(after) :] == after
        assert [i for i in lesson.token_ids[: lesson.analysis.start] if i != checkpoint.image_token_id] == [
            i for i in before if i != checkpoint.image_token_id
        ]
        height, width = scene.view.cells_HW.shape
        assert lesson.token_ids.count(checkpoint.image_token_id) == (height + 1) * (width + 1)
        assert json.loads(tokenizer.decode(said)) == analysis_of(scene)
        matcher = xgrammar.GrammarMatcher(grammar)
        assert all(matcher.accept_token(token) for token in (*said, checkpoint.end_token_id))
        assert matcher.is_terminated()
        assert len(said) <= _PROMPTS.analysis_max_tokens


def test_patches_from_memory_are_the_processors(lessons: list[Lesson], checkpoint: Checkpoint) -> None:
    processor = picture_processor(checkpoint.dimensions)
    pictures = [lesson.picture.image for lesson in lessons]
    expected = processor(images=pictures, return_tensors="pt")
    batch = _batch(lessons, checkpoint)
    assert torch.equal(batch.patches_PX, expected["pixel_values"])
    assert torch.equal(batch.grids_B3, expected["image_grid_thw"])


def test_a_batch_teaches_the_analysis_its_end_and_the_action(
    lessons: list[Lesson], checkpoint: Checkpoint
) -> None:
    batch = _batch(lessons, checkpoint)
    for i, lesson in enumerate(lessons):
        length = len(lesson.token_ids)
        assert batch.mask_BL[i].sum() == length == batch.last_B[i] + 1
        told = batch.targets_BL[i] != UNTOLD
        assert batch.targets_BL[i][told].tolist() == [lesson.token_ids[j] for j in lesson.analysis]
        assert batch.targets_BL[i][told][-1] == checkpoint.end_token_id
        # Each target is what comes next
        places = told.nonzero().flatten()
        assert torch.equal(batch.targets_BL[i][places], batch.ids_BL[i][places + 1])
        values = checkpoint.tokenizer.decode(batch.targets_BL[i][batch.values_BL[i]].tolist())
        assert lesson.sample.scene.sought in values
        assert not set(values) & set('{}[]":,')
        assert batch.action_BV[i].sum().item() == pytest.approx(1)
        assert batch.action_BV[i].max() == batch.action_BV[i][batch.optimal_BV[i] > 0].max()


def test_words_are_told_which_cell_they_speak_of(lessons: list[Lesson], checkpoint: Checkpoint) -> None:
    batch = _batch(lessons, checkpoint)
    for i, lesson in enumerate(lessons):
        scene, told = lesson.sample.scene, analysis_of(lesson.sample.scene)
        cells_L = [tuple(cell) for cell in batch.meant_BL2[i].tolist()]
        places = [place for place, cell in enumerate(cells_L) if cell != (UNTOLD, UNTOLD)]
        (x, y), target = scene.view.front, told["target"]
        assert [cells_L[place] for place in places] == [
            *[(target["row"], target["column"])] * (len(places) - 1),
            (y, x),
        ]
        *name, before_front = places
        decode = checkpoint.tokenizer.decode
        assert decode([lesson.token_ids[place] for place in name]) == target["name"]
        assert decode(list(lesson.token_ids[before_front + 1 :])).startswith(told["front"])


def test_tiles_are_told_what_and_where_they_are(lessons: list[Lesson], checkpoint: Checkpoint) -> None:
    batch = _batch(lessons, checkpoint)
    told_N6 = torch.cat([batch.tiles_N5, batch.roles_N1], dim=1).numpy()
    start = 0
    for lesson in lessons:
        scene = lesson.sample.scene
        view, (height, width) = scene.view, scene.view.cells_HW.shape
        told_RC6 = told_N6[start : start + (height + 1) * (width + 1)].reshape(height + 1, width + 1, 6)
        start += (height + 1) * (width + 1)
        assert (told_RC6[0] == UNTOLD).all()
        assert (told_RC6[:, 0] == UNTOLD).all()
        told_HW6 = told_RC6[1:, 1:]
        assert np.argwhere(told_HW6[..., 2] > 0).tolist() == [[view.y, view.x]]
        assert told_HW6[view.y, view.x].tolist()[2:5] == [view.heading + 1, view.y, view.x]
        for role, cells in enumerate((scene.targets, scene.hazards)):
            assert np.argwhere(told_HW6[..., 5] == role).tolist() == [list(cell) for cell in cells]
    assert start == len(told_N6)


def test_batches_hold_every_lesson_once_and_little_padding(lessons: list[Lesson]) -> None:
    batches = list(in_batches(lessons, 8, np.random.default_rng(0)))
    assert sorted(id(lesson) for batch in batches for lesson in batch) == sorted(map(id, lessons))
    lengths = [[len(lesson.token_ids) for lesson in batch] for batch in batches]
    assert sum(max(batch) - min(batch) for batch in lengths) <= max(map(max, lengths)) - min(
        map(min, lengths)
    )
