"""Reads and checks the files of a prompt set."""

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
from teacher_api.schemas import action_problem
from teacher_api.validation import in_words
from teacher_server.prompting.equivalent_views import ViewsFile

SYSTEM, QUESTION = "system.txt", "question.txt"
FOLLOWUPS = {"labels": "action-labels.txt", "numbers": "action-numbers.txt"}
"""The template of stage 2, by read-out."""
TEMPLATES = {
    SYSTEM: frozenset({"rules", "actions"}),
    QUESTION: frozenset({"rules", "actions", "mission", "picture"}),
    FOLLOWUPS["labels"]: frozenset({"rules", "actions", "mission"}),
    FOLLOWUPS["numbers"]: frozenset({"rules", "actions", "mission"}),
}
"""Template -> the variables that it may use."""
SCHEMA = "analysis.schema.json"
VIEWS = "views.toml"
"""Optional, and not part of the digest: a teacher that asks about one view does not use it."""

_KEY = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SPECIAL = re.compile(r"<\|.*?\|>")
_Text = Annotated[str, Field(min_length=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Tokens = Annotated[int, Field(ge=1)]
_Model = TypeVar("_Model", bound=BaseModel)


_LONGEST_KEY = 64
"""Characters, the limit of a question's task."""


class BadPromptSet(Exception):
    """The prompt set cannot be used; the message names the file, what is wrong and what to do.

    Attributes:
        file: name in the set of the file at fault, if there is one.
    """

    def __init__(self, reason: str, file: str | None = None) -> None:
        super().__init__(reason)
        self.file = file


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Picture(_Strict):
    """How pictures are prepared; see `Preparation`."""

    tile: Annotated[int, Field(ge=8, le=256)] | None = None
    cell: Annotated[int, Field(ge=8, le=256)] | None = None
    margin: bool
    max_pixels: Annotated[int, Field(ge=4 * 28 * 28)]


class Decoding(_Strict):
    """How the model generates; temperature 0 is greedy."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    analysis_max_tokens: _Tokens
    numbers_max_tokens: _Tokens


class Readout(_Strict):
    """How the action is read, unless the server's settings say otherwise."""

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
    """tasks/<task>.toml: the rules in words, and the meaning of each useful action."""

    rules: _Text
    actions: Annotated[dict[str, _Text], Field(min_length=1)]


class ExampleFile(_Strict):
    """examples/<task>/NN.json; `covers` to `steps` document how the example was made."""

    covers: str
    environment: str
    seed: int
    steps: tuple[str, ...]
    mission: str
    analysis: dict[str, Any]
    probabilities: dict[str, _Share]


class Files:
    """Reads the files of a set, and keeps their contents for the digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, bytes] = {}

    def bad(self, name: str, wrong: str) -> BadPromptSet:
        """Returns the error for a file, in one line."""
        return BadPromptSet(f"{self.folder / name}: {' '.join(wrong.split())}", name)

    def names(self, folder: str, ending: str) -> list[str]:
        """Returns a folder's files with this ending, sorted, without hidden files and editors' backups."""
        paths = sorted((self.folder / folder).glob(f"*{ending}"))
        return [f"{folder}/{path.name}" for path in paths if path.is_file() and path.name[0] not in ".#~"]

    def read(self, name: str) -> bytes:
        """Returns a file's bytes, and makes them part of the digest."""
        try:
            self._read[name] = (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise self.bad(name, "is missing; add it") from None
        except OSError as error:
            raise self.bad(name, f"cannot be read: {error.strerror}") from error
        return self._read[name]

    def text(self, name: str) -> str:
        """Returns a file's text; it may not hold special tokens, which chat templates would copy."""
        try:
            text = self.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(name, f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
        return self.checked(name, text)

    def checked(self, name: str, text: str) -> str:
        """Returns the text if nothing in it looks like a special token."""
        if special := _SPECIAL.search(text):
            raise self.bad(name, f"{special.group()!r} looks like a special token; write it another way")
        return text

    def toml(self, name: str, kind: type[_Model]) -> _Model:
        """Returns a TOML file's content, validated."""
        try:
            return self._valid(name, kind, tomllib.loads(self.text(name)))
        except tomllib.TOMLDecodeError as error:
            raise self.bad(name, f"is not TOML: {error}") from error

    def json(self, name: str) -> Any:
        """Returns a JSON file's content."""
        try:
            return json.loads(self.text(name))
        except json.JSONDecodeError as error:
            raise self.bad(name, f"is not JSON: {error}") from error

    def schema(self) -> dict[str, Any]:
        """Returns the analysis's JSON schema."""
        schema = self.json(SCHEMA)
        if not isinstance(schema, dict) or schema.get("type") != "object":
            raise self.bad(SCHEMA, "does not describe an object; its type must be object")
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            where = ".".join(map(str, error.absolute_path))
            raise self.bad(SCHEMA, f"is not a JSON schema: {where}: {error.message}") from error
        return schema

    def views(self) -> ViewsFile:
        """Returns the equivalent views, also of tasks that are not the set's; none without the file."""
        return self.toml(VIEWS, ViewsFile) if (self.folder / VIEWS).exists() else ViewsFile()

    def example(self, name: str) -> ExampleFile:
        """Returns a worked example."""
        return self._valid(name, ExampleFile, self.json(name))

    def rules(self, task: str) -> RulesFile:
        """Returns a task's rules."""
        name = f"tasks/{task}.toml"
        rules = self.toml(name, RulesFile)
        if problem := action_problem(tuple(rules.actions)):
            raise self.bad(name, f"actions: {problem}")
        return rules

    def template(self, name: str, source: str) -> jinja2.Template:
        """Returns a template, which may use known variables only."""
        known = TEMPLATES[name]
        try:
            unknown = jinja2.meta.find_undeclared_variables(_JINJA.parse(source)) - known
            if unknown:
                raise self.bad(
                    name,
                    f"unknown variable {min(unknown)!r}; known variables are {', '.join(sorted(known))}",
                )
            return _JINJA.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise self.bad(name, f"line {error.lineno}: {error.message}; correct the template") from error

    def fill(self, name: str, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Returns a template's text for these variables."""
        try:
            return template.render(variables).strip()
        except Exception as error:  # a template can raise anything
            raise self.bad(name, f"cannot be filled in: {error}; correct the template") from error

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Checks that every task has a valid key and a rules file, and that no other rules files exist."""
        for task in tasks:
            if len(task) > _LONGEST_KEY or not _KEY.fullmatch(task):
                raise self.bad(
                    "set.toml",
                    f"tasks: {task!r} is not a task key; write it in snake_case, such as lava_gap,"
                    f" with at most {_LONGEST_KEY} characters",
                )
            if not (self.folder / f"tasks/{task}.toml").is_file():
                raise self.bad("set.toml", f"lists the task {task!r}, which has no tasks/{task}.toml; add it")
        for name in self.names("tasks", ".toml"):
            if Path(name).stem not in tasks:
                raise self.bad(name, "is not listed; add it to tasks in set.toml, or remove the file")

    def check_labels(self, labels: Mapping[str, str], rules: Mapping[str, RulesFile]) -> None:
        """Checks that every action of every task has a label of its own."""
        task_of = {action: task for task, each in rules.items() for action in each.actions}
        for action, task in task_of.items():
            if action not in labels:
                raise self.bad(
                    "set.toml", f"labels: {action}, an action of tasks/{task}.toml, has no label; add one"
                )
        owners: dict[str, str] = {}
        for action, label in labels.items():
            if action not in task_of and action not in ACTIONS:
                raise self.bad("set.toml", f"labels: no task has an action {action!r}; remove it")
            owner = owners.setdefault(label, action)
            if owner != action:
                raise self.bad(
                    "set.toml", f"labels: {owner} and {action} are both {label!r}; each needs one of its own"
                )

    def digest(self) -> str:
        """Returns the SHA-256, in hexadecimal, over the names and bytes of all files read."""
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
    """Returns why an analysis does not match its schema, in which the order of keys counts, or None."""
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
        return (
            f"{at}: its keys are not in the order of the schema, which models follow: {', '.join(expected)}"
        )
    below = (_disorder(value[key], known[key], f"{at}.{key}") for key in expected)
    return next((problem for problem in below if problem), None)
