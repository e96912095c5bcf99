"""A teacher attached to stock `vllm serve`, beside our own engine with the same checkpoint."""

import asyncio
import importlib.metadata
import importlib.util
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import httpx
import pytest

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, ErrorBody, Question
from teacher_server.checkpoints.checkpoint import Checkpoint
from teacher_server.engines.base import Decoding
from teacher_server.engines.openai.features import find_features
from teacher_server.engines.openai.server import ChatServer
from teacher_server.engines.openai.sessions import (
    MessageActionStage,
    MessageSessionFactory,
    data_url,
    with_pictures,
)
from teacher_server.engines.sessions import LabelScores
from teacher_server.engines.token_sessions import TokenSessionFactory
from teacher_server.pictures.decoding import decode, from_base64
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import Conversation, PromptSet, load_prompt_set
from teacher_server.prompting.readout import from_label_scores
from teacher_server.settings import EngineSettings
from teacher_tools.bench.questions import distinct_questions
from tests.conftest import TeacherProcess, started_teachers
from tests.engines import ENDLESS, checkpoint_with_habits
from tests.waiting import LONG_S, wait_for, wait_until_ready
from tools.random_checkpoint import shortened
from tools.stock_vllm import StockServer

pytestmark = [
    pytest.mark.operate,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-operate"),
]

_MODEL = "tiny"


@dataclass(frozen=True)
class _Room:
    """A checkpoint, a prompt set, the server, and an event loop for this process."""

    checkpoint: Checkpoint
    prompts: PromptSet
    server: StockServer
    runner: asyncio.Runner

    def conversation(self, question: Question) -> Conversation:
        return self.prompts.conversation(
            task=question.task, mission=question.mission, actions=question.actions, readout="labels"
        )

    def picture(self, question: Question) -> PreparedPicture:
        return self.prompts.preparation.prepare(decode(from_base64(question.image), max_pixels=10**8))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Room]:
    """A stock server whose own sampling settings would spoil every answer if they had an effect."""
    checkpoint = checkpoint_with_habits(tmp_path_factory.mktemp("checkpoint") / "tiny")
    short = shortened(load_prompt_set("minigrid"), tmp_path_factory.mktemp("prompts") / "short")
    prompts = load_prompt_set(str(short))
    log = tmp_path_factory.mktemp("stock") / "log.txt"
    server = StockServer(checkpoint.folder, log, "--served-model-name", _MODEL)
    try:
        with asyncio.Runner() as runner:
            server.wait()
            yield _Room(checkpoint, prompts, server, runner)
    finally:
        server.kill()


@pytest.fixture(scope="module")
def sessions(room: _Room) -> Iterator[MessageSessionFactory]:
    """A session factory over the server."""
    server = ChatServer(room.server.url, _MODEL)

    async def attached() -> MessageSessionFactory:
        await server.start()
        return MessageSessionFactory(
            server, await find_features(server, room.prompts.labels), room.prompts.labels
        )

    yield room.runner.run(attached())
    room.runner.run(server.close())


@pytest.fixture
def attached(room: _Room, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherProcess]:
    """An attached teacher that reads labels."""
    with started_teachers(tmp_path_factory) as start:
        teacher = start(*_flags(room), "--min-label-mass", "0")
        wait_until_ready(teacher, 1800)
        yield teacher


def _flags(room: _Room) -> tuple[str, ...]:
    server = ("--openai-url", room.server.url, "--openai-model", _MODEL)
    flags = ("--prompts", str(room.prompts.folder), "--timeout-s", "600")
    return ("--teacher", "prompted", "--engine", "openai", *server, *flags)


def _ask(teacher: TeacherProcess, questions: list[Question]) -> list[Answer | ErrorBody]:
    with TeacherClient(teacher.url, deadline_s=600, batch_size=16) as client:
        return list(client.ask_batch(questions))


def test_the_features_of_vllm_are_found(sessions: MessageSessionFactory, room: _Room) -> None:
    features = sessions.features
    assert (features.neutral, features.constraint, features.by_id) == (True, "grammar", True)
    described = room.runner.run(sessions.server.describe())
    assert described["root"] == str(room.checkpoint.folder)
    assert described["version"] == importlib.metadata.version("vllm").split("+")[0]


