"""Chooses tokens from scores: held to a schema's grammar, greedy or sampled."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
import xgrammar

from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import Decoding, EngineError, Generated
from teacher_server.engines.batching import Request
from teacher_server.engines.constraints import grammar_of
from teacher_server.engines.exceptions import words_of

_hf: Any = transformers  # its annotations are too incomplete to check against

_GRAMMAR_CACHE_BYTES = 2**28
NOT_NUMBERS = "the model's scores are not numbers: set `dtype` to float32, and check the weights"


@dataclass(eq=False)
class Row:
    """A request that generates, and what it has generated so far."""

    request: Request
    decoding: Decoding
    matcher: xgrammar.GrammarMatcher
    random: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    least_logprob: float = 0.0
    """Of the tokens so far, in nats."""

    def sample(self, logits_V: torch.Tensor) -> int:
        """Draws the next token at the request's temperature, on the CPU so that a seed fixes the series."""
        probs_V = torch.softmax(logits_V.cpu() / self.decoding.temperature, dim=0)
        return int(torch.multinomial(probs_V, 1, generator=self.random))


class Sampler:
    """Chooses the next tokens of rows.

    Args:
        vocabulary: tokens that the model scores.
    """

    def __init__(self, checkpoint: Checkpoint, vocabulary: int, device: torch.device) -> None:
        self._tokenizer, self._end = checkpoint.tokenizer, checkpoint.end_token_id
        self._vocabulary, self._device = vocabulary, device
        tokenizer_info = xgrammar.TokenizerInfo.from_huggingface(
            _hf.PreTrainedTokenizerFast(tokenizer_object=checkpoint.tokenizer),
            vocab_size=vocabulary,
            stop_token_ids=[checkpoint.end_token_id],
        )
        self._grammars = xgrammar.GrammarCompiler(tokenizer_info, cache_limit_bytes=_GRAMMAR_CACHE_BYTES)
        # Inside a JSON string the grammar accepts a special token, such as <|image_pad|>, as letters
        special = {checkpoint.tokenizer.token_to_id(token) for token in checkpoint.special_tokens}
        self._forbidden = torch.tensor(sorted(special - {checkpoint.end_token_id}), device=device)

    def row(self, request: Request) -> Row | None:
        """Returns a row ready to generate; for an invalid schema it answers the request and returns None."""
        decoding = request.decoding
        assert decoding is not None
        try:
            grammar = self._grammars.compile_grammar(grammar_of(decoding.schema))
        except Exception as error:
            request.settle(EngineError(f"no grammar can be made of the schema: {words_of(error)}"))
            return None
        random = torch.Generator().manual_seed(decoding.seed % 2**63)
        return Row(request, decoding, xgrammar.GrammarMatcher(grammar), random)

    def choose(
        self, rows: list[Row], logits_BV: torch.Tensor, keep: Callable[[int], Any] = lambda i: None
    ) -> list[int]:
        """Gives each row its next token and answers the complete rows; returns the rows that continue.

        Args:
            logits_BV: of the next token, float32; changed in place.
            keep: returns the handle of a complete row's prefix, for `Generated.cached`.
        """
        bits_BW = xgrammar.allocate_token_bitmask(len(rows), self._vocabulary)
        for i, row in enumerate(rows):
            row.matcher.fill_next_token_bitmask(bits_BW, i)
        logits_BV[:, self._forbidden] = -torch.inf
        xgrammar.apply_token_bitmask_inplace(logits_BV, bits_BW.to(self._device))
        total_B = logits_BV.logsumexp(-1).tolist()  # over the tokens that the grammar allows
        highest_B, tokens_B = (found_B.tolist() for found_B in logits_BV.max(-1))
        going = []
        for i, row in enumerate(rows):
            if row.request.settled:  # cancelled, or the engine is being closed
                continue
            if math.isnan(total_B[i]):
                row.request.settle(EngineError(NOT_NUMBERS))
                continue
            token, logit = tokens_B[i], highest_B[i]
            if row.decoding.temperature:
                token = row.sample(logits_BV[i])
                logit = float(logits_BV[i, token])
            row.least_logprob = min(row.least_logprob, logit - total_B[i])
            row.matcher.accept_token(token)
            if token == self._end:
                row.request.settle(self._generated(row, keep(i)))
            else:
                row.token_ids.append(token)
                if len(row.token_ids) >= row.decoding.max_tokens:
                    row.request.settle(self._generated(row, None, complete=False))
                else:
                    going.append(i)
        return going

    def _generated(self, row: Row, cached: Any, *, complete: bool = True) -> Generated:
        text = self._tokenizer.decode(row.token_ids, skip_special_tokens=False)
        ids = tuple(row.token_ids)
        return Generated(text, len(ids), complete, ids, cached, row.least_logprob)
