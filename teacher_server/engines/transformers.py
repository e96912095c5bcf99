"""Runs a checkpoint under transformers: on any machine, in this process, a batch at a time."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
import xgrammar

from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import (
    CannotLoad,
    Decoding,
    EngineDead,
    EngineError,
    Generated,
    Prompt,
    check_seen,
)
from teacher_server.engines.batching import Batches, Request
from teacher_server.engines.constraints import grammar_of
from teacher_server.engines.exceptions import words_of
from teacher_server.engines.kv_cache import Kept, KeptStates, joined, known_of
from teacher_server.engines.processor import picture_processor
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.settings import EngineSettings

_hf: Any = transformers  # annotated too partially to be checked against

_GRAMMAR_CACHE_BYTES = 2**28
_NOT_NUMBERS = "the model's scores are not numbers: try --dtype float32, and check the weights"


class TransformersEngine:
    """A `ChatEngine`: what waits is taken in batches of prompts to go on with and of prompts to score.

    Sampling has a generator of its own for each request: its batch mates change its tokens only where their
    rounding errors do.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._batches: Batches | None = None

    async def start(self) -> None:
        """Loads the checkpoint.

        Raises:
            CannotLoad: the device is not there or too small, or the checkpoint is broken.
        """
        runner = await asyncio.to_thread(_Runner, self._checkpoint, self._settings)
        self._batches = Batches(runner.run, self._settings.max_num_seqs)

    async def generate(self, prompt: Prompt, decoding: Decoding) -> Generated:
        """Goes on with a prompt. Cancelling this ends its part of the batch at the next token.

        Raises:
            EngineError: the engine failed on this request; EngineDead: it is closed.
        """
        generated: Generated = await self._answer(Request(prompt, decoding))
        return generated

    async def score(self, prompt: Prompt, token_ids: Sequence[int]) -> tuple[float, ...]:
        """The log-probabilities of these tokens to come next, in one step.

        Raises:
            EngineError: the engine failed on this request; EngineDead: it is closed.
        """
        scores: tuple[float, ...] = await self._answer(Request(prompt, token_ids=tuple(token_ids)))
        return scores

    async def close(self) -> None:
        """Ends at the next token; what is not answered yet gets EngineDead.

        Raises:
            EngineHangs: that token does not come.
        """
        if self._batches is not None:
            batches, self._batches = self._batches, None
            await batches.close()
            del batches
            torch.cuda.empty_cache()

    async def _answer(self, request: Request) -> Any:
        if self._batches is None:
            raise EngineDead("the engine is not started, or is closed")
        return await self._batches.answer(request)


@dataclass(eq=False)
class _Row:
    """One request's part of a batch that generates."""

    request: Request
    decoding: Decoding
    matcher: xgrammar.GrammarMatcher
    random: torch.Generator
    token_ids: list[int]

    def sample(self, logits_V: torch.Tensor) -> int:
        """The next token at the request's temperature; drawn on the CPU: one seed draws one series."""
        probs_V = torch.softmax(logits_V.cpu() / self.decoding.temperature, dim=0)
        return int(torch.multinomial(probs_V, 1, generator=self.random))


@dataclass(eq=False)
class _Seen:
    """A picture as the language model gets it: features [N, H] of N tokens, and its grid of patches."""

    features_NH: torch.Tensor
    grid_3: torch.Tensor


@dataclass(eq=False)
class _Step:
    """What a forward pass over whole prompts gives."""

    logits_BV: torch.Tensor
    """Of the next token, float32."""
    mask_BL: torch.Tensor
    next_B: torch.Tensor
    """The position of the next token."""
    cache: Any
    """Keys and values, if they were asked for."""