def test_the_server_writes_the_same_tokens_as_we_do(sessions: MessageSessionFactory, room: _Room) -> None:
    chat = room.checkpoint.chat_format
    analysis = '{"agent": {"row": 1, "column": 2, "heading": "up"}, "reasoning": "The lava is ahead."}'
    for question in distinct_questions(8, seed=1):
        conversation, picture = room.conversation(question), room.picture(question)
        opening, followup = chat.stages(conversation)
        said = room.checkpoint.tokenizer.encode(analysis, add_special_tokens=False).ids
        urls = iter([data_url(each) for each in (*conversation.pictures, picture)])
        first = [with_pictures(each, urls) for each in (*conversation.opening, conversation.question)]
        answer = {"role": "assistant", "content": [{"type": "text", "text": analysis}]}
        assert _written(room, first) == list(opening)
        assert _written(room, [*first, answer, conversation.followup]) == [*opening, *said, *followup]


def _written(room: _Room, messages: list[dict[str, object]]) -> list[int]:
    """Returns the server's prompt of a conversation, with one token for each picture."""
    body = {"model": _MODEL, "messages": messages, "max_tokens": 1, "return_token_ids": True}
    reply = httpx.post(f"{room.server.url}/chat/completions", json=body, timeout=LONG_S).json()
    picture = room.checkpoint.image_token_id
    runs = itertools.groupby(reply["prompt_token_ids"])
    return [token for token, run in runs for _ in ([token] if token == picture else run)]


def test_label_probabilities_agree_with_our_engine(attached: TeacherProcess, room: _Room) -> None:
    questions = distinct_questions(40, seed=5)
    answers = _ask(attached, questions)
    expected = room.runner.run(_by_our_engine(room, questions, answers))
    answered, differences, same = 0, [], 0
    for answer, (probabilities, analysis) in zip(answers, expected, strict=True):
        if isinstance(answer, Answer):
            assert answer.probabilities is not None
            answered += 1
            same += answer.analysis == analysis
            differences += [abs(p - probabilities[a]) for a, p in answer.probabilities.items()]
    print(
        f"\n{answered} of {len(questions)} answered, {same} with our engine's analysis to the letter;"
        f" largest difference of a probability, given the analysis: {max(differences):.2e}"
    )
    assert answered > len(questions) / 2
    assert same > answered / 2
    assert max(differences) < 0.01


async def _by_our_engine(
    room: _Room, questions: list[Question], answers: list[Answer | ErrorBody]
) -> list[tuple[dict[str, float], str]]:
    """Returns our engine's probabilities after the answers' analyses, and its own analyses."""
    from teacher_server.engines.vllm.engine import VllmEngine  # noqa: PLC0415  (not everywhere)

    tokenizer = room.checkpoint.tokenizer
    settings = EngineSettings(dtype="float32", eager=True, kv_cache_gib=1, max_model_len=16384)
    engine = VllmEngine(room.checkpoint, settings, pictures=6, max_pixels=1120 * 1120)
    label_ids = {action: tokenizer.encode(label).ids[0] for action, label in room.prompts.labels.items()}
    sessions = TokenSessionFactory(engine, room.checkpoint.chat_format, label_ids)
    decoding = Decoding(room.prompts.analysis_max_tokens, room.prompts.schema)

    async def one(question: Question, answer: Answer | ErrorBody) -> tuple[dict[str, float], str]:
        prepared = sessions.prepare(room.conversation(question))
        prompt = prepared.session(room.picture(question)).prompt
        own = await engine.generate(prompt, decoding)
        text = answer.analysis if isinstance(answer, Answer) else own.text
        said = tokenizer.encode(text, add_special_tokens=False).ids
        ids = [label_ids[action] for action in question.actions]
        scores = await engine.score(prompt.then((*said, *prepared.followup)), ids)
        by_action = dict(zip(question.actions, scores, strict=True))
        return from_label_scores(by_action, temperature=1, min_mass=0)[0], own.text

    await engine.start()
    try:
        return await asyncio.gather(*map(one, questions, answers))
    finally:
        await engine.close()


