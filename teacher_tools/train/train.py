"""`teacher train`: creates or resumes a run's folder, trains, and leaves a checkpoint that can be served."""

import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from gridworld.tasks import ALL_TASKS
from teacher_api.command_line import INTERRUPTED, CannotStart, fail
from teacher_api.files import write_json
from teacher_api.interrupts import Interrupted
from teacher_api.terminal import say
from teacher_server.checkpoints.checkpoint import BadCheckpoint, Checkpoint, label_problems, read_checkpoint
from teacher_server.checkpoints.training_record import read_record, write_record
from teacher_server.engines.offline import set_offline
from teacher_server.prompting.prompt_set import BadPromptSet, PromptSet, load_prompt_set
from teacher_tools.train.settings import TrainingSettings

if TYPE_CHECKING:
    from teacher_tools.train.processes import Processes
    from teacher_tools.train.training import Run

_SETTINGS, _CHECKPOINT = "settings.json", "checkpoint"


class CannotTrain(CannotStart):
    """The settings, the run's folder or the installation do not allow this training."""


def main(given: TrainingSettings) -> int:
    """Runs the command; returns 0 at its last step, 130 when a signal stopped it.

    Raises:
        CannotStart: a setting, the folder, the prompt set or the base checkpoint cannot be used.
    """
    set_offline()
    settings = _stored_settings(given) if given.resume else given
    try:
        prompts = load_prompt_set(settings.prompts)
        if not settings.env:
            settings = settings.model_copy(update={"env": _environments(prompts)})
        _check_tasks(settings, prompts)
        base = read_checkpoint(settings.base) if settings.base else None
        processes = _processes(settings.device)  # imports PyTorch, so after what can be refused at once
        if settings.batch_size < processes.count:
            raise CannotTrain(
                f"`batch_size` is {settings.batch_size}, fewer than {processes.count} processes"
            )
        if processes.rank == 0:
            _prepare_folder(settings, prompts, base)
        processes.wait()  # the other processes read what the first has written
        checkpoint = read_checkpoint(settings.out / _CHECKPOINT, weights=False)
    except BadPromptSet as error:
        raise CannotTrain(str(error)) from error
    except BadCheckpoint as error:
        raise CannotTrain(f"`base` {settings.base}: {error}") from error
    except OSError as error:
        raise CannotTrain(f"`out` {settings.out}: {error.strerror}") from error
    if problems := label_problems(checkpoint, prompts.labels):
        raise CannotTrain("; ".join(problems))
    run = _run(settings, base, checkpoint, processes)
    try:
        run.train()
    except Interrupted:
        if processes.rank:
            return INTERRUPTED
        _describe(settings, checkpoint.folder, run)
        return fail(f"interrupted after {_so_far(settings, run)}", INTERRUPTED)
    if processes.rank:
        return 0
    _describe(settings, checkpoint.folder, run)
    if run.step < sum(settings.steps):
        say(f"stopped after {_so_far(settings, run)}")
    print(f"{checkpoint.folder}: {serve_command(checkpoint.folder, settings.prompts)}")
    return 0


def _so_far(settings: TrainingSettings, run: "Run") -> str:
    resume = f"`teacher train --resume --out {settings.out}` resumes the run"
    return f"{run.step} of {sum(settings.steps)} steps; saved; {resume}"


def serve_command(folder: Path, prompts: str) -> str:
    """Returns the command that serves a checkpoint in this environment."""
    engine = [] if find_spec("vllm") else ["--engine", "transformers"]
    flags = ["--teacher", "prompted", *engine, "--model", str(folder), "--prompts", prompts]
    return shlex.join(["teacher", "serve", *flags])


def _environments(prompts: PromptSet) -> tuple[str, ...]:
    """Returns the environments of a prompt set's tasks.

    Raises:
        CannotTrain: there are none.
    """
    families = [ALL_TASKS[task] for task in prompts.tasks if task in ALL_TASKS]
    if not families:
        raise CannotTrain(
            f"`env` is missing: none is known for the prompt set's tasks, {', '.join(prompts.tasks)}"
        )
    return tuple(env_id for family in families for env_id in family.env_ids + family.also)


