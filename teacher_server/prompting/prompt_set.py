"""Prompt sets: conversations made of a folder of templates, rules and worked examples."""

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
from teacher_server.prompting.equivalent_views import QUESTION_VIEW, EquivalentView, ViewsFile
from teacher_server.prompting.preparation import SIDE, Preparation, PreparedPicture
from teacher_server.prompting.prompt_files import (
    FOLLOWUPS,
    QUESTION,
    SCHEMA,
    SYSTEM,
    TEMPLATES,
    VIEWS,
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
"""The folder of the sets that come with the project."""
_MOST_PIXELS = 3200 * 3200
"""Limit of an example's picture."""

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant", "content": [part, ...]}.

A part is {"type": "text", "text": str} or {"type": "image"}.
"""


@dataclass(frozen=True, eq=False)
class Conversation:
    """The two-stage conversation about a picture.

    Attributes:
        opening: the system message and the worked examples, which are the same for all questions with the
            same task, actions and read-out.
        question: stage 1: the mission, the picture and what to analyse.
        followup: stage 2: the question for the action; text only.
        pictures: the pictures of the opening, in order.
    """

    opening: tuple[Message, ...]
    question: Message
    followup: Message
    pictures: tuple[PreparedPicture, ...]


@dataclass(frozen=True, eq=False)
class Example:
    """A worked example; `name` is its picture's file in the set."""

    name: str
    mission: str
    picture: PreparedPicture
    analysis: dict[str, Any]
    probabilities: dict[str, float]

    def best(self) -> str:
        """Returns the most probable action, the first among equals."""
        return max(self.probabilities, key=lambda action: self.probabilities[action])


@dataclass(frozen=True, eq=False)
class PromptSet:
    """A prompt set, loaded and checked.

    Attributes:
        digest: SHA-256 over the names and bytes of all files that can change a conversation.
        tasks: task -> its useful actions.
        labels: action -> label, for all actions of the tasks.
        schema: the analysis's JSON schema.
        temperature: of sampling the analysis; 0 is greedy.
        readout, label_temperature, min_label_mass, sum_tolerance: defaults of the server's settings.
        examples: task -> its worked examples, in order.
        views: the equivalent views of views.toml, which is not part of the digest.
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
    views: ViewsFile
    _texts: "_Texts" = field(repr=False)
    _openings: dict[Any, tuple[tuple[Message, ...], tuple[PreparedPicture, ...]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def conversation(
        self, *, task: str, mission: str, actions: Sequence[str], readout: Readout
    ) -> Conversation:
        """Returns the conversation about a picture.

        Args:
            task: one of `tasks`.
            mission: the mission's text.
            actions: the requested actions that the task uses, in the requested order; at least one.
            readout: how the action is read, which decides the form of the second question.
        """
        key = (task, tuple(actions), readout)
        if key not in self._openings:
            self._openings[key] = self._opening(*key)
        opening, pictures = self._openings[key]
        question, followup = self._texts.questions(*key, mission)
        return Conversation(opening, question, followup, pictures)

    def first_views(self, count: int) -> dict[str, tuple[EquivalentView, ...]]:
        """Returns, by task, the question's own view and as many declared views as make `count` together.

        Raises:
            BadPromptSet: fewer views are declared.
        """
        found = {task: (QUESTION_VIEW, *self.views.views.get(task, ()))[:count] for task in self.tasks}
        for task, views in found.items():
            if len(views) < count:
                raise BadPromptSet(
                    f"`views` is {count}, but the prompt set {self.name} has {len(views)} of {task}: set"
                    f" `views` to {len(views)}, or declare more in its {VIEWS}",
                    VIEWS,
                )
        return found

    def views_description(self, count: int) -> dict[str, Any]:
        """Returns what can change the answers about `count` views, for the identity."""
        declared = {
            task: [view.description for view in views[1:]] for task, views in self.first_views(count).items()
        }
        return {"unreadable": self.views.unreadable, "tasks": declared}

    @property
    def templates(self) -> dict[str, str]:
        """File -> source of all templates."""
        return dict(self._texts.sources)

    def edited(self, sources: Mapping[str, str]) -> "PromptSet":
        """Returns the set with other sources for some templates, or this set if no source differs.

        Raises:
            BadPromptSet: a source cannot be used; `file` names the template.
        """
        changed = {name: text for name, text in sources.items() if text != self.templates[name]}
        if not changed:
            return self
        content = json.dumps([self.digest, changed], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return replace(self, digest=digest, _texts=self._texts.edited(changed))

    def _opening(
        self, task: str, actions: tuple[str, ...], readout: Readout
    ) -> tuple[tuple[Message, ...], tuple[PreparedPicture, ...]]:
        """Returns the system message and the examples whose best action is a requested one."""
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


def load_prompt_set(name_or_folder: str, side: int = SIDE) -> PromptSet:
    """Loads and checks a prompt set.

    Args:
        name_or_folder: the name of a set that comes with the project, or the folder of another.
        side: pixels a side of the checkpoint's visual tokens, for which pictures are prepared.

    Raises:
        BadPromptSet: there is no such set, or a file in it cannot be used.
    """
    names = prompt_set_names()
    folder = SETS / name_or_folder if name_or_folder in names else Path(name_or_folder)
    if not folder.is_dir():
        raise BadPromptSet(
            f"no prompt set {name_or_folder!r}; name one of {', '.join(names)}, or the folder of your own"
        )
    files = Files(folder)
    declared = files.toml("set.toml", SetFile)
    files.check_tasks(declared.tasks)
    rules = {task: files.rules(task) for task in declared.tasks}
    files.check_labels(declared.labels, rules)
    texts = _Texts(files, {name: files.text(name) for name in TEMPLATES}, rules, declared.labels)
    texts.try_out()
    schema = files.schema()
    picture = declared.picture
    preparation = Preparation(picture.tile, picture.margin, picture.max_pixels, side, picture.cell)
    examples = {
        task: tuple(_examples(files, task, rules[task].actions, schema, preparation))
        for task in declared.tasks
    }
    return PromptSet(
        name=folder.resolve().name,
        folder=folder,
        digest=files.digest(),
        description=declared.description,
        tasks={task: tuple(rules[task].actions) for task in declared.tasks},
        labels=declared.labels,
        preparation=preparation,
        schema=schema,
        analysis_max_tokens=declared.decoding.analysis_max_tokens,
        numbers_max_tokens=declared.decoding.numbers_max_tokens,
        temperature=declared.decoding.temperature,
        readout=declared.readout.kind,
        label_temperature=declared.readout.label_temperature,
        min_label_mass=declared.readout.min_label_mass,
        sum_tolerance=declared.readout.sum_tolerance,
        examples=examples,
        views=Files(folder).views(),  # what `files` reads is part of the digest
        _texts=texts,
    )


def prompt_set_names() -> list[str]:
    """Returns the names of the sets that come with the project."""
    return sorted(path.parent.name for path in SETS.glob("*/set.toml"))


@dataclass(frozen=True, eq=False)
class _Texts:
    """A set's templates and the values that fill them."""

    files: Files
    sources: Mapping[str, str]
    rules: Mapping[str, RulesFile]
    labels: Mapping[str, str]
    templates: Mapping[str, jinja2.Template] = field(init=False)

    def __post_init__(self) -> None:
        templates = {name: self.files.template(name, source) for name, source in self.sources.items()}
        object.__setattr__(self, "templates", templates)

    def edited(self, sources: Mapping[str, str]) -> "_Texts":
        """Returns the texts with other sources for some templates, tried out; reads no files."""
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
        """Returns the questions of stage 1 and stage 2."""
        variables = self._variables(task, actions) | {"mission": mission}
        # Longer than any such run in the mission, so that the mark is found where the template puts it
        mark = "\0" * (mission.count("\0") + 1)
        before, _, after = self._fill(QUESTION, variables | {"picture": mark}).partition(mark)
        followup = self._fill(FOLLOWUPS[readout], variables)
        question = {"role": "user", "content": [*_text(before), {"type": "image"}, *_text(after)]}
        return question, _message("user", followup)

    def try_out(self) -> None:
        """Fills in every template for every task.

        Raises:
            BadPromptSet: a template cannot be filled in, or the question does not show the picture once.
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
            raise files.bad(name, "has no .json beside it; add one, or remove the picture")
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
        raise files.bad(name, f"is not a readable picture ({error}); save it as PNG again") from error
    except UnreadablePicture as error:
        raise files.bad(name, f"cannot be prepared as set.toml says: {error}") from error
    return Example(name, example.mission, picture, example.analysis, example.probabilities)


def _in_hundredths(weights: Mapping[str, float]) -> str:
    """Returns JSON of the weights scaled to a sum of exactly 1.00; the largest remainders are rounded up."""
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
