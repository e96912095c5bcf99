"""Training examples: the conversations that the service will have, as token ids, in numbered blocks."""

import itertools
import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from gridworld.scenes import Cell
from gridworld.tasks import task_key
from teacher_api.processes import end_with_parent
from teacher_server.checkpoints.checkpoint import Checkpoint, read_checkpoint
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import PromptSet, load_prompt_set
from teacher_server.settings import Readout
from teacher_tools.train.experts import StudentExpert, expert_of
from teacher_tools.train.general import GeneralSampler
from teacher_tools.train.samples import Labelled, Sample, Sampler
from teacher_tools.train.settings import PLANNER, is_run

_NUMBERS = 1 / 8
"""The share of conversations that end with written probabilities; the others end with a label."""
_CURRICULUM = ((0.15, 7), (0.3, 9))
"""Up to which share of all conversations grids have how many cells a side."""
_BLOCKS_AHEAD = 2
"""Blocks that each worker makes in advance."""


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """A conversation about one picture.

    Attributes:
        state: the sample's.
        token_ids: both stages, with one image token for each visual token: up to the action's label, or with
            the written probabilities.
        analysis: the positions of the analysis in `token_ids`, with the token that ends the turn; empty where
            the picture shows something else.
        values: those positions of the analysis that hold a value rather than JSON punctuation.
        cells: position -> the cell that the text there is about: the target's cell at the words of its name,
            and the cell in front of the agent just before its content is named.
        action: label token -> the planner's probability that it follows the last of `token_ids`; empty where
            the probabilities are written.
        optimal: the label tokens of the optimal actions; empty where the probabilities are written.
        numbers: the positions of the written probabilities, with the token that ends the turn, if any.
    """

    sample: Sample | Labelled
    state: Labelled
    picture: PreparedPicture
    token_ids: tuple[int, ...]
    analysis: range
    values: frozenset[int]
    cells: dict[int, Cell]
    action: dict[int, float]
    optimal: frozenset[int]
    numbers: range