def _check_tasks(settings: TrainingSettings, prompts: PromptSet) -> None:
    for env_id, task in settings.tasks.items():
        if task not in prompts.tasks:
            raise CannotTrain(
                f"`env`: the task of {env_id} is {task}, which the prompt set {settings.prompts} does not"
                f" have; its tasks are {', '.join(prompts.tasks)}"
            )


def _stored_settings(given: TrainingSettings) -> TrainingSettings:
    """Returns the settings of the run in a folder, with the given settings of this machine."""
    path = given.out / _SETTINGS
    try:
        return given.on_this_machine(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CannotTrain(f"`resume`: {given.out} holds no run; leave out `resume` to start one") from None
    except (OSError, ValueError, ValidationError) as error:
        raise CannotTrain(f"`resume`: {path} cannot be read; start a new run in another folder") from error


def _prepare_folder(settings: TrainingSettings, prompts: PromptSet, base: Checkpoint | None) -> None:
    """Creates or finds the checkpoint that the run writes."""
    from teacher_tools.train.card import trained_on  # noqa: PLC0415
    from teacher_tools.train.compact import write_folder  # noqa: PLC0415
    from teacher_tools.train.models import copy_folder  # noqa: PLC0415

    folder = settings.out / _CHECKPOINT
    if not settings.resume:
        if (settings.out / _SETTINGS).exists():
            raise CannotTrain(
                f"`out` {settings.out} holds a run: add `resume` to resume it, or name another folder"
            )
        if base is not None:
            copy_folder(base, folder)
        else:
            write_folder(folder, prompts)
        write_json(settings.out / _SETTINGS, settings.stored())
    write_record(folder, trained_on(settings.prompts, prompts, settings.tasks))


def _processes(device: str) -> "Processes":
    try:
        import torch  # noqa: PLC0415

        from teacher_tools.train.processes import Processes  # noqa: PLC0415

        return Processes(_device(device, cuda=torch.cuda.is_available()))
    except ImportError as error:
        raise _lacking(error) from error


def _lacking(error: ImportError) -> CannotTrain:
    return CannotTrain(f"a package is missing ({error}): pip install 'lvlm2p[train]'")


def _run(
    settings: TrainingSettings, base: Checkpoint | None, checkpoint: Checkpoint, processes: "Processes"
) -> "Run":
    try:
        from teacher_server.engines.transformers.pictures import picture_processor  # noqa: PLC0415
        from teacher_tools.train.models import CompactModel, LoraModel, TrainableModel  # noqa: PLC0415
        from teacher_tools.train.training import Run  # noqa: PLC0415

        trainable: TrainableModel
        if base is not None:
            trainable = LoraModel(
                base, settings.lora_rank, settings.seed, processes.device, four_bit=settings.base_4bit
            )
        else:
            trainable = CompactModel(checkpoint.folder, settings.seed, processes.device)
    except ImportError as error:
        raise _lacking(error) from error
    return Run(
        settings.out, settings, checkpoint, trainable, picture_processor(checkpoint.dimensions), processes
    )


def _describe(settings: TrainingSettings, folder: Path, run: "Run") -> None:
    """Writes the training record and the model card of a checkpoint that has just been saved."""
    from teacher_tools.train.card import card  # noqa: PLC0415
    from teacher_tools.train.training import REPORT_EVERY, read_metrics  # noqa: PLC0415

    if (record := read_record(folder)) is not None:
        write_record(folder, record.model_copy(update={"samples": run.samples}))
    checkpoint = read_checkpoint(folder)
    text = card(
        settings,
        read_metrics(settings.out),
        family=checkpoint.dimensions.architecture.family,
        digest=checkpoint.digest(),
        samples=run.samples,
        seconds=run.seconds,
        device=str(run.device),
        last=REPORT_EVERY * settings.batch_size,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _device(name: str, *, cuda: bool) -> str:
    if name == "auto":
        return "cuda" if cuda else "cpu"
    if name != "cpu" and not (name.partition(":")[0] == "cuda" and cuda):
        raise CannotTrain(f"`device` is {name!r}; use auto or cpu, or cuda or cuda:N on a machine with a GPU")
    return name
