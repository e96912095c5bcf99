"""The worked examples of the prompt set `minigrid` describe their pictures and agree with the planner."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gridworld.pictures import read
from gridworld.planner import plan
from gridworld.tasks import TASKS
from gridworld.views import HEADINGS, STEPS, View, code
from teacher_server.prompting.prompt_set import SETS, load_prompt_set, prompt_set_names

pytestmark = pytest.mark.unit

_EXAMPLES = sorted(SETS.glob("minigrid/examples/*/*.json"))


def _example(file: Path) -> tuple[dict[str, Any], View]:
    with Image.open(file.with_suffix(".png")) as image:
        return json.loads(file.read_text()), read(np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("file", _EXAMPLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_an_example_is_what_its_picture_shows(file: Path) -> None:
    told, view = _example(file)
    analysis, task = told["analysis"], file.parent.name
    agent, target = analysis["agent"], analysis["target"]
    assert (agent["row"], agent["column"]) == (view.y, view.x)
    assert agent["heading"] == HEADINGS[view.heading]

    def shown(row: int, column: int) -> int:
        return int(view.cells_HW[row, column])

    def cell(words: str) -> int:
        colour, kind = {
            "green goal square": ("green", "goal"),
            "lava": ("red", "lava"),
            "wall": ("grey", "wall"),
        }.get(words, tuple(words.split()))
        return code("empty") if words == "free floor" else code(kind, colour, int(kind == "door"))

    assert shown(target["row"], target["column"]) == cell(target["name"])
    if task in ("fetch", "go_to_door"):
        assert told["mission"].endswith(target["name"])
    x, y = view.front
    assert shown(y, x) == cell(analysis["front"])
    kinds = {
        "lava_gap": {cell("lava")},
        "dynamic_obstacles": {cell("blue ball")},
        "fetch": {
            code(kind, c)
            for kind in ("key", "ball")
            for c in ("red", "green", "blue", "purple", "yellow", "grey")
        },
        "go_to_door": {code("door", c, 1) for c in ("red", "green", "blue", "purple", "yellow", "grey")},
    }[task] - {cell(target["name"])}
    found = [[y, x] for y, row in enumerate(view.cells_HW.tolist()) for x, c in enumerate(row) if c in kinds]
    assert analysis["hazards"] == found

    # Rotate the grid until the agent faces up: ahead is then up, and right is right
    dx, dy = target["column"] - view.x, target["row"] - view.y
    for _ in range((HEADINGS.index("up") - view.heading) % 4):
        dx, dy = -dy, dx
    words = [
        word
        for word, there in (("ahead", dy < 0), ("behind", dy > 0), ("left", dx < 0), ("right", dx > 0))
        if there
    ]
    assert analysis["direction"] == "-".join(words)


@pytest.mark.parametrize("file", _EXAMPLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_an_example_does_what_the_planner_would(file: Path) -> None:
    told, view = _example(file)
    task = file.parent.name
    planned = plan(view, task, told["mission"], TASKS[task].useful).probabilities
    best = max(planned, key=lambda action: planned[action])
    assert max(told["probabilities"], key=lambda action: told["probabilities"][action]) == best
    assert told["probabilities"] == pytest.approx(planned, abs=1e-4)
    # The reasoning ends with that action, and its sides are correct
    reasoning = told["analysis"]["reasoning"]
    ending = {"pickup": "pick it up", "done": "say done", "forward": "go forward"}.get(best, f"turn {best}")
    assert reasoning.endswith(f"I {ending}.")
    if sides := re.search(r"I face (\w+), so the picture's (\w+) is on my (\w+)", reasoning):
        facing, side, turn = sides.groups()
        assert (HEADINGS.index(facing) + (1 if turn == "right" else -1)) % 4 == HEADINGS.index(side)
        assert facing == HEADINGS[view.heading]
        assert turn == best


@pytest.mark.parametrize("task", TASKS)
def test_every_useful_action_has_an_example(task: str) -> None:
    examples = load_prompt_set("minigrid").examples[task]
    assert {example.best() for example in examples} == set(TASKS[task].useful)
    assert {"down", "left"} <= {example.analysis["agent"]["heading"] for example in examples}


def test_what_goes_wrong_is_among_the_examples() -> None:
    told = {task: [json.loads(f.read_text()) for f in _EXAMPLES if f.parent.name == task] for task in TASKS}
    fronts = {task: [e["analysis"]["front"] for e in examples] for task, examples in told.items()}
    assert {"lava", "wall", "free floor", "green goal square"} <= set(fronts["lava_gap"])
    assert {"blue ball", "wall", "free floor", "green goal square"} <= set(fronts["dynamic_obstacles"])
    pairs = [(e["analysis"]["front"].split(), e["analysis"]["target"]["name"].split()) for e in told["fetch"]]
    assert any(front[0] == target[0] and front[1] != target[1] for front, target in pairs)
    assert any(front[0] != target[0] and front[1] == target[1] for front, target in pairs)
    beside = [
        (list(cell) in e["analysis"]["hazards"], max(e["probabilities"], key=e["probabilities"].get))
        for e in told["go_to_door"]
        for dx, dy in STEPS
        for cell in [(e["analysis"]["agent"]["row"] + dy, e["analysis"]["agent"]["column"] + dx)]
    ]
    assert any(is_other and action != "done" for is_other, action in beside)


def test_the_analysis_of_every_example_can_be_generated() -> None:
    xgrammar = pytest.importorskip("xgrammar")
    letters = [bytes([i]) for i in range(256)]
    vocabulary = xgrammar.TokenizerInfo(
        [*letters, b"<end>"], vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[256]
    )
    compiler = xgrammar.GrammarCompiler(vocabulary)
    for prompts in map(load_prompt_set, prompt_set_names()):
        grammar = compiler.compile_json_schema(
            json.dumps(prompts.schema), any_whitespace=False, separators=(", ", ": ")
        )
        for example in [e for examples in prompts.examples.values() for e in examples]:
            matcher = xgrammar.GrammarMatcher(grammar)
            assert matcher.accept_string(json.dumps(example.analysis))
            assert matcher.accept_token(256)
