"""The page's routes: scenes, prepared pictures, the planner's answer, edited templates; by real teachers."""

import base64
import io
import random
import re
import sqlite3
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import gymnasium
import httpx
import numpy as np
import pytest
from PIL import Image

from gridworld.pictures import Picture, draw
from gridworld.tasks import ACTIONS, ALL_TASKS
from gridworld.views import view_of
from teacher_api.schemas import Answer, ErrorAnswer, ErrorBody, TrainedGrids, TrainedOn
from teacher_server.playground.scenes import environments_of
from teacher_server.prompting.preparation import Preparation
from teacher_server.prompting.prompt_set import SETS, load_prompt_set
from tests.conftest import AskAbout, TeacherProcess, started_teachers
from tests.waiting import LONG_S, metric, wait_until_ready
from tools.random_checkpoint import make_checkpoint, shortened

pytestmark = pytest.mark.integration

_SMALLEST = {task.key: task.env_ids[0] for task in ALL_TASKS.values()}


@pytest.fixture
def http(shared_teacher: TeacherProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_teacher.url, timeout=LONG_S) as http:
        yield http


def _error(reply: httpx.Response) -> ErrorBody:
    error = ErrorAnswer.model_validate_json(reply.content).error
    assert reply.status_code == error.status
    return error


def _pixels(image: str) -> Picture:
    with Image.open(io.BytesIO(base64.b64decode(image))) as picture:
        return np.asarray(picture.convert("RGB"))


def _png(pixels: Picture) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# The page itself


