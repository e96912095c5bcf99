"""A sweep's plan file: which arms, algorithms, environments and seeds there are, and each run's settings."""

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from gridworld.tasks import task_key
from student.settings import AlgorithmName, EnvId, TrainSettings, preset_for
from teacher_api.command_line import CannotStart
from teacher_api.validation import in_words, problems, reason, sentence
from teacher_api.validation import path as field_path

SWEEP_FILE = "sweep.json"
VERSION = 2
"""Of sweep.json; raised when older ones can no longer be read."""
GIVEN = "given"
"""What an arm calls the teacher whose address the command gives, and its folder's name."""

_THE_SWEEPS_OWN = {
    *(
        "env",
        "algo",
        "seed",
        "seeds",
        "teacher",
        "teacher_key_file",
        "out",
        "resume",
        "go_on",
        "threads",
        "progress",
    )
}
"""Settings of a run that a plan's tables of settings cannot hold."""
_SETTINGS = {
    name.replace("-", "_"): field.alias or key
    for key, field in TrainSettings.model_fields.items()
    for name in (key, field.alias or key)
    if key not in _THE_SWEEPS_OWN
}
"""What each setting may be called in a plan, and its name in TrainSettings' input."""


class BadPlan(CannotStart):
    """A plan that cannot be used; the message names the key and says what to do."""


def ignore_variables() -> None:
    """STUDENT_* variables are no part of a plan: a sweep does the same in every shell."""
    for name in [name for name in os.environ if name.startswith("STUDENT_")]:
        del os.environ[name]


def _named(settings: Any) -> Any:
    """Settings by their names in TrainSettings' input, whichever way the plan writes them."""
    if not isinstance(settings, dict):
        return settings
    return {_name(key): value for key, value in settings.items()}


def _name(key: str) -> str:
    name = key.replace("-", "_")
    if name in _THE_SWEEPS_OWN:
        raise ValueError(f"{key!r} is the sweep's own: see envs, algos, seeds, --out, --threads, --progress")
    if name not in _SETTINGS:
        close = difflib.get_close_matches(name, _SETTINGS, 1)
        hint = f"do you mean {close[0]!r}?" if close else "`student train --help` lists them"
        raise ValueError(f"{key!r} is no setting of `student train`; {hint}")
    return _SETTINGS[name]


def _distinct(values: list[Any]) -> list[Any]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{', '.join(map(str, twice))} stands there more than once; take one away")
    return values


def _seeds(seeds: Any) -> Any:
    if type(seeds) is int and seeds > 0:
        return list(range(1, seeds + 1))
    if not isinstance(seeds, list) or not seeds:
        raise ValueError(f"write how many, or a list of at least one, not {seeds!r}")
    return seeds


def _teacher(teacher: Any) -> Any:
    if isinstance(teacher, dict) and all(
        isinstance(value, bool | int | float | str) for value in teacher.values()
    ):
        flags = {key.replace("_", "-"): value for key, value in teacher.items()}
        ours = sorted(flags.keys() & {"store", "host", "port", "api-key-file"})
        if ours:
            raise ValueError(f"{', '.join(ours)} is the sweep's own; take it away")
        return flags
    if teacher not in ("none", GIVEN):
        raise ValueError(
            f'write "none", "{GIVEN}" or flags of `teacher serve` as {{ noise = 0.3 }}, not {teacher!r}'
        )
    return teacher


Settings = Annotated[dict[str, Any], BeforeValidator(_named)]
Teacher = Annotated[str | dict[str, bool | int | float | str], BeforeValidator(_teacher)]
"""The flags of a `teacher serve` that the sweep starts; none; or the one whose address is given."""
ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""It is a folder's name too."""


