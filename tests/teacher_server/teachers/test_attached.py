"""A teacher attached to a server that gives real vLLM's recorded replies, and to servers that offer less.

They are of vLLM 0.32.0 with a checkpoint of random weights; tests/operate/test_attach.py asks a real one.
"""

import asyncio
import json
import math
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, Question
from teacher_server.engines.base import EngineError
from teacher_server.engines.openai.features import ServerFeatures
from teacher_server.engines.openai.replies import Reply, Token
from teacher_server.engines.openai.sessions import MessageSessionFactory, among_most_probable
from teacher_server.pictures.decoding import decode, from_base64
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_server.prompting.readout import Unreadable, with_upper_bounds
from teacher_server.settings import Settings
from teacher_server.teachers.base import CannotAnswer, Observation, UnreadableAnswer
from teacher_server.teachers.registry import CannotTeach, choose_teacher
from tests.conftest import StartTeacher
from tests.http_servers import Asked, http_server
from tests.waiting import LONG_S, wait_for, wait_until_ready

pytestmark = pytest.mark.integration

_TEACHER = str(Path(sys.executable).with_name("teacher"))
_RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded" / "vllm-0.32.0.json").read_text())
_QUESTION: dict[str, Any] = _RECORDED["question"]
_SHOWN = Reply.model_validate(_RECORDED["most probable"]).first_step


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_server.teachers.registry.load_prompt_set", _prompt_set)


_prompt_set = lru_cache(load_prompt_set)


@dataclass
class _Server:
    """Replies as vLLM did, without the features in `lacks`."""

    lacks: set[str] = field(default_factory=set)
    tokens: dict[str, Any] = field(default_factory=lambda: dict(_RECORDED["tokens"]))

    def __call__(self, asked: Asked) -> tuple[int, Any]:
        if asked.path == "/v1/models":
            return 200, _RECORDED["models"]
        if asked.path == "/version" and "version" not in self.lacks:
            return 200, _RECORDED["version"]
        if asked.path == "/tokenize" and "tokenize" not in self.lacks:
            return 200, self.tokens[asked.body["prompt"]]
        if asked.path == "/v1/chat/completions":
            return self._complete(asked.body)
        return 404, {"detail": "Not Found"}

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        held = "structured_outputs" in body or "response_format" in body
        for name in (
            "messages",
            "top_k",
            "structured_outputs",
            "response_format",
            "logprob_token_ids",
            "logprobs",
        ):
            if name in body and f"refuses {name}" in self.lacks:
                return 400, _RECORDED["refused"]
        about_a_picture = "image_url" in json.dumps(body["messages"])
        reports = body.get("logprobs") and "logprobs" not in self.lacks
        if reports and body["max_tokens"] == 1:
            by_id = "logprob_token_ids" in body and "logprob_token_ids" not in self.lacks
            if not about_a_picture:
                return 200, _RECORDED["labels by id" if by_id else "most probable"]
            return 200, _RECORDED["actions by id" if by_id else "most probable"]
        name = "grammar" if held and "constraint" not in self.lacks else "small talk"
        reply = _RECORDED["analysis" if about_a_picture else name]
        return 200, _with_logprobs(reply) if reports else reply


def _with_logprobs(reply: dict[str, Any]) -> dict[str, Any]:
    """Returns a reply with log-probabilities of three tokens, the least of which is -1.5."""
    logprobs = {"content": [{"logprob": logprob} for logprob in (0.0, -1.5, -0.25)]}
    return {**reply, "choices": [{**reply["choices"][0], "logprobs": logprobs}]}


def _settings(url: str, prompts: str = "minigrid", **changes: Any) -> Settings:
    told = {"teacher": "prompted", "engine": "openai", "openai_url": f"{url}/v1", "openai_model": "tiny"}
    return Settings(**told | {"prompts": prompts, "min_label_mass": 0.0} | changes)


def _observation(**changes: Any) -> Observation:
    picture = decode(from_base64(_QUESTION["image"]), max_pixels=10**8)
    told = {name: _QUESTION[name] for name in ("mission", "task")} | {"actions": tuple(_QUESTION["actions"])}
    return Observation(**{"picture": picture, **told, **changes})


def _ask(settings: Settings, **changes: Any) -> Any:
    teacher = choose_teacher(settings)

    async def ask() -> Any:
        await teacher.start()
        try:
            return await teacher.answer(_observation(**changes))
        finally:
            await teacher.close()

    return asyncio.run(ask())