def test_the_page_comes_whole_and_from_here_alone(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    (own,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert f"'sha256-{b64encode(sha256(own.encode()).digest()).decode()}'" in policy
    rest = page.text.replace(own, "").replace("<script></script>", "")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", rest)
    asked = [name for name in re.findall(r'(?:src|href)="([^"]+)"', page.text) if name != "docs"]
    assert {"page/playground.js", "page/playground.css", "page/icon.svg"} <= set(asked)
    seen: set[str] = set()
    while asked:
        name = asked.pop()
        reply = http.get(f"/{name}")
        assert reply.status_code == 200, name
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|//cdn|innerHTML|\beval\b", reply.text), name
        seen.add(name)
        imported = re.findall(r'from "\./([^"]+)"', reply.text)
        asked += [f"page/{module}" for module in imported if f"page/{module}" not in seen]
    files = {f"page/{path.name}" for path in Path("teacher_server/playground/page").iterdir()}
    assert seen == files - {"page/index.html"}


# Scenes


def test_the_tasks_are_the_teachers(http: httpx.Client) -> None:
    tasks = http.get("/playground/tasks").json()
    assert {task: told["actions"] for task, told in tasks.items()} == http.get("/teacher").json()["tasks"]
    assert tasks["fetch"]["env_ids"] == list(ALL_TASKS["fetch"].env_ids)
    for task, told in tasks.items():
        assert told["first"] == ALL_TASKS[task].env_id  # what compact checkpoints are taught
        scenes = [{"env_id": told["first"], "seed": seed} for seed in range(8)]
        missions = {http.post("/playground/scene", json=scene).json()["mission"] for scene in scenes}
        assert missions == {told["mission"]} or (told["mission"] is None and len(missions) > 1)


_LAVA = {n: f"MiniGrid-LavaGapS{n}-v0" for n in (5, 6, 7)}


@pytest.mark.parametrize(
    ("trained", "first", "untrained"),
    [
        ({_LAVA[6]: 6, _LAVA[7]: 7}, _LAVA[6], {_LAVA[5]}),
        ({_LAVA[7]: 7, _LAVA[5]: 5}, _LAVA[7], {_LAVA[6]}),
        ({"no_such:Module-v0": 8, "MiniGrid-Empty-5x5-v0": 5}, "MiniGrid-Empty-5x5-v0", {_LAVA[6], _LAVA[7]}),
        ({}, _LAVA[6], set(_LAVA.values())),
    ],
)
def test_the_page_begins_where_the_checkpoint_was_trained(
    trained: dict[str, int], first: str, untrained: set[str]
) -> None:
    grids = {env: TrainedGrids(task="lava_gap", sizes=((n, n),)) for env, n in trained.items()}
    grids["MiniGrid-Fetch-5x5-N2-v0"] = TrainedGrids(task="fetch", sizes=((5, 5),))
    record = TrainedOn(prompts="compact", prompts_digest="", environments=grids)
    found = environments_of("lava_gap", {"trained_on": record.model_dump(mode="json")})
    assert (found.first, set(found.untrained)) == (first, untrained)
    assert set(found.env_ids) == {*_LAVA.values(), first}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_scene_is_what_playing_by_hand_comes_to(http: httpx.Client, task: str) -> None:
    rng = random.Random(task)
    env_id = ALL_TASKS[task].env_ids[-1]
    env = gymnasium.make(env_id)
    env.reset(seed=7)
    played: list[str] = []
    total, over = 0.0, False
    while not over and len(played) < 12:
        action = rng.choice(ALL_TASKS[task].useful)
        played.append(action)
        _, reward, terminated, truncated, _ = env.step(ACTIONS.index(action))
        total, over = total + float(reward), terminated or truncated
        scene = http.post("/playground/scene", json={"env_id": env_id, "seed": 7, "actions": played}).json()
        assert np.array_equal(_pixels(scene["image"]), draw(view_of(env)))
        assert scene["mission"] == env.unwrapped.mission  # type: ignore[attr-defined]
        assert (scene["step"], scene["episode_return"]) == (len(played), total)
        assert (scene["end"] is not None) == over
        assert (scene["end"] == "success") == (total > 0)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_the_planners_actions_lead_to_success(http: httpx.Client, task: str) -> None:
    moment: dict[str, Any] = {"env_id": _SMALLEST[task], "seed": 3, "actions": []}
    for _ in range(40):
        scene = http.post("/playground/scene", json=moment).json()
        if scene["end"]:
            break
        question = {"image": scene["image"], "mission": scene["mission"], "task": task}
        question["actions"] = ALL_TASKS[task].useful
        planned = http.post("/playground/planner", json=question).json()
        asked = Answer.model_validate(http.post("/policy", json=question).json())
        assert planned["probabilities"] == asked.probabilities
        assert (planned["action"], planned["analysis"]) == (asked.action, asked.analysis)
        moment["actions"].append(planned["action"])
    assert scene["end"] == "success"
    assert scene["episode_return"] > 0
    error = _error(http.post("/playground/scene", json=moment | {"actions": [*moment["actions"], "left"]}))
    assert (error.status, error.field) == (422, "actions")
    assert f"ended after {scene['step']} actions" in error.reason


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"env_id": "MiniGrid-Nothing-v0"}, "env_id", "unknown environment 'MiniGrid-Nothing-v0'"),
        ({"env_id": "CartPole-v1"}, "env_id", "not a MiniGridEnv"),
        ({"env_id": "antigravity:MiniGrid-LavaGapS5-v0"}, "env_id", "only registered ids"),
        ({"actions": ["jump"]}, "actions", "must be one of MiniGrid's actions"),
        ({"actions": "left"}, "actions", "valid tuple"),
        ({"actions": ["left"] * 4097}, "actions", "at most 4096"),
        ({"actions": ["left"] * 101}, "actions", "the episode ended after 100 actions"),
        (
            {"env_id": "MiniGrid-Dynamic-Obstacles-5x5-v0", "actions": ["done"]},
            "actions",
            "has no action done",
        ),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"steps": 3}, "steps", "no such key"),
    ],
)
def test_a_moment_that_there_cannot_be(
    http: httpx.Client, change: dict[str, Any], field: str, reason: str
) -> None:
    moment = {"env_id": "MiniGrid-LavaGapS5-v0", "seed": 0, "actions": []}
    error = _error(http.post("/playground/scene", json=moment | change))
    assert (error.status, error.field) == (422, field)
    assert reason in error.reason


# Pictures


def test_the_planner_is_shown_the_picture_as_it_comes(http: httpx.Client, ask_about: AskAbout) -> None:
    image = ask_about("MiniGrid-LavaGapS6-v0", tile=16).image
    shown = http.post("/playground/prepared", json={"image": image}).json()
    assert np.array_equal(_pixels(shown["image"]), _pixels(image))
    assert (shown["width"], shown["tokens"]) == (96, None)
    assert shown["grid"] == {"columns": 6, "rows": 6, "margin": False}
    black = _png(np.zeros((50, 70, 3), np.uint8))
    assert http.post("/playground/prepared", json={"image": black}).json()["grid"] is None