class Arm(BaseModel):
    """Who teaches in this arm; every other key is a setting of its runs."""

    model_config = ConfigDict(extra="allow", frozen=True)

    teacher: Teacher

    @model_validator(mode="before")
    @classmethod
    def _names(cls, table: Any) -> Any:
        if not isinstance(table, dict) or "teacher" not in table:
            return table
        return {"teacher": table["teacher"]} | _named({k: v for k, v in table.items() if k != "teacher"})

    @property
    def settings(self) -> dict[str, Any]:
        return self.model_extra or {}

    @property
    def teacher_name(self) -> str | None:
        """What its teacher's store and folder are called; arms may share them. None without a teacher."""
        if isinstance(self.teacher, str):
            return None if self.teacher == "none" else GIVEN
        return teacher_name(self.teacher)


def teacher_name(flags: Mapping[str, Any]) -> str:
    """A file name for the teacher with these flags, such as planner-noise-0.3.

    Where all of them are too many, the checkpoint's folder stands for them, and a digest.
    """
    kind = str(flags.get("teacher", "planner"))
    told = [f"{flag}-{flags[flag]}" for flag in sorted(flags) if flag != "teacher"]
    name = "-".join([kind, *told])
    if re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name):
        return name
    if "model" in flags:
        name = f"{kind}-{Path(str(flags['model'])).name}"
    digest = hashlib.sha256(json.dumps(dict(flags), sort_keys=True).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9._-]', '_', name)[:60]}-{digest[:8]}"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    arm: str
    algo: str
    env: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder, from the sweep's runs/."""
        return f"{self.arm}/{self.algo}/{self.env}/seed-{self.seed}"


