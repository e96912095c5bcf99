"""Training examples: the tokenizer, the encoded conversations, and the batches made of them."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import xgrammar
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gridworld.tasks import TASKS
from teacher_server.checkpoints.checkpoint import Checkpoint, label_problems, read_checkpoint
from teacher_server.engines.constraints import grammar_of
from teacher_server.engines.transformers.pictures import picture_processor
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_server.prompting.readout import from_numbers, numbers_schema
from teacher_server.settings import Readout
from teacher_tools.train.batches import IGNORED, Batch, Patches, batches_by_length
from teacher_tools.train.compact import write_folder
from teacher_tools.train.examples import ExampleEncoder, TrainingExample
from teacher_tools.train.samples import Sample, Sampler, analysis_of

pytestmark = pytest.mark.unit

_PROMPTS = load_prompt_set("compact")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("compact")
    write_folder(folder, _PROMPTS)
    return read_checkpoint(folder, weights=False)


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint) -> ExampleEncoder:
    return ExampleEncoder(checkpoint, _PROMPTS)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    envs = [env_id for task in TASKS.values() for env_id in task.env_ids]
    return Sampler(envs, seed=0).block(0, 4 * len(envs))


@pytest.fixture(scope="module")
def examples(encoder: ExampleEncoder, samples: list[Sample]) -> list[TrainingExample]:
    """Those whose picture shows the scene."""
    return [encoder.encode(sample) for sample in samples if sample.outside is None]


def _grammar(checkpoint: Checkpoint, schema: dict[str, Any]) -> xgrammar.CompiledGrammar:
    info = xgrammar.TokenizerInfo.from_huggingface(
        PreTrainedTokenizerFast(tokenizer_object=checkpoint.tokenizer),
        vocab_size=checkpoint.dimensions.text.vocab_size,
        stop_token_ids=[checkpoint.end_token_id],
    )
    return xgrammar.GrammarCompiler(info).compile_grammar(grammar_of(schema))


def _batch(examples: list[TrainingExample], checkpoint: Checkpoint) -> Batch:
    patches = Patches(picture_processor(checkpoint.dimensions))
    vocabulary = checkpoint.dimensions.text.vocab_size
    return Batch.of(examples, patches, vocabulary=vocabulary, padding=checkpoint.end_token_id)


def test_labels_are_single_tokens_and_stock_transformers_encodes_alike(checkpoint: Checkpoint) -> None:
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


@pytest.mark.parametrize("readout", ["labels", "numbers"])
def test_conversations_need_no_byte_tokens(
    readout: Readout, encoder: ExampleEncoder, samples: list[Sample], checkpoint: Checkpoint
) -> None:
    letter = re.compile("[A-Za-z]")
    for example in (encoder.encode(sample, readout) for sample in samples):
        pieces = [checkpoint.tokenizer.decode([token]) for token in example.token_ids]
        assert [piece for piece in pieces if letter.fullmatch(piece)] == []
        hazards = len(example.sample.scene.hazards)
        assert len(example.analysis) < 26 + 4 * hazards


def test_an_example_is_the_services_conversation_and_fits_its_grammar(
    examples: list[TrainingExample], checkpoint: Checkpoint
) -> None:
    tokenizer, grammar = checkpoint.tokenizer, _grammar(checkpoint, _PROMPTS.schema)
    for example in examples:
        scene = example.sample.scene
        conversation = _PROMPTS.conversation(
            task=scene.task, mission=scene.mission, actions=_PROMPTS.tasks[scene.task], readout="labels"
        )
        before, after = checkpoint.chat_format.stages(conversation)
        analysis = example.token_ids[example.analysis.start : example.analysis.stop - 1]
        assert example.token_ids[-len(after) :] == after
        assert [i for i in example.token_ids[: example.analysis.start] if i != checkpoint.image_token_id] == [
            i for i in before if i != checkpoint.image_token_id
        ]
        height, width = scene.view.cells_HW.shape
        assert example.token_ids.count(checkpoint.image_token_id) == (height + 1) * (width + 1)
        assert json.loads(tokenizer.decode(analysis)) == analysis_of(scene)
        matcher = xgrammar.GrammarMatcher(grammar)
        assert all(matcher.accept_token(token) for token in (*analysis, checkpoint.end_token_id))
        assert matcher.is_terminated()
        assert len(analysis) <= _PROMPTS.analysis_max_tokens


def test_cached_patches_equal_the_processors(examples: list[TrainingExample], checkpoint: Checkpoint) -> None:
    processor = picture_processor(checkpoint.dimensions)
    pictures = [example.picture.image for example in examples]
    expected = processor(images=pictures, return_tensors="pt")
    batch = _batch(examples, checkpoint)
    assert torch.equal(batch.patches_PX, expected["pixel_values"])
    assert torch.equal(batch.grids_B3, expected["image_grid_thw"])


def test_targets_are_the_analysis_its_end_and_the_action(
    examples: list[TrainingExample], checkpoint: Checkpoint
) -> None:
    batch = _batch(examples, checkpoint)
    for i, example in enumerate(examples):
        length = len(example.token_ids)
        assert batch.mask_BL[i].sum() == length == batch.last_B[i] + 1
        has_target = batch.targets_BL[i] != IGNORED
        targets = batch.targets_BL[i][has_target]
        assert targets.tolist() == [example.token_ids[j] for j in example.analysis]
        assert targets[-1] == checkpoint.end_token_id
        # Each target is the next token
        positions = has_target.nonzero().flatten()
        assert torch.equal(targets, batch.ids_BL[i][positions + 1])
        values = checkpoint.tokenizer.decode(batch.targets_BL[i][batch.values_BL[i]].tolist())
        assert example.sample.scene.sought in values
        assert not set(values) & set('{}[]":,')
        assert batch.action_BV[i].sum().item() == pytest.approx(1)
        assert batch.action_BV[i].max() == batch.action_BV[i][batch.optimal_BV[i] > 0].max()


def test_written_probabilities_are_the_planners_and_fit_the_grammar(
    encoder: ExampleEncoder, samples: list[Sample], checkpoint: Checkpoint
) -> None:
    tokenizer = checkpoint.tokenizer
    examples = [encoder.encode(sample, "numbers") for sample in samples]
    batch = _batch(examples, checkpoint)
    assert not batch.action_BV.any()
    for i, example in enumerate(examples):
        scene = example.sample.scene
        actions = _PROMPTS.tasks[scene.task]
        conversation = _PROMPTS.conversation(
            task=scene.task, mission=scene.mission, actions=actions, readout="numbers"
        )
        _, after = checkpoint.chat_format.stages(conversation)
        written = example.token_ids[example.numbers.start : example.numbers.stop - 1]
        assert example.token_ids[example.numbers.start - len(after) : example.numbers.start] == after
        found = from_numbers(tokenizer.decode(written), actions, tolerance=_PROMPTS.sum_tolerance)
        assert found == pytest.approx(example.sample.probabilities, abs=0.015)
        matcher = xgrammar.GrammarMatcher(_grammar(checkpoint, numbers_schema(actions)))
        assert all(matcher.accept_token(token) for token in (*written, checkpoint.end_token_id))
        assert len(written) <= 2 * len(actions) + 1 <= _PROMPTS.numbers_max_tokens
        positions = (batch.numbers_BL[i] != IGNORED).nonzero().flatten()
        assert batch.numbers_BL[i][positions].tolist() == [*written, checkpoint.end_token_id]
        assert torch.equal(batch.numbers_BL[i][positions], batch.ids_BL[i][positions + 1])


def test_where_the_picture_shows_something_else_no_analysis_is_learned(
    encoder: ExampleEncoder, samples: list[Sample], checkpoint: Checkpoint
) -> None:
    examples = [encoder.encode(sample) for sample in samples if sample.outside is not None]
    batch = _batch(examples, checkpoint)
    for targets in (batch.targets_BL, batch.numbers_BL, batch.cells_BL2, batch.roles_N1):
        assert (targets == IGNORED).all()
    assert not batch.optimal_BV.any()
    assert torch.allclose(batch.action_BV.sum(1), torch.ones(len(examples)))
    tokens = [
        (outside.view, example.picture.tokens) for example in examples if (outside := example.sample.outside)
    ]
    start = 0
    for view, count in tokens:
        known = (batch.tiles_N5[start : start + count] != IGNORED).any(1)
        assert known.sum() == (0 if view is None else view.cells_HW.size)
        start += count


def test_words_carry_the_cell_that_they_are_about(
    examples: list[TrainingExample], checkpoint: Checkpoint
) -> None:
    batch = _batch(examples, checkpoint)
    for i, example in enumerate(examples):
        scene, analysis = example.sample.scene, analysis_of(example.sample.scene)
        cells_L = [tuple(cell) for cell in batch.cells_BL2[i].tolist()]
        positions = [position for position, cell in enumerate(cells_L) if cell != (IGNORED, IGNORED)]
        (x, y), target = scene.view.front, analysis["target"]
        assert [cells_L[position] for position in positions] == [
            *[(target["row"], target["column"])] * (len(positions) - 1),
            (y, x),
        ]
        *name, before_front = positions
        decode = checkpoint.tokenizer.decode
        assert decode([example.token_ids[position] for position in name]) == target["name"]
        assert decode(list(example.token_ids[before_front + 1 :])).startswith(analysis["front"])


def test_visual_tokens_carry_content_position_and_role(
    examples: list[TrainingExample], checkpoint: Checkpoint
) -> None:
    batch = _batch(examples, checkpoint)
    tokens_N6 = torch.cat([batch.tiles_N5, batch.roles_N1], dim=1).numpy()
    start = 0
    for example in examples:
        scene = example.sample.scene
        view, (height, width) = scene.view, scene.view.cells_HW.shape
        end = start + (height + 1) * (width + 1)
        tokens_RC6 = tokens_N6[start:end].reshape(height + 1, width + 1, 6)
        start = end
        assert (tokens_RC6[0] == IGNORED).all()
        assert (tokens_RC6[:, 0] == IGNORED).all()
        cells_HW6 = tokens_RC6[1:, 1:]
        assert np.argwhere(cells_HW6[..., 2] > 0).tolist() == [[view.y, view.x]]
        assert cells_HW6[view.y, view.x].tolist()[2:5] == [view.heading + 1, view.y, view.x]
        for role, cells in enumerate((scene.targets, scene.hazards)):
            assert np.argwhere(cells_HW6[..., 5] == role).tolist() == [list(cell) for cell in cells]
    assert start == len(tokens_N6)


def test_batches_hold_every_example_once_and_little_padding(examples: list[TrainingExample]) -> None:
    batches = list(batches_by_length(examples, 8, np.random.default_rng(0)))
    assert sorted(id(example) for batch in batches for example in batch) == sorted(map(id, examples))
    lengths = [[len(example.token_ids) for example in batch] for batch in batches]
    assert sum(max(batch) - min(batch) for batch in lengths) <= max(map(max, lengths)) - min(
        map(min, lengths)
    )
