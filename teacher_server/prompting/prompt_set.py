"""Prompt sets: folders of templates, rules and examples, made into conversations."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2

import teacher_server
from gridworld.pictures import UnreadablePicture
from teacher_server.pictures.decoding import BadPicture, decode
from teacher_server.prompting.preparation import Preparation, PreparedPicture
from teacher_server.prompting.prompt_files import (
    FOLLOWUPS,
    QUESTION,
    SCHEMA,
    SYSTEM,
    TEMPLATES,
    BadPromptSet,
    ExampleFile,
    Files,
    RulesFile,
    SetFile,
    misfit,
)
from teacher_server.settings import Readout

__all__ = ["BadPromptSet", "Conversation", "Example", "PromptSet", "load_prompt_set", "prompt_set_names"]

SETS = Path(teacher_server.__file__).parent.parent / "prompts"
"""Where the sets lie that are found by name."""
_MOST_PIXELS = 3200 * 3200
"""Of an example's picture."""

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant", "content": [part, ...]}.

A part is {"type": "text", "text": str} or {"type": "image"}.
"""


@dataclass(frozen=True, eq=False)
class Conversation:
    """What is asked about a picture, in two stages.

    Attributes:
        opening: the system message and the examples: the same for all questions about a task with the
            same actions and read-out.
        question: stage 1: the mission, the picture and what to look at.
        followup: stage 2: asks for the action; text only.
        pictures: those of the opening, in order.
    """

    opening: tuple[Message, ...]
    question: Message
    followup: Message
    pictures: tuple[PreparedPicture, ...]


@dataclass(frozen=True, eq=False)
class Example:
    """An answered question; `name` is its picture's file in the set."""

    name: str
    mission: str
    picture: PreparedPicture
    analysis: dict[str, Any]
    probabilities: dict[str, float]

    def best(self) -> str:
        """The most probable action; the first among equals."""
        return max(self.probabilities, key=lambda action: self.probabilities[action])