def test_the_most_probable_tokens_alone_say_nothing_wrong(
    sessions: MessageSessionFactory, room: _Room
) -> None:
    limited = replace(sessions, features=replace(sessions.features, by_id=False, top=20))
    decoding = Decoding(room.prompts.analysis_max_tokens, room.prompts.schema)
    questions = distinct_questions(24, seed=6)

    async def exactly(question: Question) -> tuple[MessageActionStage, dict[str, float]]:
        interview = sessions.prepare(room.conversation(question)).session(room.picture(question))
        _, followup = await interview.analyse(decoding)
        return followup, (await followup.score(question.actions)).known

    async def as_shown(followup: MessageActionStage, exact: dict[str, float]) -> LabelScores:
        told = await limited.score(followup.messages, list(exact))
        assert told.known.keys() | told.at_most.keys() == exact.keys()
        for action, score in told.known.items():
            assert score == pytest.approx(exact[action], abs=1e-3)
        for action, most in told.at_most.items():
            assert exact[action] <= most + 1e-3
        return told

    async def all_of_them() -> list[LabelScores]:
        known = await asyncio.gather(*map(exactly, questions))
        # Computed together with requests for named tokens, vLLM lists one token only
        beside, _ = await asyncio.gather(
            asyncio.gather(*(as_shown(*one) for one in known)), asyncio.gather(*map(exactly, questions))
        )
        return beside + await asyncio.gather(*(as_shown(*one) for one in known))

    scores = room.runner.run(all_of_them())[len(questions) :]
    known, hidden = sum(len(one.known) for one in scores), sum(len(one.at_most) for one in scores)
    print(f"\n{known} labels among the 20 most probable tokens, {hidden} not")
    assert known > 0
    assert hidden > 0


def test_numbers(room: _Room, tmp_path_factory: pytest.TempPathFactory) -> None:
    with started_teachers(tmp_path_factory) as start:
        teacher = start(*_flags(room), "--readout", "numbers", "--sum-tolerance", "0.5")
        wait_until_ready(teacher, 1800)
        outcomes = _ask(teacher, distinct_questions(40, seed=7))
    answered = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    for outcome in outcomes:
        if isinstance(outcome, Answer):
            assert outcome.probabilities is not None
            assert math.fsum(outcome.probabilities.values()) == pytest.approx(1)
        else:
            assert outcome.status == 502
            assert outcome.raw
    print(f"\n{len(answered)} of {len(outcomes)} answered")
    assert answered


def test_cancelling_frees_the_server(sessions: MessageSessionFactory, room: _Room) -> None:
    async def ask_and_leave() -> None:
        messages = [{"role": "user", "content": "Write."}]
        decoding = replace(ENDLESS, max_tokens=15_000)
        asking = [asyncio.create_task(sessions.write(messages, decoding)) for _ in range(8)]

        def running() -> float:
            return room.server.metric("vllm:num_requests_running")

        await asyncio.to_thread(wait_for, lambda: running() == 8, "eight requests")
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        left = time.monotonic()
        await asyncio.to_thread(wait_for, lambda: running() == 0, "none", 30)
        print(f"\nnone of 8 requests left {time.monotonic() - left:.2f} s after they were cancelled")

    room.runner.run(ask_and_leave())


def test_a_server_that_goes_and_comes_back(attached: TeacherProcess, room: _Room) -> None:
    before, meanwhile, after = distinct_questions(3, seed=8)
    (answer,) = _ask(attached, [before])
    assert isinstance(answer, Answer)
    room.server.kill()
    reply = httpx.post(f"{attached.url}/policy", json=meanwhile.model_dump(mode="json"), timeout=LONG_S)
    assert reply.status_code == 503
    assert "nothing answers at" in reply.json()["error"]["reason"]
    (stored,) = _ask(attached, [before])
    assert isinstance(stored, Answer)
    assert stored.stored
    room.server.start()
    room.server.wait()
    again = _ask(attached, [meanwhile, after])
    assert [outcome.teacher for outcome in again if isinstance(outcome, Answer)] == [answer.teacher] * 2
    assert attached.process.poll() is None
