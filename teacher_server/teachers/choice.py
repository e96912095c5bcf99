"""Which teacher the settings ask for, made ready to start; what cannot be served is refused here."""

from collections.abc import Callable

from gridworld.pictures import draw
from teacher_server.chat import BadChatTemplate, ChatFormat
from teacher_server.checkpoint import (
    BadCheckpoint,
    Checkpoint,
    label_problems,
    memory_problems,
    quantisation_problems,
    read_checkpoint,
)
from teacher_server.checkpoint.memory import Hardware, MemoryNeed
from teacher_server.engines import ChatEngine
from teacher_server.engines.openai import CannotAttach
from teacher_server.interviews.token_ids import TokenInterviewer
from teacher_server.prompts import BadPromptSet, Conversation, PromptSet, load_prompt_set
from teacher_server.settings import Readout, Settings
from teacher_server.teachers import Teacher
from teacher_server.teachers.attached import attach
from teacher_server.teachers.planner import PlannerTeacher
from teacher_server.teachers.prompted import PromptedTeacher, ReadingOut, room
from teacher_server.teachers.uniform import UniformTeacher


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


def same_teacher(settings: Settings, identity: str) -> PromptedTeacher:
    """The prompted teacher that the settings asked for before, once more and not started: its files are read.

    Raises:
        CannotTeach: it would be another one by now, or there cannot be one any more.
    """
    again = choose_teacher(settings, check_memory=False)
    if again.identity != identity:
        raise CannotTeach(f"--model {settings.model}: its files have changed since it was loaded")
    assert isinstance(again, PromptedTeacher)
    return again


def _prompted(settings: Settings, check_memory: bool, leaving: Settings | None) -> PromptedTeacher:
    if settings.engine == "openai":
        return attach(settings, load_prompt_set(settings.prompts))
    if settings.model is None:
        raise CannotTeach("--teacher prompted needs --model, the folder of a Qwen2.5-VL checkpoint")
    prompts = load_prompt_set(settings.prompts)
    dummy = settings.load_format == "dummy"
    checkpoint = read_checkpoint(settings.model, weights=not dummy)
    problems = label_problems(checkpoint, prompts.labels)
    problems += quantisation_problems(checkpoint, settings, settings.engine)
    if check_memory:
        left = _memory_need(leaving) if leaving else None
        problems += memory_problems(checkpoint, settings, settings.engine, leaving=left)
    if problems:
        raise CannotTeach("; ".join(problems))
    try:
        engine = _ENGINES[settings.engine](checkpoint, settings, prompts)
    except ImportError as error:
        other = ", or choose --engine transformers" if settings.engine == "vllm" else ""
        raise CannotTeach(
            f"{settings.engine} cannot be used here ({error}): pip install 'lvlm2p[{settings.engine}]'{other}"
        ) from error
    told = {
        "digest": checkpoint.digest(),
        "dtype": checkpoint.dtype() if settings.dtype == "auto" else settings.dtype,
    }
    if _scaled_once(checkpoint, prompts):
        told["own_bounds"] = "not applied"
    if dummy:  # each engine draws weights of its own
        told["dummy_weights"] = f"{settings.engine}, seed {settings.seed}"
    label_ids = {
        action: checkpoint.tokenizer.encode(label, add_special_tokens=False).ids[0]
        for action, label in prompts.labels.items()
    }
    interviewer = TokenInterviewer(engine, ChatFormat(checkpoint), label_ids)
    reading = ReadingOut.chosen(settings, prompts)
    teacher = PromptedTeacher(
        interviewer,
        prompts,
        reading,
        checkpoint=told,
        hosting={
            "model": str(settings.model),
            "engine": settings.engine,
            "prompts": prompts.name,
            "weight_bytes": checkpoint.weight_bytes(told["dtype"]),
        },
        seed=settings.seed,
    )
    if (longest := _longest(interviewer, prompts, reading.readout)) > settings.max_model_len:
        raise CannotTeach(
            f"a conversation with the prompt set {prompts.name} can have {longest} tokens, more than"
            f" --max-model-len {settings.max_model_len}: raise it, or take a prompt set with fewer examples"
        )
    return teacher


def _scaled_once(checkpoint: Checkpoint, prompts: PromptSet) -> bool:
    """Whether earlier versions scaled pictures to the checkpoint's own bounds, and answered otherwise."""
    bounds, preparation = checkpoint.own_bounds, prompts.preparation
    return bounds is not None and bounds.cut_into(preparation.min_pixels, preparation.max_pixels)


def _longest(interviewer: TokenInterviewer, prompts: PromptSet, readout: Readout) -> int:
    """Tokens of the longest conversation about a picture of 16 x 16 tiles, answers included."""
    picture = prompts.preparation.prepare(draw(room(16)))
    questions = max(
        interviewer.script(_conversation(prompts, task, readout)).tokens(picture) for task in prompts.tasks
    )
    return (
        questions + prompts.analysis_max_tokens + (prompts.numbers_max_tokens if readout == "numbers" else 1)
    )


def _memory_need(settings: Settings) -> MemoryNeed | None:
    if settings.model is None or settings.engine == "openai":
        return None
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