def _scores() -> dict[str, float]:
    """Returns action -> score, as vLLM returned it by token id."""
    labels = _prompt_set("minigrid").labels
    (step,) = _RECORDED["actions by id"]["choices"][0]["logprobs"]["content"]
    of_token = {entry["token"]: entry["logprob"] for entry in step["top_logprobs"]}
    ids = {action: _RECORDED["tokens"][labels[action]]["tokens"][0] for action in _QUESTION["actions"]}
    return {action: of_token[f"token_id:{token_id}"] for action, token_id in ids.items()}


def test_labels_are_read_by_their_tokens() -> None:
    with http_server(_Server()) as server:
        answer = _ask(_settings(server.url))
    weights = {action: math.exp(score) for action, score in _scores().items()}
    total = sum(weights.values())
    assert answer.probabilities == pytest.approx({action: w / total for action, w in weights.items()})
    assert answer.action.label_mass == pytest.approx(total)
    said = _RECORDED["analysis"]
    assert answer.analysis.text == said["choices"][0]["message"]["content"]
    assert answer.analysis.tokens == said["usage"]["completion_tokens"]
    assert answer.analysis.certainty == pytest.approx(math.exp(-1.5))
    assert answer.confidence == pytest.approx(math.exp(-1.5) * total)


def test_what_is_said_to_the_server() -> None:
    with http_server(_Server()) as server:
        answer = _ask(_settings(server.url))
    first, second = (asked.body for asked in server.asked[-2:])
    prompts = _prompt_set("minigrid")
    conversation = prompts.conversation(
        task=_QUESTION["task"],
        mission=_QUESTION["mission"],
        actions=_QUESTION["actions"],
        readout="labels",
    )
    pictures = [*conversation.pictures, prompts.preparation.prepare(_observation().picture)]
    expected = [*conversation.opening, conversation.question]
    assert [message["role"] for message in first["messages"]] == [message["role"] for message in expected]
    for said, meant in zip(first["messages"], expected, strict=True):
        for part, original in zip(said["content"], meant["content"], strict=True):
            if original["type"] == "text":
                assert part == original
            else:
                assert part["type"] == "image_url"
                url = part["image_url"]["url"].removeprefix("data:image/png;base64,")
                shown = decode(from_base64(url), max_pixels=10**8)
                assert shown.tobytes() == pictures.pop(0).image.tobytes()
    assert pictures == []
    answered = {"role": "assistant", "content": [{"type": "text", "text": answer.analysis.text}]}
    assert second["messages"] == [*first["messages"], answered, conversation.followup]
    neutral = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    for body in (first, second):
        assert neutral.items() <= body.items()
        assert "seed" not in body
    assert first["max_tokens"] == prompts.analysis_max_tokens
    assert "root ::=" in first["structured_outputs"]["grammar"]
    assert second["max_tokens"] == 1
    assert "structured_outputs" not in second


def test_pictures_fit_the_models_visual_tokens() -> None:
    with http_server(_Server()) as server:
        settings = _settings(server.url, openai_token_side=32)
        _ask(settings)
        asked = server.asked[-1].body["messages"][-3]["content"]
        url = next(part["image_url"]["url"] for part in asked if part["type"] == "image_url")
        url = url.removeprefix("data:image/png;base64,")
        shown = decode(from_base64(url), max_pixels=10**8)
        assert choose_teacher(settings).description["checkpoint"]["token_side"] == 32
    assert shown.shape[0] % 32 == shown.shape[1] % 32 == 0
    assert not np.array_equal(
        shown, _prompt_set("minigrid").preparation.prepare(_observation().picture).image
    )


def _checkpoint(server: _Server, **changes: Any) -> dict[str, Any]:
    with http_server(server) as served:
        told: dict[str, Any] = choose_teacher(_settings(served.url, **changes)).description["checkpoint"]
    return told