class _Runner:
    """The loaded checkpoint.

    Generation is a loop of its own rather than `model.generate`: requests end, fail and are cancelled one by
    one and sample with seeds of their own, and nothing of generation_config.json (a repetition penalty, for
    Qwen) mixes in.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        self._checkpoint = checkpoint
        self._max_model_len = settings.max_model_len
        self._device = _device(settings.device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._model = _load(checkpoint, settings, self._device)
        self._processor = picture_processor(checkpoint.dimensions)
        self._vocabulary: int = self._model.lm_head.out_features
        tokenizer_info = xgrammar.TokenizerInfo.from_huggingface(
            _hf.PreTrainedTokenizerFast(tokenizer_object=checkpoint.tokenizer),
            vocab_size=self._vocabulary,
            stop_token_ids=[checkpoint.end_token_id],
        )
        self._grammars = xgrammar.GrammarCompiler(tokenizer_info, cache_limit_bytes=_GRAMMAR_CACHE_BYTES)
        # Inside a JSON string a grammar takes a special token for its letters: <|image_pad|> for text
        special = {checkpoint.tokenizer.token_to_id(token) for token in checkpoint.special_tokens}
        self._forbidden = torch.tensor(sorted(special - {checkpoint.end_token_id}), device=self._device)
        # Each question's picture comes in two stages, and examples come with every question
        self._most_seen = 2 * settings.max_num_seqs + 64
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._kept = KeptStates(checkpoint.kept_bytes(settings))
        # Of a window that slides, layers forget what would be gone on from
        self._keeps = "sliding_attention" not in self._model.config.get_text_config().layer_types

    @torch.inference_mode()
    def run(self, requests: list[Request]) -> None:
        """Answers requests, all to generate or all to score.

        Raises:
            EngineError: there is too little memory for the batch.
        """
        try:
            if requests[0].decoding is None:
                self._score(requests)
            else:
                self._generate(requests)
            return
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        # Out here the exception is gone, and with it what its trace kept in memory
        self._kept.clear()
        torch.cuda.empty_cache()
        raise EngineError(f"out of memory with a batch of {len(requests)}: lower --max-num-seqs")

    def _score(self, requests: list[Request]) -> None:
        """Answers requests for scores with one forward pass."""
        requests, expanded = self._expand(requests)
        if not requests:
            return
        logprobs_BV = self._read(requests, expanded, use_cache=False).logits_BV.log_softmax(-1)
        broken_B = logprobs_BV.isnan().any(-1).tolist()
        for request, logprobs_V, broken in zip(requests, logprobs_BV, broken_B, strict=True):
            wrong = [token for token in request.token_ids if not 0 <= token < self._vocabulary]
            if wrong:
                request.settle(EngineError(f"no token has the number {wrong[0]}"))
            elif broken:
                request.settle(EngineError(_NOT_NUMBERS))
            else:
                request.settle(tuple(logprobs_V[list(request.token_ids)].tolist()))

    def _generate(self, requests: list[Request]) -> None:
        """Answers requests for text, each as soon as it is complete; then the others go on without it."""
        requests, expanded = self._expand(requests)
        rows = [row for row in map(self._row, requests) if row is not None]
        if len(rows) < len(requests):
            kept = {id(row.request) for row in rows}
            expanded = [ids for ids, request in zip(expanded, requests, strict=True) if id(request) in kept]
        if not rows:
            return
        step = self._read([row.request for row in rows], expanded, use_cache=True)
        while True:
            going = self._choose(rows, step)
            if not going:
                return
            if len(going) < len(rows):
                keep = torch.tensor(going, device=self._device)
                rows = [rows[i] for i in going]
                step.cache.batch_select_indices(keep)
                step.mask_BL, step.next_B = step.mask_BL[keep], step.next_B[keep]
            newest_B1 = torch.tensor([row.token_ids[-1:] for row in rows], device=self._device)
            step.mask_BL = torch.cat([step.mask_BL, torch.ones_like(newest_B1)], dim=1)
            outputs = self._model(
                input_ids=newest_B1,
                attention_mask=step.mask_BL,
                position_ids=step.next_B.view(1, -1, 1).expand(3, -1, -1),
                past_key_values=step.cache,
                use_cache=True,
            )
            step.logits_BV = outputs.logits[:, -1].float()
            step.next_B = step.next_B + 1

    def _expand(self, requests: list[Request]) -> tuple[list[Request], list[list[int]]]:
        """The requests that can be run, and their prompts with one image token for each visual token."""
        self._see([picture for request in requests for picture in request.prompt.pictures])
        usable, expanded = [], []
        for request in requests:
            prompt, image_token_id = request.prompt, self._checkpoint.image_token_id
            places = prompt.token_ids.count(image_token_id)
            if places != len(prompt.pictures):
                request.settle(EngineError(f"{len(prompt.pictures)} pictures for {places} image tokens"))
                continue
            sizes = iter([len(self._seen[picture.digest].features_NH) for picture in prompt.pictures])
            copies = [next(sizes) if token == image_token_id else 1 for token in prompt.token_ids]
            ids = [i for i, n in zip(prompt.token_ids, copies, strict=True) for _ in range(n)]
            further = request.decoding.max_tokens if request.decoding else 1
            if not ids or len(ids) + further > self._max_model_len:
                lengths = f"the prompt has {len(ids)} tokens and up to {further} may follow"
                request.settle(EngineError(f"{lengths}: --max-model-len is {self._max_model_len}"))
                continue
            usable.append(request)
            expanded.append(ids)
        return usable, expanded

    def _row(self, request: Request) -> _Row | None:
        """Makes ready to generate; None if its schema is none, and it is answered so."""
        decoding = request.decoding
        assert decoding is not None
        try:
            grammar = self._grammars.compile_grammar(grammar_of(decoding.schema))
        except Exception as error:
            request.settle(EngineError(f"the schema cannot be made into a grammar: {words_of(error)}"))
            return None
        random = torch.Generator().manual_seed(decoding.seed % 2**63)
        return _Row(request, decoding, xgrammar.GrammarMatcher(grammar), random, [])

    def _choose(self, rows: list[_Row], step: _Step) -> list[int]:
        """Gives each row its next token and answers those that it completes; returns the rows that go on."""
        logits_BV = step.logits_BV
        bits_BW = xgrammar.allocate_token_bitmask(len(rows), self._vocabulary)
        for i, row in enumerate(rows):
            row.matcher.fill_next_token_bitmask(bits_BW, i)
        logits_BV[:, self._forbidden] = -torch.inf
        xgrammar.apply_token_bitmask_inplace(logits_BV, bits_BW.to(self._device))
        broken_B, greedy_B = logits_BV.isnan().any(-1).tolist(), logits_BV.argmax(-1).tolist()
        going = []
        for i, row in enumerate(rows):
            if row.request.settled:  # cancelled, or the engine is being closed
                continue
            if broken_B[i]:
                row.request.settle(EngineError(_NOT_NUMBERS))
                continue
            token = row.sample(logits_BV[i]) if row.decoding.temperature else greedy_B[i]
            row.matcher.accept_token(token)
            if token == self._checkpoint.end_token_id:
                row.request.settle(self._generated(row, self._keep(step, i, row)))
            else:
                row.token_ids.append(token)
                if len(row.token_ids) >= row.decoding.max_tokens:
                    row.request.settle(self._generated(row, None, complete=False))
                else:
                    going.append(i)
        return going

    def _generated(self, row: _Row, kept: Kept | None, *, complete: bool = True) -> Generated:
        text = self._checkpoint.tokenizer.decode(row.token_ids, skip_special_tokens=False)
        return Generated(tuple(row.token_ids), text, complete, kept)

    def _keep(self, step: _Step, i: int, row: _Row) -> Kept | None:
        """Keys and values of a row's prompt and of all that was generated."""
        if not self._keeps:
            return None
        said = (*row.request.prompt.token_ids, *row.token_ids)
        return self._kept.keep(step.cache, i, int(step.mask_BL[i].sum()), said)

    def _read(self, requests: list[Request], expanded: list[list[int]], *, use_cache: bool) -> _Step:
        """A forward pass over whole prompts, padded at the left so that all end in the last column.

        Columns whose keys and values all prompts have kept are not computed again.
        """
        length = max(map(len, expanded))
        padding, image_token_id = self._checkpoint.end_token_id, self._checkpoint.image_token_id
        ids_BL = torch.tensor([[padding] * (length - len(ids)) + ids for ids in expanded])
        mask_BL = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in expanded])
        pictures = [self._seen[p.digest] for request in requests for p in request.prompt.pictures]
        positions_3BL, _ = self._model.model.get_rope_index(
            ids_BL,
            mm_token_type_ids=(ids_BL == image_token_id).int(),
            image_grid_thw=torch.stack([p.grid_3 for p in pictures]) if pictures else None,
            attention_mask=mask_BL,
        )
        embeddings_BLH = self._model.get_input_embeddings()(ids_BL.to(self._device))
        if pictures:
            embeddings_BLH[ids_BL == image_token_id] = torch.cat([p.features_NH for p in pictures])
        mask_BL, positions_3BL = mask_BL.to(self._device), positions_3BL.to(self._device)
        lengths = list(map(len, expanded))
        known = [known_of(request.prompt, n) for request, n in zip(requests, lengths, strict=True)]
        cache, left = joined(known, lengths)
        outputs = self._model(
            inputs_embeds=embeddings_BLH[:, -left:],
            attention_mask=mask_BL,
            position_ids=positions_3BL[..., -left:],
            past_key_values=cache,
            use_cache=use_cache,
            logits_to_keep=1,
        )
        return _Step(
            outputs.logits[:, -1].float(),
            mask_BL,
            positions_3BL.amax((0, 2)) + 1,
            outputs.past_key_values if use_cache else None,
        )

    def _see(self, pictures: list[PreparedPicture]) -> None:
        """Has the features of these pictures in `_seen`, and forgets those that were not used for longest."""
        unseen = {p.digest: p for p in pictures if p.digest not in self._seen}
        if unseen:
            processed = self._processor(images=[p.image for p in unseen.values()], return_tensors="pt")
            grid_N3 = processed["image_grid_thw"]
            seen = self._model.get_image_features(
                processed["pixel_values"].to(self._device), grid_N3.to(self._device)
            )
            check_seen(unseen.values(), sum(map(len, seen.pooler_output)))
            for digest, features_NH, grid_3 in zip(unseen, seen.pooler_output, grid_N3, strict=True):
                self._seen[digest] = _Seen(features_NH.clone(), grid_3)
        needed = {picture.digest for picture in pictures}
        for digest in needed:
            self._seen.move_to_end(digest)
        while len(self._seen) > max(self._most_seen, len(needed)):
            self._seen.popitem(last=False)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise CannotLoad(f"--device is {name!r}; it must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotLoad(f"--device is {name!r}, and torch {torch.__version__} finds no CUDA GPU: use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CannotLoad(f"--device is {name!r}, and there are {torch.cuda.device_count()} GPUs, from cuda:0")
    return device


def _load(checkpoint: Checkpoint, settings: EngineSettings, device: torch.device) -> Any:
    """The model on its device, with the checkpoint's weights or random ones."""
    dtype = getattr(torch, checkpoint.dtype() if settings.dtype == "auto" else settings.dtype)
    _hf.utils.logging.disable_progress_bar()
    try:
        if settings.load_format == "dummy":
            config = _hf.Qwen2_5_VLConfig.from_pretrained(checkpoint.folder, local_files_only=True)
            # On the device itself: drawing billions of numbers takes a processor minutes
            with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
                torch.manual_seed(settings.seed)
                model = _hf.AutoModelForImageTextToText.from_config(
                    config, dtype=dtype, attn_implementation="sdpa"
                )
            return model.eval()
        model, report = _hf.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            checkpoint.folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
        missing = sorted(report["missing_keys"])
        if missing:
            # transformers only warns, and would run with random numbers in their place
            raise CannotLoad(f"{checkpoint.folder} lacks {len(missing)} of its weights, {missing[0]} first")
        return model.to(device).eval()
    except CannotLoad:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise CannotLoad(
                f"out of memory: {checkpoint.folder} in {dtype} does not fit on {device};"
                " take a smaller checkpoint, --dtype bfloat16 or another --device"
            ) from error
        raise CannotLoad(f"{checkpoint.folder} cannot be loaded: {words_of(error)}") from error


def _is_out_of_memory(error: Exception) -> bool:
    # torch has a class for a GPU's memory only
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
