"""Which teacher the settings ask for, made ready to start; what cannot be served is refused here."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gridworld.pictures import draw
from teacher_api.schemas import TrainedOn
from teacher_server.checkpoints.checkpoint import (
    BadCheckpoint,
    Checkpoint,
    label_problems,
    memory_problems,
    quantisation_problems,
    read_checkpoint,
)
from teacher_server.checkpoints.folders import Unusable
from teacher_server.checkpoints.memory import Hardware, MemoryNeed
from teacher_server.checkpoints.processor import processor_problems
from teacher_server.checkpoints.training_record import read_record
from teacher_server.engines.base import ChatEngine, how_to_install
from teacher_server.engines.offline import set_offline
from teacher_server.engines.openai.server import CannotAttach
from teacher_server.engines.token_sessions import TokenSessionFactory
from teacher_server.prompting.chat_templates import BadChatTemplate
from teacher_server.prompting.preparation import visual_tokens
from teacher_server.prompting.prompt_set import (
    BadPromptSet,
    Conversation,
    PromptSet,
    load_prompt_set,
    prompt_set_names,
)
from teacher_server.settings import Readout, Settings
from teacher_server.teachers.attached import attach
from teacher_server.teachers.base import ModelTeacher, Teacher
from teacher_server.teachers.planner import PlannerTeacher
from teacher_server.teachers.prompted import PromptedTeacher, ReadoutSettings, room
from teacher_server.teachers.uniform import UniformTeacher

DEFAULT_PROMPTS = "minigrid"


class PromptSettings(Protocol):
    """Settings that name a prompt set."""

    @property
    def prompts(self) -> str | None: ...

    @property
    def model(self) -> Path | None: ...


class CannotTeach(Exception):
    """The settings ask for a teacher that there cannot be; the message says everything that is wrong."""


def choose_teacher(
    settings: Settings, *, check_memory: bool = True, leaving: Settings | None = None
) -> Teacher:
    """The teacher, not started yet: nothing large is loaded.

    Args:
        check_memory: whether there has to be memory for it.
        leaving: of a teacher with a checkpoint that is loaded now and is closed before this one is started.

    Raises:
        CannotTeach: the checkpoint, the prompt set or the machine does not allow it.
    """
    if settings.teacher == "planner":
        return PlannerTeacher(noise=settings.noise, seed=settings.seed, delay_s=settings.delay_ms / 1000)
    if settings.teacher == "uniform":
        return UniformTeacher()
    try:
        return _prompted(settings, check_memory, leaving)
    except CannotAttach as error:
        raise CannotTeach(f"--engine openai: {error}") from error
    except (BadCheckpoint, BadChatTemplate) as error:
        raise CannotTeach(f"--model {settings.model}: {error}") from error
    except BadPromptSet as error:
        raise CannotTeach(str(error)) from error


def same_teacher(settings: Settings, identity: str) -> ModelTeacher:
    """The prompted teacher that the settings asked for before, once more and not started: its files are read.

    Raises:
        CannotTeach: it would be another one by now, or there cannot be one any more.
    """
    again = choose_teacher(settings, check_memory=False)
    if again.identity != identity:
        raise CannotTeach(f"--model {settings.model}: its files have changed since it was loaded")
    assert again.model is not None
    return again.model


def _prompted(settings: Settings, check_memory: bool, leaving: Settings | None) -> PromptedTeacher:
    set_offline()
    if settings.engine == "openai":
        return attach(settings, load_prompt_set(prompts_of(settings)))
    if settings.model is None:
        raise CannotTeach("--teacher prompted needs --model, the folder of a Qwen2.5-VL checkpoint")
    prompts = load_prompt_set(prompts_of(settings))
    reading = ReadoutSettings.chosen(settings, prompts)
    dummy = settings.load_format == "dummy"
    checkpoint = read_checkpoint(settings.model, weights=not dummy)
    problems = label_problems(checkpoint, prompts.labels)
    problems += processor_problems(checkpoint.own_bounds, settings.engine)
    problems += quantisation_problems(checkpoint, settings, settings.engine)
    problems += conversation_problems(checkpoint, prompts, reading.readout, settings.max_model_len)
    if check_memory:
        left = _memory_need(leaving) if leaving else None
        problems += memory_problems(checkpoint, settings, settings.engine, leaving=left)
    if problems:
        raise CannotTeach("; ".join(problems))
    try:
        engine = _ENGINES[settings.engine](checkpoint, settings, prompts)
    except ImportError as error:
        raise CannotTeach(
            f"{settings.engine} cannot be used here ({error}): {how_to_install(settings.engine)}"
        ) from error
    told = {
        "digest": checkpoint.digest(),
        "dtype": checkpoint.dtype() if settings.dtype == "auto" else settings.dtype,
    }
    if dummy:  # each engine draws weights of its own
        told["dummy_weights"] = f"{settings.engine}, seed {settings.seed}"
    label_ids = {
        action: checkpoint.tokenizer.encode(label, add_special_tokens=False).ids[0]
        for action, label in prompts.labels.items()
    }
    return PromptedTeacher(
        TokenSessionFactory(engine, checkpoint.chat_format, label_ids),
        prompts,
        reading,
        checkpoint=told,
        hosting={
            "model": str(settings.model),
            "engine": settings.engine,
            "prompts": prompts.name,
            "weight_bytes": checkpoint.weight_bytes(told["dtype"]),
            **({"trained_on": record.model_dump(mode="json")} if (record := checkpoint.trained_on) else {}),
        },
        seed=settings.seed,
        notes=training_notes(checkpoint.trained_on, prompts, reading.readout),
    )


def prompts_of(settings: PromptSettings) -> str:
    """The prompt set that settings ask for: by name or folder, or else the one that the checkpoint knows.

    Raises:
        BadCheckpoint: its record of what it was trained on is damaged.
    """
    if settings.prompts is not None:
        return settings.prompts
    try:
        record = read_record(settings.model) if settings.model else None
    except Unusable as error:
        raise BadCheckpoint(error.problems) from None
    if record is not None and (record.prompts in prompt_set_names() or Path(record.prompts).is_dir()):
        return record.prompts
    return DEFAULT_PROMPTS


def training_notes(record: TrainedOn | None, prompts: PromptSet, readout: Readout) -> list[str]:
    """What a checkpoint is asked for and was not trained for; nothing where its training is not known."""
    if record is None:
        return []
    if record.prompts_digest != prompts.digest:
        trained = f"the checkpoint was trained with the prompt set {record.prompts}"
        if Path(record.prompts).name == prompts.name:
            return [f"{trained}, which has changed since: its answers may mean less"]
        return [
            f"{trained}, and is asked with another, {prompts.name}: its answers may mean nothing; take"
            f" --prompts {record.prompts}"
        ]
    found = []
    if record.readout != readout:
        found.append(f"the checkpoint was trained to be read out by {record.readout}, not by {readout}")
    known = {grids.task for grids in record.environments.values()}
    if new := [task for task in prompts.tasks if task not in known]:
        found.append(
            f"the checkpoint was never trained on {', '.join(new)}: its answers there may mean nothing"
        )
    return found


def conversation_problems(
    checkpoint: Checkpoint, prompts: PromptSet, readout: Readout, max_model_len: int
) -> list[str]:
    """Why a checkpoint does not take a prompt set's conversations, with pictures of up to 16 x 16 tiles."""
    chat, picture, longest = checkpoint.chat_format, prompts.preparation.prepare(draw(room(16))), 0
    for task in prompts.tasks:
        conversation = _conversation(prompts, task, readout)
        try:
            opening, followup = chat.stages(conversation)
        except BadChatTemplate as error:
            return [str(error)]
        shown = sum(map(visual_tokens, (*conversation.pictures, picture)))
        longest = max(longest, len(opening) + shown + len(followup))
    longest += prompts.analysis_max_tokens + (prompts.numbers_max_tokens if readout == "numbers" else 1)
    if longest <= max_model_len:
        return []
    return [
        f"a conversation with the prompt set {prompts.name} can have {longest} tokens, more than"
        f" --max-model-len {max_model_len}: raise it, or take a prompt set with fewer examples"
    ]


