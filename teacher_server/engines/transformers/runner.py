"""The forward passes of the transformers engine: batches that generate or score, over a loaded checkpoint."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import EngineError, check_seen
from teacher_server.engines.batching import Request
from teacher_server.engines.prefixes import CachedPrefix, PrefixCache, cached_prefix
from teacher_server.engines.sampling import NOT_NUMBERS, Row, Sampler
from teacher_server.engines.transformers.kv_cache import join_prefixes, keep_row
from teacher_server.engines.transformers.model import device_of, is_out_of_memory, load_model
from teacher_server.engines.transformers.pictures import (
    language_inputs,
    picture_features,
    picture_processor,
)
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.settings import EngineSettings


@dataclass(eq=False)
class _Features:
    """A picture as the language model gets it: features of N visual tokens, and the patch grid."""

    features_NX: torch.Tensor
    grid_3: torch.Tensor


@dataclass(eq=False)
class _Step:
    """The result of a forward pass over whole prompts."""

    logits_BV: torch.Tensor
    """Of the next token, float32."""
    mask_BL: torch.Tensor
    next_B: torch.Tensor
    """The position of the next token."""
    cache: Any
    """Keys and values; None unless requested."""


class Runner:
    """A loaded checkpoint.

    It generates with its own loop instead of `model.generate`: requests end, fail and are cancelled one by
    one, each samples with its own seed, and generation_config.json (Qwen's has a repetition penalty) has no
    effect.

    Raises:
        CannotLoad: the device is missing or too small, or the checkpoint is broken.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        self._checkpoint = checkpoint
        self._max_model_len = settings.max_model_len
        self._device = device_of(settings.device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._model = load_model(checkpoint, settings, self._device)
        self._processor = picture_processor(checkpoint.dimensions)
        self._vocabulary: int = self._model.lm_head.out_features
        self._sampler = Sampler(checkpoint, self._vocabulary, self._device)
        # Holds the pictures of all running questions, twice, and of 64 worked examples
        self._max_pictures = 2 * settings.max_num_seqs + 64
        self._features: OrderedDict[str, _Features] = OrderedDict()
        self._prefixes = PrefixCache(checkpoint.prefix_cache_bytes(settings, "transformers"))
        # Layers with a sliding window drop keys and values that stage 2 would need
        layers = getattr(self._model.config.get_text_config(), "layer_types", ())
        self._keeps_prefixes = "sliding_attention" not in layers

    @torch.inference_mode()
    def run(self, requests: list[Request]) -> None:
        """Answers requests, which all generate or all score.

        Raises:
            EngineError: the batch does not fit in memory.
        """
        try:
            if requests[0].decoding is None:
                self._score(requests)
            else:
                self._generate(requests)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Here the exception is gone, and with it the tensors that its traceback kept alive
        self._prefixes.clear()
        torch.cuda.empty_cache()
        raise EngineError(f"out of memory with a batch of {len(requests)}: lower `max_num_seqs`")

    def forward(self, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """Runs the language model; returns the next token's logits, float32 [B, V], and keys and values."""
        outputs = self._model.model.language_model(**inputs)
        return self._model.lm_head(outputs.last_hidden_state[:, -1]).float(), outputs.past_key_values

    def _score(self, requests: list[Request]) -> None:
        """Answers scoring requests with one forward pass."""
        requests, expanded = self._expand(requests)
        if not requests:
            return
        logprobs_BV = self._read(requests, expanded, use_cache=False).logits_BV.log_softmax(-1)
        broken_B = logprobs_BV.isnan().any(-1).tolist()
        for request, logprobs_V, broken in zip(requests, logprobs_BV, broken_B, strict=True):
            wrong = [token for token in request.token_ids if not 0 <= token < self._vocabulary]
            if wrong:
                request.settle(EngineError(f"no token has the id {wrong[0]}"))
            elif broken:
                request.settle(EngineError(NOT_NUMBERS))
            else:
                request.settle(tuple(logprobs_V[list(request.token_ids)].tolist()))

    def _generate(self, requests: list[Request]) -> None:
        """Answers generating requests, each as soon as it is complete; the others continue without it."""
        requests, expanded = self._expand(requests)
        rows = [row for row in map(self._sampler.row, requests) if row is not None]
        if len(rows) < len(requests):
            usable = {id(row.request) for row in rows}
            expanded = [ids for ids, request in zip(expanded, requests, strict=True) if id(request) in usable]
        if not rows:
            return
        step = self._read([row.request for row in rows], expanded, use_cache=True)
        while True:
            going = self._sampler.choose(rows, step.logits_BV, partial(self._keep, step, rows))
            if not going:
                return
            if len(going) < len(rows):
                keep = torch.tensor(going, device=self._device)
                rows = [rows[i] for i in going]
                step.cache.batch_select_indices(keep)
                step.mask_BL, step.next_B = step.mask_BL[keep], step.next_B[keep]
            newest_B1 = torch.tensor([row.token_ids[-1:] for row in rows], device=self._device)
            step.mask_BL = torch.cat([step.mask_BL, torch.ones_like(newest_B1)], dim=1)
            step.logits_BV, step.cache = self.forward(
                inputs_embeds=self._model.get_input_embeddings()(newest_B1),
                attention_mask=step.mask_BL,
                position_ids=step.next_B.view(1, -1, 1).expand(3, -1, -1),
                past_key_values=step.cache,
                use_cache=True,
            )
            step.next_B = step.next_B + 1

    def _expand(self, requests: list[Request]) -> tuple[list[Request], list[list[int]]]:
        """Returns the requests that can run, and their prompts with one image token for each visual token."""
        self._compute_features([picture for request in requests for picture in request.prompt.pictures])
        usable, expanded = [], []
        for request in requests:
            try:
                ids = request.expanded(self._checkpoint.image_token_id, self._max_model_len)
            except EngineError as error:
                request.settle(error)
                continue
            usable.append(request)
            expanded.append(ids)
        return usable, expanded

    def _keep(self, step: _Step, rows: list[Row], i: int) -> CachedPrefix | None:
        """Keeps the keys and values of a row's prompt and generated tokens."""
        if not self._keeps_prefixes:
            return None
        token_ids = (*rows[i].request.prompt.token_ids, *rows[i].token_ids)
        return keep_row(self._prefixes, step.cache, i, int(step.mask_BL[i].sum()), token_ids)

    def _read(self, requests: list[Request], expanded: list[list[int]], *, use_cache: bool) -> _Step:
        """Runs a forward pass over whole prompts, padded at the left so that all end in the last column.

        Columns whose keys and values are cached for all prompts are not computed again.
        """
        length = max(map(len, expanded))
        padding, image_token_id = self._checkpoint.end_token_id, self._checkpoint.image_token_id
        ids_BL = torch.tensor([[padding] * (length - len(ids)) + ids for ids in expanded])
        mask_BL = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in expanded])
        pictures = [self._features[p.digest] for request in requests for p in request.prompt.pictures]
        positions_3BL, _ = self._model.model.get_rope_index(
            ids_BL,
            mm_token_type_ids=(ids_BL == image_token_id).int(),
            image_grid_thw=torch.stack([p.grid_3 for p in pictures]) if pictures else None,
            attention_mask=mask_BL,
        )
        lengths = list(map(len, expanded))
        known = [cached_prefix(request.prompt, n) for request, n in zip(requests, lengths, strict=True)]
        cache, left = join_prefixes(known, lengths)
        ids_BL, mask_BL, positions_3BL = (each.to(self._device) for each in (ids_BL, mask_BL, positions_3BL))
        image_BL = ids_BL == image_token_id
        if pictures:
            is_left_N = image_BL.nonzero()[:, 1] >= length - left
            features_NX = torch.cat([p.features_NX for p in pictures])[is_left_N]
            inputs = language_inputs(self._model, ids_BL[:, -left:], image_BL[:, -left:], features_NX)
        else:
            inputs = {"inputs_embeds": self._model.get_input_embeddings()(ids_BL[:, -left:])}
        logits_BV, cache = self.forward(
            **inputs,
            attention_mask=mask_BL,
            position_ids=positions_3BL[..., -left:],
            past_key_values=cache,
            use_cache=use_cache,
        )
        return _Step(logits_BV, mask_BL, positions_3BL.amax((0, 2)) + 1, cache if use_cache else None)

    def _compute_features(self, pictures: list[PreparedPicture]) -> None:
        """Puts the features of these pictures into `_features` and drops the least recently used ones."""
        unseen = {p.digest: p for p in pictures if p.digest not in self._features}
        if unseen:
            processed = self._processor(images=[p.image for p in unseen.values()], return_tensors="pt")
            grid_N3 = processed["image_grid_thw"]
            seen = picture_features(
                self._model, processed["pixel_values"].to(self._device), grid_N3.to(self._device)
            )
            check_seen(unseen.values(), sum(map(len, seen)))
            for digest, features_NX, grid_3 in zip(unseen, seen, grid_N3, strict=True):
                self._features[digest] = _Features(features_NX, grid_3)
        needed = {picture.digest for picture in pictures}
        for digest in needed:
            self._features.move_to_end(digest)
        while len(self._features) > max(self._max_pictures, len(needed)):
            self._features.popitem(last=False)
