"""Makes the teacher that the settings name, ready to start, and refuses what cannot be served."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gridworld.pictures import draw
from teacher_api.schemas import TrainedOn
from teacher_server.checkpoints.architectures import QWEN2_5
from teacher_server.checkpoints.checkpoint import (
    BadCheckpoint,
    Checkpoint,
    label_problems,
    memory_problems,
    read_checkpoint,
    serving_problems,
)
from teacher_server.checkpoints.folders import Unusable
from teacher_server.checkpoints.memory import Hardware, MemoryNeed
from teacher_server.checkpoints.training_record import read_record
from teacher_server.engines.base import ChatEngine, how_to_install
from teacher_server.engines.offline import set_offline
from teacher_server.engines.openai.server import CannotAttach
from teacher_server.engines.token_sessions import TokenSessionFactory
from teacher_server.prompting.chat_templates import BadChatTemplate
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
from teacher_server.teachers.own import CannotServe, ServedOwnTeacher
from teacher_server.teachers.planner import PlannerTeacher
from teacher_server.teachers.prompted import PromptedTeacher, ReadoutSettings, trial_grid
from teacher_server.teachers.uniform import UniformTeacher

DEFAULT_PROMPTS = "minigrid"


class PromptSettings(Protocol):
    """Settings that name a prompt set."""

    @property
    def prompts(self) -> str | None: ...

    @property
    def model(self) -> Path | None: ...


class CannotTeach(Exception):
    """No teacher can be made of these settings; the message lists all problems."""


def choose_teacher(
    settings: Settings, *, check_memory: bool = True, leaving: Settings | None = None
) -> Teacher:
    """Returns the teacher, not started: no weights are loaded.

    Args:
        check_memory: refuse a teacher that does not fit in memory.
        leaving: settings of a loaded teacher that is closed before this one starts.

    Raises:
        CannotTeach: the checkpoint, the prompt set or the machine does not allow it.
    """
    if settings.teacher == "planner":
        return PlannerTeacher(
            fault=settings.fault,
            noise=settings.noise,
            seed=settings.seed,
            delay_s=settings.delay_ms / 1000,
        )
    if settings.fault is not None:
        raise CannotTeach(
            f"`fault` {settings.fault} is a fault of the planner: leave it out, or choose `teacher` planner"
        )
    if settings.teacher == "uniform":
        return UniformTeacher()
    if settings.teacher != "prompted":
        try:
            return ServedOwnTeacher(settings.teacher)
        except CannotServe as error:
            raise CannotTeach(f"`teacher` {error}") from error
    try:
        return _prompted(settings, check_memory, leaving)
    except CannotAttach as error:
        raise CannotTeach(f"`engine` openai: {error}") from error
    except (BadCheckpoint, BadChatTemplate) as error:
        raise CannotTeach(f"{settings.model}: {error}") from error
    except BadPromptSet as error:
        raise CannotTeach(str(error)) from error


def same_teacher(settings: Settings, identity: str) -> ModelTeacher:
    """Returns the model's teacher once more, not started, after reading its files again.

    Raises:
        CannotTeach: the files have changed, or no longer make a teacher.
    """
    again = choose_teacher(settings, check_memory=False)
    if again.identity != identity:
        raise CannotTeach(f"{settings.model}: its files have changed since it was loaded")
    assert again.model is not None
    return again.model


def _prompted(settings: Settings, check_memory: bool, leaving: Settings | None) -> PromptedTeacher:
    set_offline()
    if settings.engine == "openai":
        return attach(settings, load_prompt_set(prompts_of(settings), settings.openai_token_side))
    if settings.model is None:
        raise CannotTeach("`teacher` prompted needs `model`, the folder of a checkpoint")
    dummy = settings.load_format == "dummy"
    checkpoint = read_checkpoint(settings.model, weights=not dummy)
    prompts = load_prompt_set(prompts_of(settings), checkpoint.dimensions.vision.token_side)
    reading = ReadoutSettings.from_settings(settings, prompts)
    problems = label_problems(checkpoint, prompts.labels)
    problems += serving_problems(checkpoint, settings, settings.engine)
    problems += conversation_problems(
        checkpoint, prompts, reading.readout, settings.max_model_len, settings.views
    )
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
    identified = {
        "digest": checkpoint.digest(),
        "dtype": checkpoint.served_dtype(settings, settings.engine),
    }
    if (architecture := checkpoint.dimensions.architecture) != QWEN2_5:  # its identities name none
        identified["architecture"] = architecture.name
    if dummy:  # each engine draws different weights
        identified["dummy_weights"] = f"{settings.engine}, seed {settings.seed}"
    label_ids = {
        action: checkpoint.tokenizer.encode(label, add_special_tokens=False).ids[0]
        for action, label in prompts.labels.items()
    }
    return PromptedTeacher(
        TokenSessionFactory(engine, checkpoint.chat_format, label_ids),
        prompts,
        reading,
        checkpoint=identified,
        hosting={
            "model": str(settings.model),
            "engine": settings.engine,
            "prompts": prompts.name,
            "weight_bytes": checkpoint.weight_bytes(identified["dtype"]),
            **(
                {"trained_on": record.model_dump(mode="json", exclude_none=True)}
                if (record := checkpoint.trained_on)
                else {}
            ),
        },
        seed=settings.seed,
        views=settings.views,
        notes=training_notes(checkpoint.trained_on, prompts, reading.readout),
    )


def prompts_of(settings: PromptSettings) -> str:
    """Returns the prompt set, by name or folder: the settings' own, else the checkpoint's, else the default.

    Raises:
        BadCheckpoint: the checkpoint's record of its training is damaged.
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
    """Returns how the use of a checkpoint differs from its training; empty if the training is unknown."""
    if record is None:
        return []
    if record.prompts_digest != prompts.digest:
        trained = f"the checkpoint was trained with the prompt set {record.prompts}"
        if Path(record.prompts).name == prompts.name:
            return [f"{trained}, which has changed since: its answers may be less reliable"]
        return [
            f"{trained}, and is used with another, {prompts.name}: its answers may mean nothing; set"
            f" `prompts` to {record.prompts}"
        ]
    found = []
    if readout not in record.readouts:
        trained = " and ".join(record.readouts)
        found.append(f"the checkpoint was trained for the read-out {trained}, and is used with {readout}")
    known = {grids.task for grids in record.environments.values()}
    if new := [task for task in prompts.tasks if task not in known]:
        found.append(
            f"the checkpoint was never trained on {', '.join(new)}: its answers there may mean nothing"
        )
    return found