def _memory_need(settings: Settings) -> MemoryNeed:
    assert settings.model is not None
    assert settings.engine != "openai"  # only a local checkpoint is swapped
    checkpoint = read_checkpoint(settings.model, weights=settings.load_format != "dummy")
    return checkpoint.memory_need(settings, settings.engine, Hardware.here(settings, settings.engine))


def _vllm(checkpoint: Checkpoint, settings: Settings, prompts: PromptSet) -> ChatEngine:
    from teacher_server.engines.vllm import VllmEngine  # noqa: PLC0415

    examples = max(len(_conversation(prompts, task, prompts.readout).pictures) for task in prompts.tasks)
    most = prompts.preparation.max_pixels
    return VllmEngine(checkpoint, settings, pictures=examples + 1, max_pixels=most)


def _conversation(prompts: PromptSet, task: str, readout: Readout) -> Conversation:
    return prompts.conversation(task=task, mission="", actions=prompts.tasks[task], readout=readout)


def _transformers(checkpoint: Checkpoint, settings: Settings, _: PromptSet) -> ChatEngine:
    from teacher_server.engines.transformers import TransformersEngine  # noqa: PLC0415

    return TransformersEngine(checkpoint, settings)


_ENGINES: dict[str, Callable[[Checkpoint, Settings, PromptSet], ChatEngine]] = {
    "vllm": _vllm,
    "transformers": _transformers,
}
