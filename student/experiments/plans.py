"""A sweep's plan: its arms, algorithms, environments and seeds, and the settings of each run."""

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
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails

from gridworld.tasks import task_key
from student.settings import EnvId, TrainSettings, algorithm_name, preset_for
from teacher_api.command_line import CannotStart
from teacher_api.files import write_json
from teacher_api.validation import in_words, problems, reason, sentence
from teacher_api.validation import path as field_path

SWEEP_FILE = "sweep.json"
VERSION = 4
"""The version of sweep.json; raised when a setting that a plan leaves out gets another default."""
GIVEN = "given"
"""The teacher whose address the command line gives: its name in a plan, and the name of its folder."""

_RESERVED = {
    *("env", "algo", "seed", "seeds", "teacher", "teacher_key_file"),
    *("out", "resume", "go_on", "threads", "progress"),
}
"""Settings of a run that the sweep sets; the tables of a plan cannot."""
_SETTINGS = {
    name.replace("-", "_"): field.alias or key
    for key, field in TrainSettings.model_fields.items()
    for name in (key, field.alias or key)
    if key not in _RESERVED
}
"""The settings that a plan may set: name in the plan -> name in TrainSettings' input."""
_REPORT = "report"
"""Validation context of a plan that is only reported."""


class BadPlan(CannotStart):
    """A plan cannot be used: the message names the key and says what to do."""


def ignore_variables() -> None:
    """Removes the STUDENT_* variables from this process: the runs of a sweep depend on the plan alone."""
    for name in [name for name in os.environ if name.startswith("STUDENT_")]:
        del os.environ[name]


def _unless_reported(value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Skips a check for a report, whose environments and settings this program need not know."""
    return value if info.context == _REPORT and isinstance(value, str | dict) else check(value)


def _by_input_name(settings: Any) -> Any:
    """Returns settings by their names in TrainSettings' input."""
    return (
        {_input_name(key): value for key, value in settings.items()}
        if isinstance(settings, dict)
        else settings
    )


def _input_name(key: str) -> str:
    name = key.replace("-", "_")
    if name in _RESERVED:
        raise ValueError(
            f"{key!r} is set by the sweep: use envs, algos and seeds of the plan, and `out`, `threads` and"
            " `progress` of the command"
        )
    if name not in _SETTINGS:
        close = difflib.get_close_matches(name, _SETTINGS, 1)
        hint = f"did you mean {close[0]!r}?" if close else "`student train --help` lists the settings"
        raise ValueError(f"{key!r} is not a setting of `student train`; {hint}")
    return _SETTINGS[name]


def _algorithm(name: str) -> str:
    """Checks an algorithm's name and keeps it as it is written: the folders of its runs bear it."""
    algorithm_name(name)
    return name


def _distinct(values: list[Any]) -> list[Any]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(map(str, repeated))} is listed more than once; remove the repetition")
    return values


def _seeds(seeds: Any) -> Any:
    if type(seeds) is int and seeds > 0:
        return list(range(1, seeds + 1))
    if not isinstance(seeds, list) or not seeds:
        raise ValueError(f"write the number of seeds or a list of at least one seed, not {seeds!r}")
    return seeds


def _teacher(teacher: Any) -> Any:
    if isinstance(teacher, dict) and all(
        isinstance(value, bool | int | float | str) for value in teacher.values()
    ):
        flags = {key.replace("_", "-"): value for key, value in teacher.items()}
        reserved = sorted(flags.keys() & {"store", "host", "port", "api-key-file"})
        if reserved:
            raise ValueError(f"{', '.join(reserved)} is set by the sweep; remove it")
        return flags
    if teacher not in ("none", GIVEN):
        raise ValueError(
            f'write "none", "{GIVEN}" or flags of `teacher serve` such as {{ noise = 0.3 }}, not {teacher!r}'
        )
    return teacher


_UnlessReported = WrapValidator(_unless_reported)
Settings = Annotated[dict[str, Any], BeforeValidator(_by_input_name), _UnlessReported]
Teacher = Annotated[str | dict[str, bool | int | float | str], BeforeValidator(_teacher), _UnlessReported]
"""Flags of the `teacher serve` that the sweep starts; "none"; or "given", the address of the command line."""
ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), _UnlessReported]
"""The name of an arm and of its folder."""


class Arm(BaseModel):
    """An arm: its teacher, the environments that it is for, and as further keys the settings of its runs."""

    model_config = ConfigDict(extra="allow", frozen=True)

    teacher: Teacher
    envs: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] | None = Field(
        default=None, exclude_if=lambda envs: envs is None
    )
    """None: all environments of the plan."""

    @model_validator(mode="before")
    @classmethod
    def _names(cls, table: Any, info: ValidationInfo) -> Any:
        if not isinstance(table, dict) or "teacher" not in table or info.context == _REPORT:
            return table
        own = {name: table[name] for name in ("teacher", "envs") if name in table}
        return own | _by_input_name({name: value for name, value in table.items() if name not in own})

    @property
    def settings(self) -> dict[str, Any]:
        return self.model_extra or {}

    @property
    def teacher_name(self) -> str | None:
        """The name of the teacher's store and folder, which arms may share; None without a teacher."""
        if isinstance(self.teacher, str):
            return None if self.teacher == "none" else GIVEN
        return teacher_name(self.teacher)