def conversation_problems(
    checkpoint: Checkpoint, prompts: PromptSet, readout: Readout, max_model_len: int, views: int = 1
) -> list[str]:
    """Returns why a prompt set's conversations about grids of up to 16 x 16 tiles do not fit a checkpoint.

    Raises:
        BadPromptSet: the prompt set declares fewer views.
    """
    chat, longest = checkpoint.chat_format, 0
    grid = draw(trial_grid(16), prompts.preparation.drawn)
    for task, seen in prompts.first_views(views).items():
        conversation = _conversation(prompts, task, readout)
        try:
            opening, followup = chat.stages(conversation)
        except BadChatTemplate as error:
            return [str(error)]
        pictures = {view.tile: view.preparation(prompts.preparation).prepare(grid) for view in seen}
        shown = sum(picture.tokens for picture in conversation.pictures)
        shown += max(picture.tokens for picture in pictures.values())
        longest = max(longest, len(opening) + shown + len(followup))
    longest += prompts.analysis_max_tokens + (prompts.numbers_max_tokens if readout == "numbers" else 1)
    if longest <= max_model_len:
        return []
    return [
        f"a conversation with the prompt set {prompts.name} can have {longest} tokens, more than"
        f" `max_model_len` {max_model_len}: raise it, or use a prompt set with fewer examples"
    ]


def _memory_need(settings: Settings) -> MemoryNeed:
    assert settings.model is not None
    assert settings.engine != "openai"  # only a local checkpoint is swapped
    checkpoint = read_checkpoint(settings.model, weights=settings.load_format != "dummy")
    return checkpoint.memory_need(settings, settings.engine, Hardware.here(settings, settings.engine))


def _vllm(checkpoint: Checkpoint, settings: Settings, prompts: PromptSet) -> ChatEngine:
    from teacher_server.engines.vllm.engine import VllmEngine  # noqa: PLC0415

    examples = max(len(_conversation(prompts, task, prompts.readout).pictures) for task in prompts.tasks)
    _, most = prompts.preparation.bounds
    return VllmEngine(checkpoint, settings, pictures=examples + 1, max_pixels=most)


def _conversation(prompts: PromptSet, task: str, readout: Readout) -> Conversation:
    return prompts.conversation(task=task, mission="", actions=prompts.tasks[task], readout=readout)


def _transformers(checkpoint: Checkpoint, settings: Settings, _: PromptSet) -> ChatEngine:
    from teacher_server.engines.transformers.engine import TransformersEngine  # noqa: PLC0415

    return TransformersEngine(checkpoint, settings)


def _onnx(checkpoint: Checkpoint, settings: Settings, _: PromptSet) -> ChatEngine:
    from teacher_server.engines.onnx.engine import OnnxEngine  # noqa: PLC0415

    return OnnxEngine(checkpoint, settings)


_ENGINES: dict[str, Callable[[Checkpoint, Settings, PromptSet], ChatEngine]] = {
    "vllm": _vllm,
    "transformers": _transformers,
    "onnx": _onnx,
}
