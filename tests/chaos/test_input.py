"""Hostile input: fuzzers on every reader of external data, in this process."""

import base64
import gc
import json
import math
import os
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gridworld.pictures import UnreadablePicture, read
from teacher_api.schemas import ACTIONS, Answer, Question
from teacher_server.pictures.decoding import BadPicture, decode, from_base64
from teacher_server.prompting.readout import Unreadable, from_label_scores, from_numbers
from tests.chaos.mutations import answer_texts, mutated, picture_files
from tests.conftest import AskAbout

INPUTS = int(os.environ.get("CHAOS_INPUTS", "100000"))
"""Inputs per fuzzer; set the environment variable for a shorter run."""
_DRAWN = INPUTS // 10
"""The number of these that hypothesis draws; the others are mutations."""
_MOST_PIXELS = 4096 * 4096
_LONGEST_S = 60
"""The limit for one input: a busy machine may pause for long, a hang never ends."""
_ENVS = (
    "MiniGrid-LavaGapS5-v0",
    "MiniGrid-Fetch-5x5-N2-v0",
    "MiniGrid-GoToDoor-5x5-v0",
    "MiniGrid-Dynamic-Obstacles-5x5-v0",
)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

_Draw = st.SearchStrategy[bytes]


class _Fuzzed:
    """Feeds a reader; counts outcomes, and watches time and memory."""

    def __init__(self, reader: Callable[[bytes], str]) -> None:
        self._reader = reader
        self.outcomes: Counter[str] = Counter()
        self.longest_s = 0.0
        self._mib: list[float] = []

    def feed(self, data: bytes) -> None:
        """Feeds one input; the reader raises only the exceptions that it documents."""
        began = time.perf_counter()
        try:
            self.outcomes[self._reader(data)] += 1
        except Exception as error:
            error.add_note(f"input: {data[:2000]!r}")
            raise
        self.longest_s = max(self.longest_s, time.perf_counter() - began)

    def run(self, name: str, drawn: _Draw, sources: list[bytes], seed: int = 0) -> None:
        """Feeds all inputs and prints the outcomes."""
        began, rng = time.perf_counter(), random.Random(seed)
        for source in sources:
            self.feed(source)
        _feed_drawn(drawn, self.feed)
        middle = (INPUTS - sum(self.outcomes.values())) // 2
        for number in range(INPUTS - sum(self.outcomes.values())):
            self.feed(mutated(rng.choice(sources), rng, sources))
            if number in (middle // 4, middle):
                self._mib.append(_rss_mib())
        self._mib.append(_rss_mib())
        print(
            f"\n{name}: {sum(self.outcomes.values())} inputs in {time.perf_counter() - began:.0f} s:"
            f" {dict(self.outcomes.most_common())}; the longest took {self.longest_s * 1000:.0f} ms; memory"
            f" {', '.join(f'{mib:.0f}' for mib in self._mib)} MiB early, in the middle and at the end"
        )
        assert sum(self.outcomes.values()) >= INPUTS
        assert self.longest_s < _LONGEST_S
        assert self._mib[2] < 1.1 * self._mib[1] + 30


def test_the_picture_reader(ask_about: AskAbout) -> None:
    pictures = [
        base64.b64decode(ask_about(env, seed, tile).image)
        for env in _ENVS
        for seed, tile in ((0, 8), (1, 8), (2, 10))
    ]
    sources = picture_files(pictures)
    drawn = st.one_of(
        st.binary(max_size=2000),
        st.tuples(st.sampled_from(pictures), st.binary(max_size=64), st.integers(0, 4000)).map(
            lambda drawn: drawn[0][: drawn[2]] + drawn[1] + drawn[0][drawn[2] :]
        ),
    )
    fuzzed = _Fuzzed(_read_picture)
    fuzzed.run("picture reader", drawn, sources)
    assert fuzzed.outcomes["read"] > 0


def test_the_picture_reader_on_pixels(ask_about: AskAbout) -> None:
    """Pictures that are nearly a grid: with other tiles, other sizes, noise."""

    pictures = [
        decode(base64.b64decode(ask_about(env, 0, tile).image), max_pixels=_MOST_PIXELS)
        for env in _ENVS
        for tile in (8, 9, 16)
    ]

    def shown(data: bytes) -> str:
        rng = np.random.default_rng(int.from_bytes(data[:8]))
        picture = pictures[rng.integers(len(pictures))].copy()
        height, width = picture.shape[:2]
        for _ in range(rng.integers(1, 4)):
            y, x, size = rng.integers(height), rng.integers(width), rng.integers(1, 33)
            part = picture[y : y + size, x : x + size]
            match rng.integers(5):
                case 0:
                    part[:] = rng.integers(0, 256, 3, np.uint8)
                case 1:
                    part[:] = np.roll(picture, rng.integers(1, 64), 1)[y : y + size, x : x + size]
                case 2:
                    part += rng.integers(0, 20, part.shape, np.uint8)
                case 3:
                    picture = picture[rng.integers(height) // 8 :]
                    height = picture.shape[0]
                case 4:
                    picture = np.ascontiguousarray(picture[:, : width - rng.integers(0, width // 2)])
                    width = picture.shape[1]
        try:
            read(picture)
        except UnreadablePicture:
            return "unreadable"
        return "read"

    fuzzed = _Fuzzed(shown)
    fuzzed.run("picture reader, pixels", st.binary(min_size=8, max_size=8), [bytes(8)])


def test_the_reader_of_numbers() -> None:
    probability = st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=5))
    drawn = st.one_of(
        st.dictionaries(st.sampled_from(ACTIONS), probability, max_size=4).map(
            lambda numbers: json.dumps(numbers).encode()
        ),
        st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    )

    def shown(data: bytes) -> str:
        actions = ACTIONS[:3]
        try:
            numbers = from_numbers(data.decode("utf-8", "replace"), actions, tolerance=0.05)
        except Unreadable as error:
            return error.fault
        _assert_distribution(numbers, actions)
        return "read"

    _Fuzzed(shown).run("numbers", drawn, answer_texts())


def test_the_reader_of_label_scores() -> None:
    scores = st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=7)
    drawn = scores.map(lambda values: b"".join(_packed(value) for value in values))

    def shown(data: bytes) -> str:
        values = [_unpacked(data[i : i + 8]) for i in range(0, min(len(data), 56), 8)] or [0.0]
        given_scores = dict(zip(ACTIONS, values, strict=False))
        try:
            numbers, _ = from_label_scores(given_scores, temperature=1.0, min_mass=0.01)
        except Unreadable as error:
            return error.fault
        _assert_distribution(numbers, tuple(given_scores))
        return "read"

    sources = [b"".join(map(_packed, values)) for values in ((-1.0, -2.0, -0.5), (0.0,), (-800.0, 1e308))]
    _Fuzzed(shown).run("label scores", drawn, sources)


@pytest.mark.parametrize("kind", [Question, Answer])
def test_the_wire(kind: type[Question] | type[Answer], ask_about: AskAbout) -> None:
    whole = {
        Question: ask_about(_ENVS[0]).model_dump_json().encode(),
        Answer: b'{"probabilities":{"left":0.25,"right":0.75},"action":"right","analysis":"x","stages":'
        b'{"analysis":{"text":"x","milliseconds":1},"action":null},"teacher":"t","stored":false,'
        b'"milliseconds":{"total":1}}',
    }[kind]
    drawn = st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=20), st.integers()),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_fields(kind), inner, max_size=6),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())

    def shown(data: bytes) -> str:
        try:
            given_value = kind.model_validate_json(data)
        except ValidationError as error:
            return error.errors(include_url=False, include_input=False)[0]["type"]
        if isinstance(given_value, Answer) and given_value.probabilities is not None:
            assert given_value.action in given_value.probabilities
        if isinstance(given_value, Question):
            try:
                from_base64(given_value.image)
            except BadPicture:
                return "not base64"
        return "read"

    _Fuzzed(shown).run(kind.__name__, drawn, [whole, *answer_texts()])


def _read_picture(data: bytes) -> str:
    try:
        picture = decode(data, max_pixels=_MOST_PIXELS)
    except BadPicture as error:
        return "too large" if error.too_large else "refused"
    try:
        read(picture)
    except UnreadablePicture:
        return "unreadable"
    return "read"


def _feed_drawn(drawn: _Draw, feed: Callable[[bytes], None]) -> None:
    @settings(
        max_examples=_DRAWN,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn)
    def feed_one(data: bytes) -> None:
        feed(data)

    feed_one()


def _fields(kind: type[Any]) -> st.SearchStrategy[str]:
    return st.sampled_from([*kind.model_fields, "text", "x"])


def _assert_distribution(numbers: dict[str, float], actions: tuple[str, ...]) -> None:
    assert tuple(numbers) == actions
    assert all(0 <= p <= 1 for p in numbers.values())
    assert math.isclose(sum(numbers.values()), 1, abs_tol=1e-6)


def _packed(value: float) -> bytes:
    return struct.pack(">d", value)


def _unpacked(data: bytes) -> float:
    (value,) = struct.unpack(">d", data.ljust(8, b"\0"))
    return float(value)


def _rss_mib() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20