@pytest.mark.parametrize(
    ("lacks", "changed"),
    [
        (set(), {}),
        ({"refuses top_k"}, {"own_sampling": True}),
        ({"refuses structured_outputs"}, {"constraint": "json_schema"}),
        ({"refuses structured_outputs", "refuses response_format"}, {"constraint": None}),
        ({"constraint"}, {"constraint": None}),
        ({"tokenize"}, {"label_scores": "of the 20 most probable tokens"}),
        ({"refuses logprob_token_ids"}, {"label_scores": "of the 20 most probable tokens"}),
        ({"logprob_token_ids"}, {"label_scores": "of the 20 most probable tokens"}),
    ],
)
def test_what_a_server_offers_is_tried_and_told(lacks: set[str], changed: dict[str, Any]) -> None:
    all_of_it = {"constraint": "grammar", "own_sampling": False, "label_scores": "all"}
    told = _checkpoint(_Server(lacks))
    told_of_itself = {"model": "tiny", "root": "/models/tiny", "max_model_len": 16384, "owned_by": "vllm"}
    assert told.pop("attached") == {**told_of_itself, "version": "0.32.0"}
    assert told == all_of_it | changed


@pytest.mark.parametrize("lacks", [{"logprobs"}, {"refuses logprobs"}])
def test_a_server_without_log_probabilities_is_good_for_numbers(lacks: set[str]) -> None:
    with pytest.raises(CannotTeach, match=r"returns no log-probabilities .* or set `readout` to numbers"):
        _checkpoint(_Server(lacks))
    assert "label_scores" not in _checkpoint(_Server(lacks), readout="numbers")


def test_a_server_that_refuses_whatever_it_is_asked() -> None:
    with pytest.raises(CannotTeach, match="refused: 400: Requested sample logprobs of 21"):
        _checkpoint(_Server({"refuses messages"}), readout="numbers")


def test_labels_of_several_tokens_are_refused() -> None:
    server = _Server()
    server.tokens["left"] = server.tokens["onwards"]
    with pytest.raises(CannotTeach, match=r"the label 'left' of left is \d tokens of tiny"):
        _checkpoint(server)
    assert _checkpoint(server, readout="numbers")


def test_labels_among_the_most_probable_tokens() -> None:
    labels = {action: _prompt_set("minigrid").labels[action] for action in _QUESTION["actions"]}
    told, exact = among_most_probable(_SHOWN, labels), _scores()
    assert told.known
    assert told.at_most
    assert told.known.keys() | told.at_most.keys() == exact.keys()
    for action, score in told.known.items():
        assert score == pytest.approx(exact[action], abs=1e-3)
    for action, most in told.at_most.items():
        assert exact[action] <= most


def _tokens(**scores: float) -> list[Token]:
    return [Token(token=token, logprob=score) for token, score in scores.items()]


def test_a_label_that_is_not_shown_may_be_as_probable_as_the_least_that_is() -> None:
    shown = _tokens(left=-0.01, forward=-4.0, x=-9.0)
    told = among_most_probable(shown, {"left": "left", "right": "right"})
    assert (told.known, told.at_most) == ({"left": -0.01}, {"right": -9.0})
    assert with_upper_bounds(told.known, told.at_most) == {"left": -0.01, "right": -9.0}


def test_a_label_of_several_tokens_may_be_as_probable_as_its_beginning() -> None:
    told = among_most_probable(
        _tokens(left=math.log(0.5), tog=math.log(0.4), x=math.log(0.1)), {"toggle": "toggle"}
    )
    assert told.at_most == pytest.approx({"toggle": math.log(0.5)})
    told = among_most_probable(
        _tokens(left=math.log(0.6), tog=math.log(0.4)), {"left": "left", "toggle": "toggle"}
    )
    with pytest.raises(Unreadable, match="the labels of toggle are unlisted") as caught:
        with_upper_bounds(told.known, told.at_most)
    assert caught.value.fault == "untold"


def test_what_a_list_was_filled_up_with_is_no_score() -> None:
    # vLLM's reply to a request that was computed together with one for named tokens
    told = among_most_probable(_tokens(left=-0.7, **{"!": -9999.0}), {"left": "left", "right": "right"})
    assert told.at_most == {"right": -0.7}
    with pytest.raises(EngineError, match="no log-probabilities"):
        among_most_probable(_tokens(x=-9999.0), {"left": "left"})


def test_none_of_the_labels_is_shown() -> None:
    told = among_most_probable(_tokens(x=-0.1, y=-3.0), {"left": "left"})
    with pytest.raises(Unreadable, match="the labels of left are unlisted"):
        with_upper_bounds(told.known, told.at_most)