def test_a_picture_as_gymnasium_draws_it_is_shown_and_answered_without_its_highlights(
    http: httpx.Client,
) -> None:
    env = gymnasium.make("MiniGrid-LavaGapS6-v0", render_mode="rgb_array")
    env.reset(seed=3)
    scene = http.post("/playground/scene", json={"env_id": "MiniGrid-LavaGapS6-v0", "seed": 3}).json()
    highlighted, plain = _png(env.render()), scene["image"]
    answers = {}
    for image in (highlighted, plain):
        shown = http.post("/playground/prepared", json={"image": image}).json()
        question = {
            "image": image,
            "mission": scene["mission"],
            "task": "lava_gap",
            "actions": ALL_TASKS["lava_gap"].useful,
        }
        planned, asked = (
            http.post(path, json=question).json() for path in ("/playground/planner", "/policy")
        )
        size = shown["grid"]["columns"], shown["grid"]["rows"]
        answers[image] = size, planned["probabilities"], asked["probabilities"]
        assert (_pixels(shown["image"]) == draw(view_of(env.unwrapped), shown["width"] // 6)).all()
    assert answers[highlighted] == answers[plain]


@pytest.mark.parametrize("path", ["/playground/prepared", "/playground/planner"])
def test_a_picture_that_cannot_be_used(http: httpx.Client, ask_about: AskAbout, path: str) -> None:
    rest = {} if path == "/playground/prepared" else ask_about("MiniGrid-LavaGapS5-v0").model_dump()
    huge = _png(np.zeros((1, 4096 * 4096 + 1, 3), np.uint8))
    for image, status, reason in (
        ("?", 422, "not base64"),
        ("aGVsbG8=", 422, "neither"),
        (huge, 413, "at most"),
    ):
        error = _error(http.post(path, json=rest | {"image": image}))
        assert (error.status, error.field) == (status, "image")
        assert reason in error.reason


def test_the_planner_says_what_it_cannot_plan(http: httpx.Client, ask_about: AskAbout) -> None:
    question = ask_about("MiniGrid-LavaGapS5-v0").model_dump()
    for change, field in (({"task": "empty"}, "task"), ({"actions": ["left"]}, "actions")):
        assert _error(http.post("/playground/planner", json=question | change)).field == field


# Templates


def test_a_teacher_without_templates_says_so(http: httpx.Client, ask_about: AskAbout) -> None:
    assert http.get("/playground/prompts").json() == {"name": None, "templates": []}
    question = ask_about("MiniGrid-LavaGapS5-v0").model_dump()
    error = _error(http.post("/playground/ask", json=question | {"templates": {}}))
    assert (error.status, error.field) == (422, "templates")
    assert "has no prompt templates" in error.reason


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "answers.sqlite3"


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[TeacherProcess]:
    """A tiny checkpoint on the transformers engine, whose analyses come to their end."""
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
    prompts = shortened(load_prompt_set("minigrid-zero-shot"), tmp_path_factory.mktemp("prompts") / "short")
    flags = ("--teacher", "prompted", "--engine", "transformers", "--model", str(checkpoint))
    with started_teachers(tmp_path_factory) as start:
        teacher = start(*flags, "--prompts", str(prompts), "--min-label-mass", "0", store=str(store))
        wait_until_ready(teacher)
        yield teacher


def _rows(store: Path) -> int:
    with sqlite3.connect(store) as connection:
        return int(connection.execute("SELECT count(*) FROM answers").fetchone()[0])


def test_edited_templates_make_another_answer_that_is_not_stored(
    prompted: TeacherProcess, store: Path, ask_about: AskAbout
) -> None:
    question = ask_about("MiniGrid-LavaGapS5-v0", tile=28).model_dump()
    with httpx.Client(base_url=prompted.url, timeout=LONG_S) as http:
        told = http.get("/playground/prompts").json()
        sources = {template["name"]: template["source"] for template in told["templates"]}
        folder = SETS / "minigrid-zero-shot"
        assert sources == {name: (folder / name).read_text() for name in sources}
        assert list(sources) == ["system.txt", "question.txt", "action-labels.txt"]

        served = Answer.model_validate(http.post("/policy", json=question).json())
        asked, stored = metric(prompted, "teacher_questions_total"), _rows(store)
        assert (asked, stored) == (1, 1)
        same = http.post("/playground/ask", json=question | {"templates": sources})
        answer = Answer.model_validate(same.json())
        assert answer.teacher == served.teacher
        assert answer.probabilities == pytest.approx(served.probabilities)

        followup = "Choose one of {% for action in actions %}{{ action.label }} {% endfor %}now."
        change = {"templates": {"action-labels.txt": followup}}
        for _ in range(2):
            edited = Answer.model_validate(http.post("/playground/ask", json=question | change).json())
            assert not edited.stored
            assert edited.teacher.startswith("prompted-")
            assert edited.teacher != served.teacher
            assert edited.analysis == served.analysis  # stage 1 was told the same
            assert edited.probabilities != pytest.approx(served.probabilities)
        first = Answer.model_validate(http.post("/policy", json=question).json())
        assert first.stored
        assert first.probabilities == served.probabilities
        assert metric(prompted, "teacher_questions_total", way="asked") == asked
        assert _rows(store) == stored

        state = http.get("/playground/state").json()
        assert state["ready"]
        assert state["identity"] == served.teacher
        figures = {"asked": 1, "stored": 1, "joined": 0, "failed": 0, "pending": 0, "in_flight": 0}
        assert state["figures"] == figures


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("question.txt", "{{ mission", "line 1: unexpected end of template"),
        ("question.txt", "Look: {{ mission }}", "shows the picture 0 times"),
        ("question.txt", "{{ picture }} {{ picture }}", "shows the picture 2 times"),
        ("system.txt", "\n{{ mision }}", "unknown variable 'mision'"),
        ("system.txt", "{{ rules.nothing.there }}", "cannot be filled in"),
        ("system.txt", "{{ rules.__class__ }}", "cannot be filled in"),
        ("system.txt", "<|im_end|>", "looks like a special token"),
        ("system.txt", "\n{{ 'a' * 10 }}", "line 2: 'mul' is not allowed here"),
        ("system.txt", "x" * 32_769, "at most 32768"),
        ("other.txt", "", "no template 'other.txt'"),
    ],
)
def test_a_template_that_cannot_be_used(
    prompted: TeacherProcess, ask_about: AskAbout, name: str, source: str, reason: str
) -> None:
    question = ask_about("MiniGrid-LavaGapS5-v0", tile=28).model_dump() | {"templates": {name: source}}
    error = _error(httpx.post(f"{prompted.url}/playground/ask", json=question, timeout=LONG_S))
    assert error.status == 422
    assert reason in error.reason
    assert error.field == ("templates" if name == "other.txt" else name)
    assert name == "other.txt" or error.reason.startswith(f"{name}: ")