def teacher_name(flags: Mapping[str, Any]) -> str:
    """Returns a file name for a teacher with these flags, such as planner-noise-0.3.

    A digest replaces flags that do not fit into a file name; the checkpoint's name stays, if there is one.
    """
    kind = str(flags.get("teacher", "planner"))
    name = "-".join([kind, *(f"{flag}-{flags[flag]}" for flag in sorted(flags) if flag != "teacher")])
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
        """The run's folder, relative to the sweep's runs/."""
        return f"{self.arm}/{self.algo}/{self.env}/seed-{self.seed}"


class SweepPlan(BaseModel):
    """The content of a plan file and of sweep.json; see docs/guides/sweeps.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True)

    envs: Annotated[list[Annotated[EnvId, _UnlessReported]], Field(min_length=1), AfterValidator(_distinct)]
    algos: Annotated[
        list[Annotated[str, AfterValidator(_algorithm), _UnlessReported]],
        Field(min_length=1),
        AfterValidator(_distinct),
    ]
    seeds: Annotated[
        list[Annotated[int, Field(ge=0)]],
        BeforeValidator(_seeds),
        AfterValidator(_distinct),
    ]
    baseline: str
    teacher_episodes: Annotated[int, Field(ge=0)] = Field(default=200, alias="teacher-episodes")
    """Held-out episodes that each teacher plays itself in each environment before the first run."""
    settings: Settings = {}
    algo: dict[str, Settings] = {}
    env: dict[str, Settings] = {}
    arms: Annotated[dict[ArmName, Arm], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_consistent(self, info: ValidationInfo) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline: {self.baseline!r} is not an arm; the arms are {', '.join(self.arms)}"
            )
        for name, arm in self.arms.items():
            if unknown := [env for env in arm.envs or () if env not in self.envs]:
                raise ValueError(
                    f"arms.{name}.envs: the plan's envs do not list {', '.join(unknown)}; add it there"
                )
        if missing := [env for env in self.envs if env not in self.envs_of(self.baseline)]:
            raise ValueError(
                f"arms.{self.baseline}.envs: the baseline must be for every environment; add"
                f" {', '.join(missing)}, or leave out envs"
            )
        if info.context == _REPORT:
            return self
        for table, known in (("env", self.envs), ("algo", self.algos)):
            for name in getattr(self, table):
                if name not in known:
                    raise ValueError(f"{field_path((table, name))}: {table}s does not list it; add it there")
        for cell in self.cells():
            self.settings_of(*cell)
        return self

    def envs_of(self, arm: str) -> list[str]:
        """Returns the environments that an arm is for, in the plan's order."""
        own = self.arms[arm].envs
        return [env for env in self.envs if own is None or env in own]

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """Yields the arm, algorithm and environment of each cell of the experiment's design."""
        for env, algo, arm in product(self.envs, self.algos, self.arms):
            if env in self.envs_of(arm):
                yield arm, algo, env

    def settings_of(self, arm: str, algo: str, env: str) -> TrainSettings:
        """Returns the settings that all seeds of an arm share.

        A setting of the arm takes precedence over one of the environment, then of the algorithm, then of
        [settings].

        Raises:
            ValueError: a setting cannot be used; the message names its key.
        """
        chosen: dict[str, Any] = {"preset": preset_for(self.arms[arm].teacher_name)}
        tables: dict[str, str] = {}
        for where, table in (
            ("settings", self.settings),
            (f"algo.{algo}", self.algo.get(algo, {})),
            (field_path(("env", env)), self.env.get(env, {})),
            (f"arms.{arm}", self.arms[arm].settings),
        ):
            chosen |= table
            tables |= dict.fromkeys(table, where)
        try:
            settings = TrainSettings.model_validate({**chosen, "algo": algo, "env": env})
        except ValidationError as error:
            messages = (_in_words(problem, tables, arm, algo) for problem in problems(error))
            raise ValueError("; ".join(messages)) from error
        if self.arms[arm].teacher_name is not None:
            task_key(env, settings.task)
        return settings

    def notes(self) -> Iterator[str]:
        """Yields what is allowed, but makes a comparison with the baseline misleading."""
        for name, arm in self.arms.items():
            if arm.teacher_name is not None or "preset" in arm.settings:
                continue  # a preset in the arm's own table is intended
            presets = {self.settings_of(*cell).preset for cell in self.cells() if cell[0] == name}
            if "fast" in presets:
                yield (
                    f"arms.{name} has no teacher, and the preset fast is for students with a teacher:"
                    " speed-ups over this arm are overstated. Remove preset from [settings], so that each arm"
                    f" gets its own default, or set it in arms.{name} if it is intended"
                )

    def runs(self) -> Iterator[PlannedRun]:
        """Yields the runs, seed by seed, so that all arms can be compared early."""
        for seed in self.seeds:
            for cell in self.cells():
                yield PlannedRun(*cell, seed)