def test_too_much_that_is_not_shown_is_unreadable() -> None:
    with http_server(_Server({"tokenize"})) as server, pytest.raises(UnreadableAnswer) as caught:
        _ask(_settings(server.url))
    assert (caught.value.stage, caught.value.fault) == ("action", "untold")


@pytest.mark.parametrize("mark", ["<|im_end|>", "<image>", "</s>", "[INST]", "[/INST]"])
def test_a_mission_cannot_hold_marks_of_chat_templates(mark: str) -> None:
    with (
        http_server(_Server()) as server,
        pytest.raises(CannotAnswer, match="a control token of the model") as caught,
    ):
        _ask(_settings(server.url), mission=f"get a key{mark} ball")
    assert caught.value.field == "mission"


def test_equal_questions_have_equal_keys(tmp_path: Path) -> None:
    prompts = _prompt_set("minigrid")
    sessions = MessageSessionFactory(
        None,  # type: ignore[arg-type]  # nothing is asked
        ServerFeatures(neutral=False, constraint=None, pieces=None, by_id=False, top=0),
        prompts.labels,
    )

    def key(mission: str) -> str:
        conversation = prompts.conversation(
            task="fetch", mission=mission, actions=("left", "right"), readout="labels"
        )
        picture = prompts.preparation.prepare(_observation().picture)
        return sessions.prepare(conversation).session(picture).key

    assert key("get a ball") == key("get a ball") != key("get a key")


def test_served_over_http(teacher_process: StartTeacher, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    with http_server(_Server()) as server:
        flags = ("--openai-url", f"{server.url}/v1", "--openai-model", "tiny", "--openai-key-file", str(key))
        teacher = teacher_process(
            "--teacher", "prompted", "--engine", "openai", *flags, "--min-label-mass", "0"
        )
        wait_until_ready(teacher)
        assert all(asked.headers["authorization"] == "Bearer secret" for asked in server.asked)
        reply = httpx.post(f"{teacher.url}/policy", json=_QUESTION, timeout=LONG_S)
        assert reply.status_code == 200
        told = httpx.get(f"{teacher.url}/teacher").json()
        assert told["hosting"]["server"] == f"{server.url}/v1"
        assert "secret" not in json.dumps(told)
        working, server.answer = server.answer, lambda _: None
        other = {**_QUESTION, "mission": "get a grey key"}
        reply = httpx.post(f"{teacher.url}/policy", json=other, timeout=LONG_S)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert reply.json()["error"]["reason"].startswith("analysis: the connection to http://127.0.0.1")
        assert httpx.post(f"{teacher.url}/policy", json=_QUESTION, timeout=LONG_S).json()["stored"]
        # The client retries, and gets its answer when the server is back
        asked = len(server.asked)
        with TeacherClient(teacher.url) as client, ThreadPoolExecutor() as pool:
            asking = pool.submit(client.ask_batch, [Question(**other)])
            wait_for(lambda: len(server.asked) > asked, "a question that is lost")
            server.answer = working
            assert isinstance(asking.result(LONG_S)[0], Answer)
    assert teacher.process.poll() is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"openai_model": None}, "needs `openai_url` http://HOST:PORT/v1 and `openai_model` NAME"),
        ({"model": Path("here")}, "omit `model`"),
        ({"openai_url": "http://8.8.8.8/v1"}, "8.8.8.8 is not on the local network"),
        ({"openai_url": "localhost:8000"}, "is not the address"),
        ({"openai_model": "other"}, "does not serve 'other'; set `openai_model` to one of: tiny"),
        (
            {"openai_url": "{}"},
            "refused: 404: Not Found; its API is at another address: set `openai_url` to http://127.0.0.1:",
        ),
        (
            {"openai_url": "{}/version"},
            "its API is at another address: set `openai_url` to http://127.0.0.1:",
        ),
    ],
)
def test_what_cannot_be_attached_to(changes: dict[str, Any], said: str) -> None:
    with http_server(_Server()) as server:
        if url := changes.get("openai_url"):
            changes = {"openai_url": url.format(server.url)}
        with pytest.raises(CannotTeach, match=re.escape(said)):
            choose_teacher(_settings(server.url, **changes))


def test_a_server_that_is_not_there_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    command = [_TEACHER, "serve", "--teacher", "prompted", "--engine", "openai", "--port", "0"]
    command += ["--store", "none", "--openai-url", url, "--openai-model", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"teacher serve: error: --engine openai: nothing answers at {url}")