def test_a_conversation_that_is_too_long_is_told(prompted: TeacherProcess, ask_about: AskAbout) -> None:
    question = ask_about("MiniGrid-LavaGapS5-v0", tile=28).model_dump()
    change = {"templates": {"system.txt": "x " * 15_000}}
    error = _error(httpx.post(f"{prompted.url}/playground/ask", json=question | change, timeout=LONG_S))
    assert error.status == 502
    assert "`max_model_len` is 8192" in error.reason


def test_a_bad_question_is_told_as_by_policy(prompted: TeacherProcess, ask_about: AskAbout) -> None:
    question = ask_about("MiniGrid-LavaGapS5-v0").model_dump() | {"templates": {}}
    for change, field in (
        ({"task": "chess"}, "task"),
        ({"image": "?"}, "image"),
        ({"actions": ["fly"]}, "actions"),
    ):
        error = _error(httpx.post(f"{prompted.url}/playground/ask", json=question | change, timeout=LONG_S))
        assert (error.status, error.field) == (422, field)


def test_a_prompted_teacher_shows_the_picture_as_its_model_sees_it(
    prompted: TeacherProcess, ask_about: AskAbout
) -> None:
    image = ask_about("MiniGrid-LavaGapS6-v0", tile=28).image
    shown = httpx.post(f"{prompted.url}/playground/prepared", json={"image": image}, timeout=LONG_S).json()
    prepared = Preparation().prepare(_pixels(image))
    assert np.array_equal(_pixels(shown["image"]), np.asarray(prepared.image))
    assert (shown["width"], shown["height"], shown["tokens"]) == (168, 168, 36)
