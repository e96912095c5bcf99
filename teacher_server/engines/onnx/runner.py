"""One worker of the ONNX engine: it generates for many requests at once, and takes in one each step."""

import logging
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import EngineError, Prompt
from teacher_server.engines.batching import Request, Take
from teacher_server.engines.exceptions import words_of
from teacher_server.engines.onnx.inputs import positions
from teacher_server.engines.onnx.model import OnnxModel
from teacher_server.engines.prefixes import CachedPrefix, PrefixCache, cached_prefix
from teacher_server.engines.sampling import NOT_NUMBERS, Row, Sampler

_log = logging.getLogger(__name__)

_FEWEST_TOKENS = 512
"""Room for each sequence at the start; it doubles when a longer one comes."""
_OPENINGS = 64
"""Beginnings of prompts, up to the question's picture, whose keys and values are kept."""


@dataclass(eq=False)
class _Sequence:
    """A row that generates: its place in the memory is that in the list."""

    row: Row
    length: int
    """Tokens with keys and values."""
    position: int
    """Of the next token."""


@dataclass(frozen=True)
class _Expanded:
    """A prompt with one image token for each of the L visual tokens.

    openings: the tokens before each picture.
    """

    ids_L: NDArray[np.int64]
    image_L: NDArray[np.bool_]
    positions_3L: NDArray[np.int64]
    openings: list[int]