@dataclass(frozen=True, eq=False)
class PromptSet:
    """A prompt set, loaded and checked.

    Attributes:
        digest: SHA-256 over the names and bytes of all its files that can change a conversation.
        tasks: task -> its useful actions.
        labels: action -> label, for all of MiniGrid's actions.
        schema: the analysis's JSON schema.
        temperature: of the analysis; 0 is greedy.
        readout, label_temperature, min_label_mass, sum_tolerance: used unless the server is told otherwise.
        examples: task -> its examples, in order.
    """

    name: str
    folder: Path
    digest: str
    description: str
    tasks: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    preparation: Preparation
    schema: dict[str, Any]
    analysis_max_tokens: int
    numbers_max_tokens: int
    temperature: float
    readout: Readout
    label_temperature: float
    min_label_mass: float
    sum_tolerance: float
    examples: dict[str, tuple[Example, ...]]
    _texts: "_Texts" = field(repr=False)
    _openings: dict[Any, tuple[tuple[Message, ...], tuple[PreparedPicture, ...]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def conversation(
        self, *, task: str, mission: str, actions: Sequence[str], readout: Readout
    ) -> Conversation:
        """What to say to a model about a picture.

        Args:
            task: one of `tasks`.
            mission: the mission's text.
            actions: those asked that the task has a use for, in the order asked; at least one.
            readout: how the action will be read, which decides the form of the second question.
        """
        key = (task, tuple(actions), readout)
        if key not in self._openings:
            self._openings[key] = self._opening(*key)
        opening, pictures = self._openings[key]
        question, followup = self._texts.questions(*key, mission)
        return Conversation(opening, question, followup, pictures)

    @property
    def templates(self) -> dict[str, str]:
        """File -> source, of all templates."""
        return dict(self._texts.sources)

    def edited(self, sources: Mapping[str, str]) -> "PromptSet":
        """The set with other sources for some of its templates; itself where none is another.

        Raises:
            BadPromptSet: one cannot be used; `file` says which.
        """
        changed = {name: text for name, text in sources.items() if text != self.templates[name]}
        if not changed:
            return self
        told = json.dumps([self.digest, changed], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()
        return replace(self, digest=digest, _texts=self._texts.edited(changed))

    def _opening(
        self, task: str, actions: tuple[str, ...], readout: Readout
    ) -> tuple[tuple[Message, ...], tuple[PreparedPicture, ...]]:
        """The system message, and the examples whose best action is one of those asked for."""
        messages = [self._texts.system(task, actions)]
        shown = [example for example in self.examples[task] if example.best() in actions]
        for example in shown:
            question, followup = self._texts.questions(task, actions, readout, example.mission)
            if readout == "labels":
                answer = self.labels[example.best()]
            else:
                answer = _in_hundredths({action: example.probabilities[action] for action in actions})
            analysis = _assistant(json.dumps(example.analysis))
            messages += [question, analysis, followup, _assistant(answer)]
        return tuple(messages), tuple(example.picture for example in shown)


def load_prompt_set(name_or_folder: str) -> PromptSet:
    """A prompt set, by its name or as a folder, with everything in it checked.

    Raises:
        BadPromptSet: there is no such set, or a file in it cannot be used; one line says which and why.
    """
    names = prompt_set_names()
    folder = SETS / name_or_folder if name_or_folder in names else Path(name_or_folder)
    if not folder.is_dir():
        raise BadPromptSet(
            f"no prompt set {name_or_folder!r}; name one of {', '.join(names)}, or the folder of your own"
        )
    files = Files(folder)
    told = files.toml("set.toml", SetFile)
    files.check_tasks(told.tasks)
    files.check_labels(told.labels)
    rules = {task: files.rules(task) for task in told.tasks}
    texts = _Texts(files, {name: files.text(name) for name in TEMPLATES}, rules, told.labels)
    texts.try_out()
    schema = files.schema()
    preparation = Preparation(told.picture.tile, told.picture.margin, told.picture.max_pixels)
    examples = {
        task: tuple(_examples(files, task, rules[task].actions, schema, preparation)) for task in told.tasks
    }
    return PromptSet(
        name=folder.resolve().name,
        folder=folder,
        digest=files.digest(),
        description=told.description,
        tasks={task: tuple(rules[task].actions) for task in told.tasks},
        labels=told.labels,
        preparation=preparation,
        schema=schema,
        analysis_max_tokens=told.decoding.analysis_max_tokens,
        numbers_max_tokens=told.decoding.numbers_max_tokens,
        temperature=told.decoding.temperature,
        readout=told.readout.kind,
        label_temperature=told.readout.label_temperature,
        min_label_mass=told.readout.min_label_mass,
        sum_tolerance=told.readout.sum_tolerance,
        examples=examples,
        _texts=texts,
    )


def prompt_set_names() -> list[str]:
    """The names of the sets that come with the project."""
    return sorted(path.parent.name for path in SETS.glob("*/set.toml"))


@dataclass(frozen=True, eq=False)
class _Texts:
    """A set's templates, and what they are filled in with."""

    files: Files
    sources: Mapping[str, str]
    rules: Mapping[str, RulesFile]
    labels: Mapping[str, str]
    templates: Mapping[str, jinja2.Template] = field(init=False)

    def __post_init__(self) -> None:
        templates = {name: self.files.template(name, source) for name, source in self.sources.items()}
        object.__setattr__(self, "templates", templates)

    def edited(self, sources: Mapping[str, str]) -> "_Texts":
        """With other sources for some templates, tried out; nothing is read from the set's folder."""
        files = Files(Path())
        checked = {name: files.checked(name, source) for name, source in sources.items()}
        texts = _Texts(files, {**self.sources, **checked}, self.rules, self.labels)
        texts.try_out()
        return texts

    def system(self, task: str, actions: Sequence[str]) -> Message:
        return _message("system", self._fill(SYSTEM, self._variables(task, actions)))

    def questions(
        self, task: str, actions: Sequence[str], readout: Readout, mission: str
    ) -> tuple[Message, Message]:
        """What is asked in stage 1 and in stage 2."""
        variables = self._variables(task, actions) | {"mission": mission}
        # Longer than anything like it in the mission, so that the picture's place is where the template says
        mark = "\0" * (mission.count("\0") + 1)
        before, _, after = self._fill(QUESTION, variables | {"picture": mark}).partition(mark)
        followup = self._fill(FOLLOWUPS[readout], variables)
        question = {"role": "user", "content": [*_text(before), {"type": "image"}, *_text(after)]}
        return question, _message("user", followup)

    def try_out(self) -> None:
        """Fills in every template for every task.

        Raises:
            BadPromptSet: one cannot be filled in, or the question does not show the picture once.
        """
        for task, rules in self.rules.items():
            variables = self._variables(task, tuple(rules.actions))
            self._fill(SYSTEM, variables)
            variables["mission"] = "go"
            for name in FOLLOWUPS.values():
                self._fill(name, variables)
            times = self._fill(QUESTION, variables | {"picture": "\0"}).count("\0")
            if times != 1:
                raise self.files.bad(
                    QUESTION, f"shows the picture {times} times; write {{{{ picture }}}} exactly once"
                )

    def _variables(self, task: str, actions: Sequence[str]) -> dict[str, Any]:
        rules = self.rules[task]
        choices = [
            {"name": action, "label": self.labels[action], "meaning": rules.actions[action]}
            for action in actions
        ]
        return {"rules": rules.rules.strip(), "actions": choices}

    def _fill(self, name: str, variables: Mapping[str, Any]) -> str:
        return self.files.fill(name, self.templates[name], variables)


def _examples(
    files: Files, task: str, useful: Iterable[str], schema: dict[str, Any], preparation: Preparation
) -> Iterable[Example]:
    pictures, notes = (files.names(f"examples/{task}", ending) for ending in (".png", ".json"))
    for name in pictures:
        if name.removesuffix(".png") + ".json" not in notes:
            raise files.bad(name, "has no .json beside it; add it or take the picture away")
    for name in notes:
        example = files.example(name)
        if sorted(example.probabilities) != sorted(useful):
            raise files.bad(
                name, f"probabilities names {', '.join(example.probabilities)}, not {', '.join(useful)}"
            )
        if abs(sum(example.probabilities.values()) - 1) > 0.01:
            raise files.bad(name, f"probabilities add up to {sum(example.probabilities.values()):.3f}, not 1")
        if problem := misfit(example.analysis, schema):
            raise files.bad(name, f"{problem}; change it or {SCHEMA}")
        yield _prepared(files, name.removesuffix(".json") + ".png", example, preparation)


def _prepared(files: Files, name: str, example: ExampleFile, preparation: Preparation) -> Example:
    try:
        picture = preparation.prepare(decode(files.read(name), max_pixels=_MOST_PIXELS))
    except BadPicture as error:
        raise files.bad(name, f"is no picture that can be read ({error}); save it as PNG again") from error
    except UnreadablePicture as error:
        raise files.bad(name, f"cannot be made ready as set.toml asks: {error}") from error
    return Example(name, example.mission, picture, example.analysis, example.probabilities)


def _in_hundredths(weights: Mapping[str, float]) -> str:
    """JSON of the weights scaled to a sum of exactly 1.00: the largest remainders are rounded up."""
    total = sum(weights.values())
    exact = {action: 100 * weight / total for action, weight in weights.items()}
    parts = {action: int(share) for action, share in exact.items()}
    for action in sorted(exact, key=lambda action: parts[action] - exact[action])[
        : 100 - sum(parts.values())
    ]:
        parts[action] += 1
    return "{" + ", ".join(f"{json.dumps(action)}: {part / 100:.2f}" for action, part in parts.items()) + "}"


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": _text(text)}


def _assistant(text: str) -> Message:
    return _message("assistant", text)


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []
