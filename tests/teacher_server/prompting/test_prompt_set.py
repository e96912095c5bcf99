"""Prompt sets: each mistake is reported in one line, and conversations have the right form."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gridworld.tasks import ACTIONS, TASKS
from teacher_server.prompting.prompt_set import (
    SETS,
    BadPromptSet,
    Conversation,
    PromptSet,
    load_prompt_set,
)
from teacher_server.settings import Readout

pytestmark = pytest.mark.unit

_NAMES = ("compact", "minigrid", "minigrid-zero-shot")
_MISSIONS = {
    "lava_gap": "avoid the lava and get to the green goal square",
    "dynamic_obstacles": "get to the green goal square",
    "fetch": "go get a grey key",
    "go_to_door": "go to the purple door",
}


@pytest.fixture(scope="module")
def sets() -> dict[str, PromptSet]:
    """Name -> set that comes with the project."""
    return {name: load_prompt_set(name) for name in _NAMES}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of `minigrid` to break."""
    return Path(shutil.copytree(SETS / "minigrid", tmp_path / "mine"))


def _ask(
    prompts: PromptSet, task: str = "fetch", readout: Readout = "labels", **changes: Any
) -> Conversation:
    asked = {"mission": _MISSIONS[task], "actions": prompts.tasks[task]} | changes
    return prompts.conversation(task=task, readout=readout, **asked)


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


# Mistakes in a set


def _replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