class Runner:
    """Answers requests one by one in its own memory; use it in one thread.

    Args:
        places: sequences that generate at the same time.
        prefix_bytes: most bytes of keys and values that are kept between requests.
    """

    def __init__(
        self, model: OnnxModel, checkpoint: Checkpoint, *, places: int, longest: int, prefix_bytes: int
    ) -> None:
        self._model, self._checkpoint = model, checkpoint
        self._places, self._longest = places, longest
        self._sampler = Sampler(checkpoint, model.vocabulary, torch.device("cpu"))
        self._tokens = min(_FEWEST_TOKENS, longest)
        self._memory = model.memory(places, self._tokens)
        self._sequences: list[_Sequence] = []
        self._prefixes = PrefixCache(prefix_bytes)
        self._openings: OrderedDict[Any, CachedPrefix] = OrderedDict()

    def run(self, requests: list[Request], take: Take) -> None:
        """Answers requests, and those that it takes until none is left."""
        self._sequences = []
        while requests or self._sequences:
            for request in requests:
                self._begin(request)
            self._step()
            requests = take() if len(self._sequences) < self._places else []

    def _begin(self, request: Request) -> None:
        """Reads a request's prompt; answers it if it scores, or else adds a sequence."""
        try:
            expanded = self._expand(request)
            row = None if request.decoding is None else self._sampler.row(request)
            if request.settled:
                return
            scores_V = self._read(request.prompt, expanded)
            if request.decoding is None:
                request.settle(self._logprobs(scores_V, request.token_ids))
        except EngineError as error:
            request.settle(error)
        except Exception as error:
            _log.exception("a request failed")
            request.settle(EngineError(f"the engine failed: {words_of(error)}"))
        else:
            if row is not None:
                position = int(expanded.positions_3L.max()) + 1
                self._sequences.append(_Sequence(row, len(expanded.ids_L), position))

    def _expand(self, request: Request) -> _Expanded:
        image_token_id = self._checkpoint.image_token_id
        ids_L = np.array(request.expanded(image_token_id, self._longest), np.int64)
        if wrong := [token for token in request.token_ids if not 0 <= token < self._model.vocabulary]:
            raise EngineError(f"no token has the id {wrong[0]}")
        grids = [picture.grid for picture in request.prompt.pictures]
        image_L = ids_L == image_token_id
        firsts = np.cumsum([0, *(rows * columns for rows, columns in grids)])[:-1]
        openings = np.flatnonzero(image_L)[firsts].tolist()
        self._make_room(len(ids_L) + (request.decoding.max_tokens if request.decoding else 1))
        return _Expanded(ids_L, image_L, positions(grids, image_L), openings)

    def _make_room(self, tokens: int) -> None:
        """Grows the memory so that each sequence may have so many tokens."""
        if tokens > self._tokens:
            before, had = self._memory, self._tokens
            while self._tokens < tokens:
                self._tokens = min(2 * self._tokens, self._longest)
            self._memory = self._model.memory(self._places, self._tokens)
            used = len(self._sequences)
            self._memory.all[:, :, :used, :, :had] = before.all[:, :, :used]
            self._memory.scores[:used] = before.scores[:used]

    def _read(self, prompt: Prompt, expanded: _Expanded) -> NDArray[np.float32]:
        """Computes a prompt's keys and values at the next place; returns the scores after it [V].

        What comes before the last picture, the rules and worked examples, is the same in many prompts.
        """
        place, length = len(self._sequences), len(expanded.ids_L)
        known, done = cached_prefix(prompt, length), 0
        if known is None and expanded.openings and (done := expanded.openings[-1]):
            known = self._opening(prompt, expanded, done, place)
        if known is not None:
            done = known.shape[3]
            self._memory.all[:, :, place, :, :done] = known
        return self._compute(prompt, expanded, done, length, place)

    def _opening(self, prompt: Prompt, expanded: _Expanded, end: int, place: int) -> Any:
        """Returns the keys and values of a prompt's tokens before its last picture."""
        key = (expanded.ids_L[:end].tobytes(), *(picture.digest for picture in prompt.pictures[:-1]))
        opening = self._openings.pop(key, None)
        if opening is None or opening.keys_values is None:
            self._compute(prompt, expanded, 0, end, place)
            opening = self._keep(place, end, ())
            if opening is None:
                return self._memory.all[:, :, place, :, :end]
        self._openings[key] = opening
        if len(self._openings) > _OPENINGS:
            self._openings.popitem(last=False)
        return opening.keys_values

    def _compute(
        self, prompt: Prompt, expanded: _Expanded, begin: int, end: int, place: int
    ) -> NDArray[np.float32]:
        """Runs the tokens from `begin` to `end`, after those whose keys and values are at the place."""
        embeddings_LH = self._model.embeddings(expanded.ids_L[begin:end])
        shown = [
            self._model.features(picture.image)
            for picture, at in zip(prompt.pictures, expanded.openings, strict=True)
            if begin <= at < end
        ]
        if shown:
            embeddings_LH[expanded.image_L[begin:end]] = np.concatenate(shown)
        positions_3L = expanded.positions_3L[:, begin:end]
        (scores_V,) = self._model.scores(
            embeddings_LH[None], positions_3L, np.array([end]), self._memory, place
        )
        return np.asarray(scores_V)

    def _step(self) -> None:
        """Gives each sequence a token, answers the complete ones, and reads the tokens of the others."""
        if not self._sequences:
            return
        rows = [sequence.row for sequence in self._sequences]
        scores_BV = torch.from_numpy(self._memory.scores[: len(rows)])
        going = self._sampler.choose(rows, scores_BV, partial(self._keep_row, rows))
        for place, i in enumerate(going):
            if place != i:
                length = self._sequences[i].length
                self._memory.all[:, :, place, :, :length] = self._memory.all[:, :, i, :, :length]
        self._sequences = [self._sequences[i] for i in going]
        if not self._sequences:
            return
        for sequence in self._sequences:
            sequence.length += 1
        newest_B1 = [sequence.row.token_ids[-1:] for sequence in self._sequences]
        self._model.scores(
            self._model.embeddings(newest_B1),
            np.tile([sequence.position for sequence in self._sequences], (3, 1)),
            np.array([sequence.length for sequence in self._sequences]),
            self._memory,
            0,
        )
        for sequence in self._sequences:
            sequence.position += 1

    def _keep_row(self, rows: list[Row], i: int) -> CachedPrefix | None:
        token_ids = (*rows[i].request.prompt.token_ids, *rows[i].token_ids)
        return self._keep(i, self._sequences[i].length, token_ids)

    def _keep(self, place: int, length: int, token_ids: tuple[int, ...]) -> CachedPrefix | None:
        """Keeps keys and values of a place; returns None if there is no room for them."""
        kept = self._memory.all[:, :, place, :, :length]
        return self._prefixes.keep(token_ids, kept.copy()) if self._prefixes.make_room(kept.nbytes) else None

    def _logprobs(self, scores_V: NDArray[np.float32], token_ids: tuple[int, ...]) -> tuple[float, ...]:
        if np.isnan(scores_V).any():
            raise EngineError(NOT_NUMBERS)
        logprobs_V = torch.from_numpy(scores_V).log_softmax(-1)
        return tuple(logprobs_V[list(token_ids)].tolist())
