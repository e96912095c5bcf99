"""A prompt set's files: read, checked, and complained about by name."""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jinja2
import jinja2.meta
import jinja2.sandbox
import jsonschema
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gridworld.tasks import ACTIONS
from teacher_api.validation import in_words

SYSTEM, QUESTION = "system.txt", "question.txt"
FOLLOWUPS = {"labels": "action-labels.txt", "numbers": "action-numbers.txt"}
"""The template of the second stage, by read-out."""
TEMPLATES = {
    SYSTEM: frozenset({"rules", "actions"}),
    QUESTION: frozenset({"rules", "actions", "mission", "picture"}),
    FOLLOWUPS["labels"]: frozenset({"rules", "actions", "mission"}),
    FOLLOWUPS["numbers"]: frozenset({"rules", "actions", "mission"}),
}
"""Each template and the variables that it may use."""
SCHEMA = "analysis.schema.json"

_KEY = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SPECIAL = re.compile(r"<\|.*?\|>")
_Text = Annotated[str, Field(min_length=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Tokens = Annotated[int, Field(ge=1)]
_Model = TypeVar("_Model", bound=BaseModel)


_LONGEST_KEY = 64
"""Characters, as questions allow."""


class BadPromptSet(Exception):
    """A prompt set that cannot be used: which file, what is wrong with it, and what to do.

    `file` is its name in the set, where a file is to blame.
    """

    def __init__(self, reason: str, file: str | None = None) -> None:
        super().__init__(reason)
        self.file = file


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Picture(_Strict):
    """How pictures are prepared; see `Preparation`."""

    tile: Annotated[int, Field(ge=8, le=256)] | None = None
    margin: bool
    max_pixels: Annotated[int, Field(ge=4 * 28 * 28)]


class Decoding(_Strict):
    """How the model writes; temperature 0 is greedy."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    analysis_max_tokens: _Tokens
    numbers_max_tokens: _Tokens


class Readout(_Strict):
    """How the action is read, unless the server is told otherwise."""

    kind: Literal["labels", "numbers"]
    label_temperature: _Positive
    min_label_mass: _Share
    sum_tolerance: _Share


class SetFile(_Strict):
    """set.toml."""

    description: _Text
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    picture: Picture
    decoding: Decoding
    readout: Readout
    labels: dict[str, _Text]


class RulesFile(_Strict):
    """tasks/<task>.toml: the rules in words, and what each useful action does."""

    rules: _Text
    actions: Annotated[dict[str, _Text], Field(min_length=1)]


class ExampleFile(_Strict):
    """examples/<task>/NN.json; what it was made from stands in it for the reader."""

    covers: str
    environment: str
    seed: int
    steps: tuple[str, ...]
    mission: str
    analysis: dict[str, Any]
    probabilities: dict[str, _Share]


class Files:
    """Reads the files of a set and keeps what was read, for its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, bytes] = {}

    def bad(self, name: str, wrong: str) -> BadPromptSet:
        """What is wrong with a file, in one line."""
        return BadPromptSet(f"{self.folder / name}: {' '.join(wrong.split())}", name)

    def names(self, folder: str, ending: str) -> list[str]:
        """The files of a folder with this ending, sorted, without hidden ones and editors' copies."""
        paths = sorted((self.folder / folder).glob(f"*{ending}"))
        return [f"{folder}/{path.name}" for path in paths if path.is_file() and path.name[0] not in ".#~"]

    def read(self, name: str) -> bytes:
        """A file's bytes, which from now on are part of the digest."""
        try:
            self._read[name] = (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise self.bad(name, "is missing; add it") from None
        except OSError as error:
            raise self.bad(name, f"cannot be read: {error.strerror}") from error
        return self._read[name]

    def text(self, name: str) -> str:
        """A file's text, in which no special token may stand: chat templates take it as it is."""
        try:
            text = self.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(name, f"is no UTF-8 text (byte {error.start}); save it as UTF-8") from error
        return self.checked(name, text)

    def checked(self, name: str, text: str) -> str:
        """The text itself, in which nothing looks like a special token."""
        if special := _SPECIAL.search(text):
            raise self.bad(name, f"{special.group()!r} looks like a special token; write it another way")
        return text

    def toml(self, name: str, kind: type[_Model]) -> _Model:
        """A TOML file as a model."""
        try:
            return self._valid(name, kind, tomllib.loads(self.text(name)))
        except tomllib.TOMLDecodeError as error:
            raise self.bad(name, f"is no TOML: {error}") from error

    def json(self, name: str) -> Any:
        """What a JSON file holds."""
        try:
            return json.loads(self.text(name))
        except json.JSONDecodeError as error:
            raise self.bad(name, f"is no JSON: {error}") from error

    def schema(self) -> dict[str, Any]:
        """The analysis's schema."""
        schema = self.json(SCHEMA)
        if not isinstance(schema, dict) or schema.get("type") != "object":
            raise self.bad(SCHEMA, "describes no object; its type must be object")
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            where = ".".join(map(str, error.absolute_path))
            raise self.bad(SCHEMA, f"is no JSON schema: {where}: {error.message}") from error
        return schema

    def example(self, name: str) -> ExampleFile:
        """An example, in JSON."""
        return self._valid(name, ExampleFile, self.json(name))

    def rules(self, task: str) -> RulesFile:
        """A listed task's rules."""
        name = f"tasks/{task}.toml"
        rules = self.toml(name, RulesFile)
        if unknown := [action for action in rules.actions if action not in ACTIONS]:
            raise self.bad(
                name, f"actions: {unknown[0]!r} is none of MiniGrid's actions: {', '.join(ACTIONS)}"
            )
        return rules

    def template(self, name: str, source: str) -> jinja2.Template:
        """A template that uses no unknown variable."""
        known = TEMPLATES[name]
        try:
            unknown = jinja2.meta.find_undeclared_variables(_JINJA.parse(source)) - known
            if unknown:
                raise self.bad(
                    name,
                    f"unknown variable {min(unknown)!r}; those known here are {', '.join(sorted(known))}",
                )
            return _JINJA.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise self.bad(name, f"line {error.lineno}: {error.message}; correct the template") from error

    def fill(self, name: str, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """A template's text for these variables."""
        try:
            return template.render(variables).strip()
        except Exception as error:  # a template can raise anything
            raise self.bad(name, f"cannot be filled in: {error}; correct the template") from error

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Every task has a key that is in order and a rules file, and there are no other rules files."""
        for task in tasks:
            if len(task) > _LONGEST_KEY or not _KEY.fullmatch(task):
                raise self.bad(
                    "set.toml",
                    f"tasks: {task!r} is no key of a task; write it in snake_case, such as lava_gap,"
                    f" with at most {_LONGEST_KEY} characters",
                )
            if not (self.folder / f"tasks/{task}.toml").is_file():
                raise self.bad("set.toml", f"lists the task {task!r}, which has no tasks/{task}.toml; add it")
        for name in self.names("tasks", ".toml"):
            if Path(name).stem not in tasks:
                raise self.bad(name, "is not listed; add it to tasks in set.toml, or take the file away")

    def check_labels(self, labels: Mapping[str, str]) -> None:
        """Every action has a label of its own."""
        if unknown := [action for action in labels if action not in ACTIONS]:
            raise self.bad(
                "set.toml", f"labels: {unknown[0]!r} is none of MiniGrid's actions: {', '.join(ACTIONS)}"
            )
        owners: dict[str, str] = {}
        for action in ACTIONS:
            if action not in labels:
                raise self.bad("set.toml", f"labels: {action} has none; each of MiniGrid's actions needs one")
            owner = owners.setdefault(labels[action], action)
            if owner != action:
                raise self.bad(
                    "set.toml",
                    f"labels: {owner} and {action} are both {labels[action]!r}; each needs one of its own",
                )

    def digest(self) -> str:
        """SHA-256 over the names and bytes of all files read."""
        digest = hashlib.sha256()
        for name, content in sorted(self._read.items()):
            digest.update(f"{name}\n{len(content)}\n".encode() + content)
        return digest.hexdigest()

    def _valid(self, name: str, kind: type[_Model], content: Any) -> _Model:
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            raise self.bad(name, in_words(error)) from error


_JINJA = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


def misfit(value: Any, schema: dict[str, Any]) -> str | None:
    """Why an analysis does not fit its schema, or None; its keys have to be in the schema's order."""
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if error is not None:
        return f"{'.'.join(['analysis', *map(str, error.absolute_path)])}: {error.message}"
    return _disorder(value, schema, "analysis")


def _disorder(value: Any, schema: dict[str, Any], at: str) -> str | None:
    if not isinstance(value, dict):
        return None
    known = schema.get("properties", {})
    expected = [key for key in known if key in value]
    if [key for key in value if key in known] != expected:
        return f"{at}: its keys are not in the schema's order, in which models write: {', '.join(expected)}"
    below = (_disorder(value[key], known[key], f"{at}.{key}") for key in expected)
    return next((problem for problem in below if problem), None)
