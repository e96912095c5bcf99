"""`teacher check`: reports whether a checkpoint can be served on this machine, and every problem."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg

from teacher_api.command_line import BadSetting, PromptSetName, flags_and_variables
from teacher_api.terminal import with_flags
from teacher_server.checkpoints.checkpoint import (
    BadCheckpoint,
    Checkpoint,
    label_problems,
    read_checkpoint,
    serving_problems,
)
from teacher_server.checkpoints.memory import Engine, Hardware, gib, need_problems
from teacher_server.engines.base import how_to_install
from teacher_server.engines.offline import set_offline
from teacher_server.prompting.chat_templates import TODAY
from teacher_server.settings import EngineSettings, Readout

if TYPE_CHECKING:
    from teacher_server.prompting.prompt_set import PromptSet

_LIBRARIES: dict[Engine, tuple[str, ...]] = {
    "vllm": ("vllm",),
    "transformers": ("torch", "transformers", "xgrammar"),
    "onnx": ("onnx", "onnxruntime", "torch", "transformers", "xgrammar"),
}


class CheckSettings(EngineSettings, BaseSettings):
    """Examines a checkpoint as `teacher serve` would with the same flags; loads no model."""

    model_config = flags_and_variables("teacher check", "TEACHER_")

    model: CliPositionalArg[Path | None] = Field(default=None, description="the checkpoint, a local folder")
    engine: Engine = Field(default="vllm", description="the engine that runs the checkpoint")
    prompts: PromptSetName | None = Field(
        default=None,
        description="a prompt set, by name or folder, whose conversations the checkpoint has to fit;"
        " default: the one that the checkpoint was trained with by `teacher train`, else minigrid",
    )
    readout: Readout | None = Field(default=None, description="the read-out; default: the prompt set's")


def main(settings: CheckSettings) -> int:
    """Runs the command; returns 0 if the checkpoint can be served, else 1.

    Raises:
        BadSetting: no checkpoint is named.
    """
    if settings.model is None:
        raise BadSetting("`model` is missing: name the checkpoint's folder")
    set_offline()
    problems = _library_problems(settings.engine)
    try:
        checkpoint = read_checkpoint(settings.model, weights=settings.load_format != "dummy")
        prompts, of_prompts = _prompts(settings, checkpoint.dimensions.vision.token_side)
        problems += _report(checkpoint, settings, prompts)
    except BadCheckpoint as error:
        print(_row("checkpoint", str(settings.model)))
        problems += error.problems
        _, of_prompts = _prompts(settings)
    problems += of_prompts
    print("\n".join(f"- {with_flags(' '.join(problem.split()))}" for problem in problems) or "ok")
    return 1 if problems else 0


def _report(checkpoint: Checkpoint, settings: CheckSettings, prompts: "PromptSet | None") -> list[str]:
    """Prints a checkpoint's properties and the memory it needs; returns the problems."""
    hardware = Hardware.here(settings, settings.engine)
    need = checkpoint.memory_need(settings, settings.engine, hardware)
    for name, value in _facts(checkpoint, prompts, settings.readout):
        print(_row(name, value))
    print(_row("memory needed", f"{need}, each" if len(need.places) > 1 else str(need)))
    for place in need.places:
        there, total = need.there(place), place.total
        known = "unknown" if there is None or total is None else f"{gib(there)} of {gib(total)}"
        print(_row("memory there", f"{known}, {place.name}"))
    # Last, because the digest reads all weights
    print(_row("digest", checkpoint.digest()))
    found = serving_problems(checkpoint, settings, settings.engine)
    found += need_problems(need, checkpoint.dimensions, settings, settings.engine, hardware)
    if prompts is None:
        return found
    from teacher_server.teachers.registry import conversation_problems  # noqa: PLC0415 - as above

    readout = settings.readout or prompts.readout
    return [
        *label_problems(checkpoint, prompts.labels),
        *conversation_problems(checkpoint, prompts, readout, settings.max_model_len),
        *found,
    ]


def _facts(
    checkpoint: Checkpoint, prompts: "PromptSet | None", readout: Readout | None
) -> Iterator[tuple[str, str]]:
    dimensions, tokenizer = checkpoint.dimensions, checkpoint.tokenizer
    layers = f"{dimensions.text.num_hidden_layers} layers of text, {dimensions.vision.depth} of vision"
    yield "checkpoint", str(checkpoint.folder)
    yield "architecture", f"{dimensions.architecture.name}, {dimensions.parameters():,} parameters, {layers}"
    stored = gib(sum(tensor.stored for tensor in checkpoint.tensors.values()))
    files = len(checkpoint.weights)
    on_disk = f"{stored} in {files} file{'s' if files > 1 else ''}" if files else "not examined"
    quantised = f", quantised by {checkpoint.quantisation}" if checkpoint.quantisation else ""
    yield "weights", f"{checkpoint.dtype()}{quantised}, {on_disk}"
    yield (
        "vocabulary",
        f"{tokenizer.get_vocab_size():,} tokens, embeddings for {dimensions.text.vocab_size:,}",
    )
    if checkpoint.trained_on is not None:
        yield "trained on", str(checkpoint.trained_on)
    if prompts is None:
        return
    yield "prompts", prompts.name
    if checkpoint.chat_template.dated:
        yield "chat template", f"includes the date, which is always {TODAY:%d %B %Y}"
    bounds = checkpoint.own_bounds
    if bounds is not None and bounds.cut_into(*prompts.preparation.bounds):
        yield (
            "pictures",
            f"as {prompts.name} prepares them; the folder's own bounds, {bounds}, are not applied",
        )
    ids = {
        action: tokenizer.encode(label, add_special_tokens=False).ids
        for action, label in prompts.labels.items()
    }
    yield "labels", ", ".join(f"{action} {label!r} {ids[action]}" for action, label in prompts.labels.items())
    from teacher_server.teachers.registry import training_notes  # noqa: PLC0415 - as above

    for note in training_notes(checkpoint.trained_on, prompts, readout or prompts.readout):
        yield "note", with_flags(note)


def _row(name: str, value: str) -> str:
    return f"{name:<14}{value}"


def _prompts(settings: CheckSettings, *side: int) -> "tuple[PromptSet | None, list[str]]":
    """Returns the prompt set, or None with the reason if the prompt set cannot be used.

    Args:
        side: pixels a side of the checkpoint's visual tokens, if the checkpoint is known.
    """
    # Imported late, because their imports take a second
    from teacher_server.prompting.prompt_set import BadPromptSet, load_prompt_set  # noqa: PLC0415
    from teacher_server.teachers.registry import prompts_of  # noqa: PLC0415

    try:
        return load_prompt_set(prompts_of(settings), *side), []
    except BadPromptSet as error:
        return None, [str(error)]
    except BadCheckpoint:  # reported with the checkpoint
        return None, []


def _library_problems(engine: Engine) -> list[str]:
    missing = [name for name in _LIBRARIES[engine] if find_spec(name) is None]
    print(_row("engine", f"{engine}, {'not installed' if missing else 'installed'}"))
    if not missing:
        return []
    return [f"{' and '.join(missing)} not installed here: {how_to_install(engine)}"]