def _write(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def _remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def _edit_example(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "examples/fetch/01.json"
        told = json.loads(file.read_text())
        change(told)
        file.write_text(json.dumps(told))

    return edit


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("spoil", "file", "told"),
    [
        (_remove("set.toml"), "set.toml", "is missing"),
        (_write("set.toml", b"tasks = ["), "set.toml", "is not TOML"),
        (_replace("set.toml", "margin = true\n", ""), "set.toml", "picture.margin is missing"),
        (_replace("set.toml", "margin =", "margins ="), "set.toml", "picture.margins: no such key"),
        (_replace("set.toml", 'kind = "labels"', 'kind = "words"'), "set.toml", "not 'words'"),
        (_replace("set.toml", "max_pixels = 1003520", "max_pixels = 9"), "set.toml", "picture.max_pixels"),
        (
            _replace("set.toml", "min_label_mass = 0.5", "min_label_mass = 5"),
            "set.toml",
            "readout.min_label_mass",
        ),
        (
            _replace("set.toml", 'pickup = "pick"\n', ""),
            "set.toml",
            "pickup, an action of tasks/fetch.toml, has no label",
        ),
        (
            _replace("set.toml", 'drop = "drop"', 'drop = "pick"'),
            "set.toml",
            "pickup and drop are both 'pick'",
        ),
        (_replace("set.toml", 'drop = "drop"', 'jump = "drop"'), "set.toml", "no task has an action 'jump'"),
        (
            _replace("set.toml", '["lava_gap"', '["lava"'),
            "set.toml",
            "lists the task 'lava', which has no tasks/lava.toml",
        ),
        (_replace("set.toml", '["lava_gap"', '["Lava Gap"'), "set.toml", "'Lava Gap' is not a task key"),
        (_replace("set.toml", '["lava_gap"', '["../lava_gap"'), "set.toml", "write it in snake_case"),
        (_replace("set.toml", '["lava_gap", ', "["), "tasks/lava_gap.toml", "is not listed; add it to tasks"),
        (_remove("tasks/fetch.toml"), "set.toml", "lists the task 'fetch', which has no tasks/fetch.toml"),
        (_write("tasks/maze.toml", b""), "tasks/maze.toml", "is not listed"),
        (
            _replace("tasks/fetch.toml", "pickup =", "grab ="),
            "set.toml",
            "grab, an action of tasks/fetch.toml, has no label",
        ),
        (
            _replace("tasks/fetch.toml", "pickup =", "Pick ="),
            "tasks/fetch.toml",
            "'Pick' is no action's name",
        ),
        (_replace("tasks/fetch.toml", "rules =", "rule ="), "tasks/fetch.toml", "rules is missing"),
        (_remove("system.txt"), "system.txt", "is missing"),
        (_replace("system.txt", "{{ rules }}", "{{ rule }}"), "system.txt", "unknown variable 'rule'"),
        (
            _replace("system.txt", "{{ rules }}", "{{ mission }}"),
            "system.txt",
            "known variables are actions, rules",
        ),
        (_replace("system.txt", "{{ rules }}", "{{ rules"), "system.txt", "line "),
        (_replace("action-labels.txt", ".meaning", ".sense"), "action-labels.txt", "'sense'"),
        (_replace("action-numbers.txt", "{% endfor %}", ""), "action-numbers.txt", "correct the template"),
        (_replace("question.txt", "{{ picture }}", ""), "question.txt", "shows the picture 0 times"),
        (_replace("question.txt", "{{ picture }}", "{{ picture }} " * 2), "question.txt", "2 times"),
        (_replace("question.txt", "Describe", "<|im_end|> Describe"), "question.txt", "'<|im_end|>'"),
        (_write("question.txt", b"\xff {{ picture }}"), "question.txt", "is not UTF-8 text"),
        (_write("analysis.schema.json", b"{"), "analysis.schema.json", "is not JSON"),
        (_write("analysis.schema.json", b'{"type": "array"}'), "analysis.schema.json", "must be object"),
        (
            _replace("analysis.schema.json", '"maxItems": 12', '"maxItems": "x"'),
            "analysis.schema.json",
            "'x'",
        ),
        (
            _edit_example(lambda e: e["analysis"].pop("front")),
            "examples/fetch/01.json",
            "'front' is a required",
        ),
        (
            _edit_example(lambda e: e["analysis"]["agent"].update(row=99)),
            "examples/fetch/01.json",
            "agent.row: 99",
        ),
        (
            _edit_example(lambda e: e["analysis"].update(agent=e["analysis"].pop("agent"))),
            "examples/fetch/01.json",
            "not in the order of the schema",
        ),
        (
            _edit_example(lambda e: e["probabilities"].pop("left")),
            "examples/fetch/01.json",
            "probabilities names",
        ),
        (
            _edit_example(lambda e: e["probabilities"].update(left=0.9)),
            "examples/fetch/01.json",
            "add up to 1.8",
        ),
        (_edit_example(lambda e: e.pop("mission")), "examples/fetch/01.json", "mission is missing"),
        (_remove("examples/fetch/01.png"), "examples/fetch/01.png", "is missing"),
        (_remove("examples/fetch/01.json"), "examples/fetch/01.png", "has no .json"),
        (_write("examples/fetch/01.png", b"no picture"), "examples/fetch/01.png", "not a readable picture"),
        (
            _write("examples/fetch/01.png", _png(280, 280)[:-40]),
            "examples/fetch/01.png",
            "not a readable picture",
        ),
        (_write("examples/fetch/01.png", _png(37, 41)), "examples/fetch/01.png", "cannot be prepared"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    copied: Path, spoil: Callable[[Path], None], file: str, told: str
) -> None:
    spoil(copied)
    with pytest.raises(BadPromptSet) as caught:
        load_prompt_set(str(copied))
    message = str(caught.value)
    assert message.startswith(f"{copied / file}: ")
    assert told in message
    assert "\n" not in message


def test_an_unknown_set_lists_those_there_are() -> None:
    with pytest.raises(BadPromptSet, match="no prompt set 'mini'; name one of compact, compact-lake, mini"):
        load_prompt_set("mini")


def test_a_template_can_neither_reach_files_nor_python(copied: Path) -> None:
    for attempt in ("{% include 'set.toml' %}", "{{ rules.__class__.__mro__ }}", "{{ actions.append(1) }}"):
        (copied / "system.txt").write_text(attempt)
        with pytest.raises(BadPromptSet, match="cannot be filled in"):
            load_prompt_set(str(copied))


# The digest of a set


def test_the_digest_changes_with_each_file_and_only_then(copied: Path) -> None:
    before = load_prompt_set(str(copied)).digest
    assert before == load_prompt_set("minigrid").digest
    for extra in (
        "README.md",
        "system.txt~",
        "tasks/.fetch.toml.swp",
        "examples/fetch/#01.json#",
        "notes/x.txt",
    ):
        (copied / extra).parent.mkdir(exist_ok=True)
        (copied / extra).write_text("not a part of the set")
    (copied / "examples.toml").write_text("")  # documents how the examples were made
    assert load_prompt_set(str(copied)).digest == before

    parts = [
        path
        for pattern in ("set.toml", "*.txt", "*.schema.json", "tasks/*.toml", "examples/*/*.json")
        for path in copied.glob(pattern)
        if path.name[0] != "."
    ]
    assert len(parts) == 1 + 4 + 1 + 4 + 20
    for part in parts:
        content = part.read_bytes()
        part.write_bytes(content + b"\n")
        assert load_prompt_set(str(copied)).digest != before, part
        part.write_bytes(content)
    picture = copied / "examples/lava_gap/01.png"
    shutil.copy(copied / "examples/lava_gap/02.png", picture)
    assert load_prompt_set(str(copied)).digest != before


# The form of conversations


@pytest.mark.parametrize("name", _NAMES)
def test_a_set_says_what_it_can_do(sets: dict[str, PromptSet], name: str) -> None:
    prompts = sets[name]
    assert prompts.name == name
    assert {task: set(actions) for task, actions in prompts.tasks.items()}.items() >= {
        task.key: set(task.useful) for task in TASKS.values()
    }.items()
    assert set(prompts.labels) == set(ACTIONS)
    assert re.fullmatch("[0-9a-f]{64}", prompts.digest)


@pytest.mark.parametrize("readout", ["labels", "numbers"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", _NAMES)
def test_turns_alternate_and_pictures_match(
    sets: dict[str, PromptSet], name: str, task: str, readout: Readout
) -> None:
    conversation = _ask(sets[name], task, readout)
    turns = [*conversation.opening, conversation.question]
    assert [turn["role"] for turn in turns] == [
        "system",
        *["user", "assistant"] * (len(turns) // 2 - 1),
        "user",
    ]
    shown = [part for turn in conversation.opening for part in turn["content"] if part["type"] == "image"]
    assert len(shown) == len(conversation.pictures) == len(sets[name].examples[task])
    mission, picture, *rest = conversation.question["content"]
    assert _MISSIONS[task] in mission["text"]
    assert picture == {"type": "image"}
    assert name == "compact" or "JSON" in rest[0]["text"]
    assert conversation.followup["role"] == "user"
    assert all("<|" not in _text(turn) for turn in turns)


@pytest.mark.parametrize("readout", ["labels", "numbers"])
def test_the_opening_is_the_same_for_all_missions(sets: dict[str, PromptSet], readout: Readout) -> None:
    prompts = sets["minigrid"]
    first = _ask(prompts, readout=readout, mission="go get a grey key")
    second = _ask(prompts, readout=readout, mission="fetch a red ball")
    assert first.opening == second.opening
    assert first.pictures == second.pictures
    assert first.question != second.question
    assert _ask(load_prompt_set("minigrid"), readout=readout).opening == first.opening


@pytest.mark.parametrize("mission", ["", "{{ picture }}", "\0 and \0\0", "{% for %}", "a\nb"])
def test_a_mission_is_taken_as_it_is(sets: dict[str, PromptSet], mission: str) -> None:
    before, picture, after = _ask(sets["minigrid"], mission=mission).question["content"]
    assert before["text"] == f"Mission: {mission}\n\n"
    assert picture == {"type": "image"}
    assert after["text"].startswith("\n\nDescribe")


def test_examples_answer_as_the_model_is_to_answer(sets: dict[str, PromptSet]) -> None:
    prompts = sets["minigrid"]
    for task, examples in prompts.examples.items():
        by_labels, by_numbers = _ask(prompts, task, "labels"), _ask(prompts, task, "numbers")
        for i, example in enumerate(examples):
            _, analysis, _, label = by_labels.opening[1 + 4 * i : 5 + 4 * i]
            assert _text(analysis) == json.dumps(example.analysis)
            assert _text(label) == prompts.labels[example.best()]
            numbers = _text(by_numbers.opening[4 + 4 * i])
            hundredths = [int(n.replace(".", "")) for n in re.findall(r"\d\.\d\d", numbers)]
            assert sum(hundredths) == 100
            assert list(json.loads(numbers)) == list(prompts.tasks[task])
            for action, probability in json.loads(numbers).items():
                assert probability == pytest.approx(example.probabilities[action], abs=0.01)


def test_only_the_actions_asked_for_are_spoken_of(sets: dict[str, PromptSet]) -> None:
    prompts = sets["minigrid"]
    actions = ("forward", "left", "right")
    asked = _ask(prompts, actions=actions)
    kept = [example for example in prompts.examples["fetch"] if example.best() != "pickup"]
    assert 0 < len(kept) < len(prompts.examples["fetch"])
    assert asked.pictures == tuple(example.picture for example in kept)
    labels = re.findall(r"^- (\w+): ", _text(asked.followup), re.MULTILINE)
    assert labels == list(actions)
    numbers = _ask(prompts, readout="numbers", actions=actions).opening
    for answer in numbers[4::4]:
        assert list(json.loads(_text(answer))) == list(actions)


def test_zero_shot_letters_follow_the_actions(sets: dict[str, PromptSet]) -> None:
    prompts = sets["minigrid-zero-shot"]
    assert [prompts.labels[action] for action in ACTIONS] == list("ABCDEFG")
    assert len(_ask(prompts).opening) == 1
    assert re.findall(r"^([A-G])\. (\w+):", _text(_ask(prompts).followup), re.MULTILINE) == [
        (prompts.labels[action], action) for action in prompts.tasks["fetch"]
    ]


def test_a_mistake_in_hundredths_never_adds_up_to_more(copied: Path) -> None:
    _edit_example(lambda e: e.update(probabilities=dict.fromkeys(e["probabilities"], 0.25)))(copied)
    _edit_example(lambda e: e["probabilities"].update(left=0.2501))(copied)
    prompts = load_prompt_set(str(copied))
    three = _ask(prompts, readout="numbers", actions=("left", "right", "forward"))
    assert _text(three.opening[4]) == '{"left": 0.34, "right": 0.33, "forward": 0.33}'