def read_plan(file: Path) -> SweepPlan:
    """Reads a plan from a TOML file.

    Raises:
        BadPlan: the file cannot be read, or the plan cannot be used.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadPlan(f"cannot read the plan {file}: {error.strerror}") from error
    except ValueError as error:
        raise BadPlan(f"{file} is not TOML: {error}") from error
    return _validated(content, file)


def load_plan(sweep: Path, *, to_report: bool = False) -> SweepPlan:
    """Reads the plan of a sweep from its sweep.json.

    Args:
        sweep: the sweep's folder.
        to_report: accept environments, algorithms and settings that this program does not know.

    Raises:
        BadPlan: sweep.json cannot be read, or the plan cannot be used.
    """
    file = sweep / SWEEP_FILE
    try:
        content = json.loads(file.read_bytes())
        version = content["version"]
    except OSError as error:
        raise BadPlan(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadPlan(f"{file} is not the plan of a sweep: {type(error).__name__} {error}") from error
    if version not in range(1, VERSION + 1):
        raise BadPlan(
            f"{file} has version {version!r}, and this program reads 1 to {VERSION}: use a newer program"
        )
    ignored = content.keys() - SweepPlan.model_fields if to_report else {"version", "teachers"}
    plan = {key: value for key, value in content.items() if key not in ignored}
    try:
        plan = _with_defaults_of(version, plan)
    except (AttributeError, TypeError) as error:
        raise BadPlan(f"{file} is not the plan of a sweep: {error}") from error
    return _validated(plan, file, _REPORT if to_report else None)


def _with_defaults_of(version: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored plan with the defaults that settings had in an earlier version."""
    if version >= 4:
        return plan
    settings = {"recover": False} | plan.get("settings", {})
    if version < 3:
        settings = {"judge_labels": False} | settings
    if version < 2:  # also without a teacher
        settings = {"preset": "fast"} | settings
    tables = [settings, *plan.get("algo", {}).values(), *plan.get("env", {}).values()]
    of_fast = {"replay_ratio": 32.0, "optimiser_epsilon": 1e-5}
    of_fast = {key: value for key, value in of_fast.items() if not any(key in table for table in tables)}
    arms = {
        name: of_fast | arm
        if arm.get("preset", settings.get("preset", preset_for(arm.get("teacher")))) == "fast"
        else arm
        for name, arm in plan.get("arms", {}).items()
    }
    return plan | {"settings": settings, "arms": arms}


def store_plan(sweep: Path, plan: SweepPlan) -> None:
    """Writes sweep.json, with the name of each arm's teacher."""
    write_json(sweep / SWEEP_FILE, as_stored(plan))


def as_stored(plan: SweepPlan) -> dict[str, Any]:
    """Returns the content of sweep.json."""
    teachers = {name: arm.teacher_name for name, arm in plan.arms.items()}
    return {"version": VERSION, **plan.model_dump(mode="json"), "teachers": teachers}


def _validated(content: Any, file: Path, context: str | None = None) -> SweepPlan:
    try:
        return SweepPlan.model_validate(content, context=context)
    except ValidationError as error:
        raise BadPlan(f"{file}: {in_words(error)}") from error


def differences(old: SweepPlan, new: SweepPlan) -> list[str]:
    """Returns what a new plan changes or removes, a line each.

    It may add arms, envs (also to an arm), algos and seeds.
    """
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
        if gone := [env for env in old.envs_of(arm) if env not in new.envs_of(arm)]:
            found.append(f"arms.{arm}.envs: {', '.join(gone)} is no longer there")
    for arm, algo, env in old.cells():
        if env not in new.envs_of(arm):
            continue
        before, now = (plan.settings_of(arm, algo, env).in_force() for plan in (old, new))
        for name in before:
            if before[name] != now[name]:
                found.append(f"{name} was {before[name]!r} and is {now[name]!r} ({arm}, {algo}, {env})")
    return found


def _in_words(problem: ErrorDetails, tables: Mapping[str, str], arm: str, algo: str) -> str:
    if not problem["loc"]:
        return f"arms.{arm} with {algo}: {reason(problem)}; a setting of one algorithm belongs in [algo.NAME]"
    name = str(problem["loc"][0])
    return sentence(problem, f"{tables.get(name, f'arms.{arm}')}.{name}")
