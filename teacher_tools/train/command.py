"""`teacher train`: makes a run's folder or finds it again, teaches, and leaves a checkpoint to be served."""

import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from teacher_api.command_line import INTERRUPTED, CannotStart, fail
from teacher_server.checkpoints.checkpoint import BadCheckpoint, Checkpoint, label_problems, read_checkpoint
from teacher_server.checkpoints.training_record import write_record
from teacher_server.engines.offline import set_offline
from teacher_server.prompting.prompt_set import BadPromptSet, PromptSet, load_prompt_set
from teacher_tools.train.settings import ForgeSettings

if TYPE_CHECKING:
    from teacher_tools.train.training import Run

_SETTINGS, _CHECKPOINT = "settings.json", "checkpoint"


class CannotForge(CannotStart):
    """Why no checkpoint can be made as asked."""


def main(asked: ForgeSettings) -> int:
    """Runs the command; returns 0 when the checkpoint is done.

    Raises:
        CannotStart: a setting, the folder, the prompt set or the base checkpoint cannot be used.
    """
    set_offline()
    settings = _kept(asked) if asked.resume else asked
    try:
        prompts = load_prompt_set(settings.prompts)
        _refuse_untold(settings, prompts)
        base = read_checkpoint(settings.base) if settings.base else None
        checkpoint = _folder(settings, prompts, base)
    except BadPromptSet as error:
        raise CannotForge(str(error)) from error
    except BadCheckpoint as error:
        raise CannotForge(f"--base {settings.base}: {error}") from error
    except OSError as error:
        raise CannotForge(f"--out {settings.out}: {error.strerror}") from error
    if problems := label_problems(checkpoint, prompts.labels):
        raise CannotForge("; ".join(problems))
    run = _run(settings, base, checkpoint)
    try:
        run.go_on()
    except KeyboardInterrupt:
        _write_card(settings, checkpoint.folder, run.device)
        again = f"saved; `teacher train --resume --out {settings.out}` goes on"
        steps = f"{run.step} of {sum(settings.steps)} steps"
        return fail(f"interrupted after {steps}; {again}", INTERRUPTED)
    _write_card(settings, checkpoint.folder, run.device)
    print(f"{checkpoint.folder}: {serve_command(checkpoint.folder, settings.prompts)}")
    return 0


def serve_command(folder: Path, prompts: str) -> str:
    """The command that serves a checkpoint in this environment."""
    engine = [] if find_spec("vllm") else ["--engine", "transformers"]
    words = [
        "teacher",
        "serve",
        "--teacher",
        "prompted",
        *engine,
        "--model",
        str(folder),
        "--prompts",
        prompts,
    ]
    return shlex.join(words)


def _refuse_untold(settings: ForgeSettings, prompts: PromptSet) -> None:
    for env_id, task in settings.tasks.items():
        if task not in prompts.tasks:
            raise CannotForge(
                f"--env: {env_id} is of the task {task}, of which the prompt set {settings.prompts} says"
                f" nothing; it knows {', '.join(prompts.tasks)}"
            )


def _kept(asked: ForgeSettings) -> ForgeSettings:
    """The settings of the run in a folder, on this machine."""
    path = asked.out / _SETTINGS
    try:
        return asked.on_this_machine(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CannotForge(f"--resume: {asked.out} holds no run; leave --resume out to begin one") from None
    except (OSError, ValueError, ValidationError) as error:
        raise CannotForge(f"--resume: {path} cannot be read; begin another run") from error


def _folder(settings: ForgeSettings, prompts: PromptSet, base: Checkpoint | None) -> Checkpoint:
    """The checkpoint that the run is for, with no weights looked at."""
    from teacher_tools.train.card import trained_on  # noqa: PLC0415
    from teacher_tools.train.folder import write_folder  # noqa: PLC0415
    from teacher_tools.train.models import copy_folder  # noqa: PLC0415

    folder = settings.out / _CHECKPOINT
    if not settings.resume:
        if (settings.out / _SETTINGS).exists():
            raise CannotForge(
                f"--out {settings.out} holds a run; add --resume to go on with it, or name another"
            )
        if base is not None:
            copy_folder(base, folder)
        else:
            write_folder(folder, prompts)
        (settings.out / _SETTINGS).write_text(
            json.dumps(settings.of_the_result(), indent=2) + "\n", encoding="utf-8"
        )
    write_record(folder, trained_on(settings.prompts, prompts, settings.env))
    return read_checkpoint(folder, weights=False)


def _run(settings: ForgeSettings, base: Checkpoint | None, checkpoint: Checkpoint) -> "Run":
    """The run, ready to go on."""
    try:
        import torch  # noqa: PLC0415

        from teacher_server.engines.processor import picture_processor  # noqa: PLC0415
        from teacher_tools.train.models import Adapted, Compact, Trainee  # noqa: PLC0415
        from teacher_tools.train.training import Run  # noqa: PLC0415

        device = torch.device(_device(settings.device, cuda=torch.cuda.is_available()))
        trainee: Trainee
        if base is not None:
            trainee = Adapted(base, settings.lora_rank, settings.seed, device)
        else:
            trainee = Compact(checkpoint.folder, settings.seed, device)
    except ImportError as error:
        raise CannotForge(f"it cannot be done here ({error}): pip install 'lvlm2p[forge]'") from error
    return Run(settings.out, settings, checkpoint, trainee, picture_processor(checkpoint.dimensions), device)


def _write_card(settings: ForgeSettings, folder: Path, device: Any) -> None:
    """Writes the card of a checkpoint that has just been saved."""
    from teacher_tools.train.card import card  # noqa: PLC0415
    from teacher_tools.train.training import REPORT_EVERY, read_metrics  # noqa: PLC0415

    digest = read_checkpoint(folder).digest()
    lines = read_metrics(settings.out)
    told = card(settings, lines, digest, str(device), REPORT_EVERY * settings.batch_size)
    (folder / "README.md").write_text(told, encoding="utf-8")


def _device(name: str, *, cuda: bool) -> str:
    if name == "auto":
        return "cuda" if cuda else "cpu"
    if name != "cpu" and not (name.partition(":")[0] == "cuda" and cuda):
        raise CannotForge(
            f"--device is {name!r}; it must be auto, cpu, or cuda or cuda:N where there is a GPU"
        )
    return name