class Plan(BaseModel):
    """What a plan file says; see docs/guides/sweeps.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    envs: Annotated[list[EnvId], Field(min_length=1), AfterValidator(_distinct)]
    algos: Annotated[list[AlgorithmName], Field(min_length=1), AfterValidator(_distinct)]
    seeds: Annotated[
        list[Annotated[int, Field(ge=0)]],
        BeforeValidator(_seeds),
        AfterValidator(_distinct),
    ]
    baseline: str
    settings: Settings = {}
    algo: dict[str, Settings] = {}
    env: dict[str, Settings] = {}
    arms: Annotated[dict[ArmName, Arm], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline: no arm {self.baseline!r}; the plan's arms are {', '.join(self.arms)}"
            )
        for table, known in (("env", self.envs), ("algo", self.algos)):
            for name in getattr(self, table):
                if name not in known:
                    raise ValueError(f"{field_path((table, name))}: {table}s does not list it; add it there")
        for arm, algo, env in product(self.arms, self.algos, self.envs):
            self.settings_of(arm, algo, env)
        return self

    def settings_of(self, arm: str, algo: str, env: str) -> TrainSettings:
        """What all seeds have in common: an arm's table wins over an environment's, that over an algorithm's.

        Raises:
            ValueError: a setting cannot be used; the message names its key.
        """
        told: dict[str, Any] = {"preset": preset_for(self.arms[arm].teacher_name)}
        key: dict[str, str] = {}
        for where, table in (
            ("settings", self.settings),
            (f"algo.{algo}", self.algo.get(algo, {})),
            (field_path(("env", env)), self.env.get(env, {})),
            (f"arms.{arm}", self.arms[arm].settings),
        ):
            told |= table
            key |= dict.fromkeys(table, where)
        try:
            settings = TrainSettings.model_validate({**told, "algo": algo, "env": env})
        except ValidationError as error:
            said = "; ".join(_in_words(problem, key, arm, algo) for problem in problems(error))
            raise ValueError(said) from error
        if self.arms[arm].teacher_name is not None:
            task_key(env, settings.task)
        return settings

    def notes(self) -> Iterator[str]:
        """What is no mistake in itself, and yet makes a comparison with the baseline misleading."""
        for name, arm in self.arms.items():
            if arm.teacher_name is not None or "preset" in arm.settings:
                continue  # what stands in the arm's own table is meant
            presets = {self.settings_of(name, algo, env).preset for algo in self.algos for env in self.envs}
            if "fast" in presets:
                yield (
                    f"arms.{name} has no teacher and the preset fast, which is for students with one: what is"
                    " compared with it looks too good; take preset out of [settings], so that each arm gets"
                    f" its own default, or write it into arms.{name} if it is meant"
                )

    def runs(self) -> Iterator[PlannedRun]:
        """Seed by seed, so that all arms can be compared early."""
        for seed, env, algo, arm in product(self.seeds, self.envs, self.algos, self.arms):
            yield PlannedRun(arm, algo, env, seed)

    def as_json(self) -> dict[str, Any]:
        """What sweep.json holds."""
        teachers = {name: arm.teacher_name for name, arm in self.arms.items()}
        return {"version": VERSION, **self.model_dump(mode="json"), "teachers": teachers}


def read_plan(path: Path) -> Plan:
    """The plan in a TOML file.

    Raises:
        BadPlan: it cannot be read, or says something that cannot be done.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadPlan(f"cannot read the plan {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadPlan(f"{path} is no TOML: {error}") from error
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        raise BadPlan(f"{path}: " + in_words(error)) from error


class StoredPlan(BaseModel):
    """sweep.json as far as a report needs it: its environments and settings may be unknown here."""

    model_config = ConfigDict(frozen=True, extra="allow")

    version: Literal[1, 2]
    envs: tuple[str, ...] = Field(min_length=1)
    algos: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    baseline: str = Field(description="the arm that the others are compared with")
    arms: dict[str, dict[str, Any]] = Field(min_length=1, description="each arm's settings")

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_then(cls, content: Any) -> Any:
        """In version 1 the default preset was `fast` in arms without a teacher as well."""
        if isinstance(content, dict) and content.get("version") == 1:
            return {**content, "settings": {"preset": "fast", **content.get("settings", {})}}
        return content

    @model_validator(mode="after")
    def _baseline_is_an_arm(self) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(f"the baseline {self.baseline!r} is none of the arms {', '.join(self.arms)}")
        return self


def read_stored_plan(path: Path) -> StoredPlan:
    """What a sweep.json says.

    Raises:
        BadPlan: it cannot be read, or is not of this version.
    """
    try:
        return StoredPlan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadPlan(f"{path} cannot be read as a sweep: {in_words(error)}") from error
    except OSError as error:
        raise BadPlan(f"{path} cannot be read: {error.strerror}") from error


def stored_plan(path: Path) -> Plan:
    """The plan in a sweep.json, to go on with.

    Raises:
        BadPlan: it cannot be read, is not of this version, or says something that cannot be done.
    """
    content = read_stored_plan(path).model_dump(mode="json", exclude={"version", "teachers"})
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        raise BadPlan(f"{path}: " + in_words(error)) from error


def differences(old: Plan, new: Plan) -> list[str]:
    """What the new plan says otherwise than the old one; more arms, envs, algos or seeds may be there."""
    found = []
    for name in ("arms", "envs", "algos", "seeds"):
        gone = [str(value) for value in getattr(old, name) if value not in getattr(new, name)]
        if gone:
            found.append(f"{name}: {', '.join(gone)} is no longer there")
    if found:
        return found
    for arm in old.arms:
        before, now = old.arms[arm].teacher, new.arms[arm].teacher
        if before != now:
            found.append(f"arms.{arm}.teacher was {before!r} and is {now!r}")
    for arm, algo, env in product(old.arms, old.algos, old.envs):
        before, now = (plan.settings_of(arm, algo, env).in_force() for plan in (old, new))
        for name in before:
            if before[name] != now[name]:
                found.append(f"{name} was {before[name]!r} and is {now[name]!r} ({arm}, {algo}, {env})")
    return found


def _in_words(problem: ErrorDetails, key: Mapping[str, str], arm: str, algo: str) -> str:
    if not problem["loc"]:
        return (
            f"arms.{arm} with {algo}: {reason(problem)}; what one algorithm alone knows goes into [algo.NAME]"
        )
    name = str(problem["loc"][0])
    return sentence(problem, f"{key.get(name, f'arms.{arm}')}.{name}")
