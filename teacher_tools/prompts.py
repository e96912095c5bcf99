"""`teacher prompts`: lists the prompt sets, and shows the conversation that a model gets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg

from gridworld.pictures import UnreadablePicture
from gridworld.tasks import ALL_TASKS, UnknownEnvironment, UnknownTask, task_key
from teacher_api.command_line import CannotStart, File, ValueName, flags_and_variables
from teacher_server.prompting.preparation import SIDE, PreparedPicture
from teacher_server.prompting.prompt_set import (
    BadPromptSet,
    Message,
    PromptSet,
    load_prompt_set,
    prompt_set_names,
)
from teacher_server.settings import Readout, TokenSide
from worlds.registry import world_of


class ListSettings(BaseSettings):
    """Lists the prompt sets: name, digest, description, tasks."""

    model_config = flags_and_variables("teacher prompts list", "TEACHER_")


class ShowSettings(BaseSettings):
    """Shows the conversation about an environment's first picture, as a model gets it."""

    model_config = flags_and_variables("teacher prompts show", "TEACHER_")

    prompts: CliPositionalArg[str] = Field(description="the prompt set, by name or folder")
    task: str = Field(description="a task of the prompt set")
    env: Annotated[str, ValueName("ID")] | None = Field(
        default=None,
        description=f"the environment's id; default for {', '.join(ALL_TASKS)}: the smallest one",
    )
    seed: int = Field(default=0, ge=0, description="the environment's seed")
    readout: Readout | None = Field(default=None, description="the read-out; default: the prompt set's")
    token_side: TokenSide = Field(
        default=28, description="pixels a side of the model's visual tokens; 32 for Qwen3-VL"
    )
    out: File | None = Field(
        default=None,
        description="write the picture, as the model gets it, into this file; default: SET-TASK-SEED.png",
    )


def list_sets(_: ListSettings) -> int:
    """Runs `teacher prompts list`; returns 0."""
    for name in prompt_set_names():
        prompts = _load(name)
        print(f"{name}  {prompts.digest[:12]}")
        print(f"    {prompts.description}")
        print(f"    tasks: {', '.join(prompts.tasks)}")
    return 0


def show(settings: ShowSettings) -> int:
    """Runs `teacher prompts show`; returns 0."""
    prompts = _load(settings.prompts, settings.token_side)
    if settings.task not in prompts.tasks:
        raise CannotStart(
            f"`task`: {prompts.name} has no {settings.task!r}; choose one of {', '.join(prompts.tasks)}"
        )
    env_id = settings.env or _smallest(settings.task)
    try:
        task_key(env_id, settings.task)
        mission, picture = _observe(env_id, settings.task, settings.seed, prompts)
    except UnknownTask as error:
        raise CannotStart(str(error)) from error
    except UnknownEnvironment as error:
        raise CannotStart(f"`env`: {error}") from error
    except UnreadablePicture as error:
        raise CannotStart(f"`env`: the prompt set cannot prepare pictures of {env_id}: {error}") from error
    out = settings.out or Path(f"{prompts.name}-{settings.task}-{settings.seed}.png")
    try:
        picture.image.save(out, "PNG")
    except OSError as error:
        raise CannotStart(f"`out`: cannot write {out}: {error.strerror or error}") from error
    readout = settings.readout or prompts.readout
    print("\n".join(_lines(prompts, settings.task, mission, readout, (str(out), picture))))
    print(f"\n{out}: picture of {env_id}, seed {settings.seed}, as the model gets it")
    return 0


def _load(name: str, token_side: int = SIDE) -> PromptSet:
    try:
        return load_prompt_set(name, token_side)
    except BadPromptSet as error:
        raise CannotStart(str(error)) from error


def _smallest(task: str) -> str:
    """Returns the smallest environment of a family.

    Raises:
        CannotStart: the task belongs to no known family.
    """
    if task not in ALL_TASKS:
        raise CannotStart(f"`env` is missing: name an environment of the task {task}")
    return ALL_TASKS[task].env_ids[0]


def _observe(env_id: str, task: str, seed: int, prompts: PromptSet) -> tuple[str, PreparedPicture]:
    """Returns the mission and the prepared picture of an environment's first state.

    Raises:
        CannotStart: the environment lacks an action of the task, or fails.
        UnreadablePicture: the set's preparation is for other pictures.
    """
    world = world_of(env_id)
    if lacking := [action for action in prompts.tasks[task] if action not in world.actions]:
        raise CannotStart(
            f"`env`: {env_id} has no action {lacking[0]!r}, which the task {task} of the prompt set"
            f" {prompts.name} has; its actions are {', '.join(world.actions)}"
        )
    env = world.environment(lambda episode: seed)
    mission = world.mission(np.frombuffer(env.reset(), np.uint8))
    return mission, prompts.preparation.prepare(env.picture())


def _lines(
    prompts: PromptSet, task: str, mission: str, readout: Readout, observed: tuple[str, PreparedPicture]
) -> Iterator[str]:
    """Yields the conversation turn by turn, with the model's turns described in brackets."""
    actions = prompts.tasks[task]
    conversation = prompts.conversation(task=task, mission=mission, actions=actions, readout=readout)
    examples = [(e.name, e.picture) for e in prompts.examples[task] if e.picture in conversation.pictures]
    marks = (
        f"[picture {number}: {picture.image.width} x {picture.image.height}, {name}]"
        for number, (name, picture) in enumerate([*examples, observed], 1)
    )
    for message in (*conversation.opening, conversation.question):
        yield from _turn(message, marks)
    yield f"--- assistant\n[stage 1: JSON that fits the schema, at most {prompts.analysis_max_tokens} tokens]"
    yield from _turn(conversation.followup, marks)
    if readout == "labels":
        labels = ", ".join(prompts.labels[action] for action in actions)
        yield f"--- assistant\n[stage 2: the probabilities of the next token to be one of {labels}]"
    else:
        yield f"--- assistant\n[stage 2: probabilities as JSON, at most {prompts.numbers_max_tokens} tokens]"


def _turn(message: Message, marks: Iterator[str]) -> Iterator[str]:
    yield f"--- {message['role']}"
    yield "".join(part["text"] if part["type"] == "text" else next(marks) for part in message["content"])