class ExampleEncoder:
    """Encodes samples with the service's own code: the prompt set's texts and the checkpoint's chat format.

    Args:
        checkpoint: its weights are not needed.
    """

    def __init__(self, checkpoint: Checkpoint, prompts: PromptSet) -> None:
        self._checkpoint, self._prompts = checkpoint, prompts
        self._stages = lru_cache(maxsize=4096)(self._encoded_stages)
        self._is_value = lru_cache(maxsize=None)(self._has_no_punctuation)
        encode = checkpoint.tokenizer.encode
        self.label_ids = {
            action: encode(label, add_special_tokens=False).ids[0] for action, label in prompts.labels.items()
        }
        """Action -> the token of its label."""

    def encode(self, sample: Sample | Labelled, readout: Readout = "labels") -> TrainingExample:
        """Returns the conversation about a sample's picture."""
        state = sample.labelled if isinstance(sample, Sample) else sample
        tokenizer = self._checkpoint.tokenizer
        before, after = self._stages(state.task, state.mission, readout)
        picture = self._prompts.preparation.prepare(state.picture)
        image = self._checkpoint.image_token_id
        prompt = [i for token in before for i in [token] * (picture.tokens if token == image else 1)]
        text = json.dumps(state.analysis)
        encoded = tokenizer.encode(text, add_special_tokens=False)
        start, end = len(prompt), len(prompt) + len(encoded.ids)
        ids, action, optimal = [*prompt, *encoded.ids, *after], dict[int, float](), frozenset[int]()
        if readout == "labels":
            numbers = range(0)
            action = {self.label_ids[name]: p for name, p in state.probabilities.items()}
            optimal = frozenset(self.label_ids[name] for name in state.optimal)
        else:
            written = tokenizer.encode(_written(state.probabilities), add_special_tokens=False).ids
            numbers = range(len(ids), len(ids) + len(written) + 1)
            ids += [*written, self._checkpoint.end_token_id]
        known = state.learned
        return TrainingExample(
            sample=sample,
            state=state,
            picture=picture,
            token_ids=tuple(ids),
            analysis=range(start, end + 1) if known else range(0),
            values=frozenset(
                i for i, token in enumerate(encoded.ids, start) if known and self._is_value(token)
            ),
            cells=dict(_cells(state, text, encoded.offsets, start)) if known else {},
            action=action,
            optimal=optimal,
            numbers=numbers,
        )

    def _encoded_stages(
        self, task: str, mission: str, readout: Readout
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        actions = self._prompts.tasks[task]
        return self._checkpoint.chat_format.stages(
            self._prompts.conversation(task=task, mission=mission, actions=actions, readout=readout)
        )

    def _has_no_punctuation(self, token: int) -> bool:
        text = self._checkpoint.tokenizer.decode([token])
        return bool(text.strip()) and not set(text) & set('{}[]":,')


def _written(probabilities: Mapping[str, float]) -> str:
    """Returns probabilities as JSON with two decimals."""
    return "{" + ", ".join(f'"{action}": {p:.2f}' for action, p in probabilities.items()) + "}"


def _cells(
    state: Labelled, text: str, offsets: Sequence[tuple[int, int]], start: int
) -> Iterator[tuple[int, Cell]]:
    """Yields the items of `TrainingExample.cells`.

    Args:
        text: the analysis as JSON.
        offsets: where each token of the analysis begins and ends in its text.
        start: the position of the analysis's first token.
    """
    target, front = state.analysis.get("target"), -1
    name = text.index(target["name"], text.index('"name": ')) if target else -1
    if state.front is not None:
        front = text.index('"front": "') + len('"front": "')
    for position, (first, end) in enumerate(offsets, start):
        if target and name < end <= name + len(target["name"]):
            yield position, (target["row"], target["column"])
        elif state.front is not None and first < front <= end:
            yield position, state.front


@dataclass(frozen=True)
class ExampleBlocks:
    """Makes blocks of training examples, in this process or ahead of time in workers.

    Attributes:
        checkpoint: the folder whose tokenizer and chat template encode the examples.
        prompts: the prompt set's name or folder.
        env_ids, task, seed: as `Sampler` takes them.
        expert: what labels the states.
        size: examples in a block.
        pictures, conversations: examples in the two phases of the training.
    """

    checkpoint: Path
    prompts: str
    env_ids: tuple[str, ...]
    task: str | None
    seed: int
    expert: str
    size: int
    pictures: int
    conversations: int

    def block(self, number: int) -> list[TrainingExample]:
        """Returns one block: the same examples in every process and at any time."""
        sampler, encoder = _sampler_and_encoder(self)
        rng = np.random.default_rng([self.seed, number, 2])
        return [
            encoder.encode(sample, "numbers" if rng.random() < _NUMBERS else "labels")
            for sample in sampler.block(number, self.size, self._largest(number))
        ]

    def _largest(self, number: int) -> int | None:
        """Returns the cells a side of the largest grids in a block; None: all grids."""
        done = (number * self.size - self.pictures) / self.conversations
        return next((side for share, side in _CURRICULUM if 0 <= done < share), None)

    def starting_at(self, first: int, workers: int) -> Iterator[list[TrainingExample]]:
        """Yields the blocks from a number on, endlessly.

        Args:
            workers: processes that make them; 0: this process.
        """
        numbers = itertools.count(first)
        if workers == 0:
            yield from map(self.block, numbers)
        # Spawned, since the training process has threads and must not be forked
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
            pending = deque[Future[list[TrainingExample]]]()
            try:
                for number in numbers:
                    pending.append(pool.submit(self.block, number))
                    if len(pending) > _BLOCKS_AHEAD * workers:
                        yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=1)
def _sampler_and_encoder(blocks: ExampleBlocks) -> tuple[Sampler | GeneralSampler, ExampleEncoder]:
    checkpoint = read_checkpoint(blocks.checkpoint, weights=False)
    prompts = load_prompt_set(blocks.prompts, checkpoint.dimensions.vision.token_side)
    encoder = ExampleEncoder(checkpoint, prompts)
    if blocks.expert == PLANNER or is_run(blocks.expert):
        label = None if blocks.expert == PLANNER else StudentExpert(Path(blocks.expert), blocks.env_ids)
        return Sampler(blocks.env_ids, blocks.seed, blocks.task, label), encoder
    tasks = [(env_id, task_key(env_id, blocks.task)) for env_id in blocks.env_ids]
    return GeneralSampler(tasks, prompts.tasks, expert_of(blocks.expert), blocks.seed), encoder


def _start_worker() -> None:
    """The training process alone ends its workers; Ctrl-C reaches every process of the terminal."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
