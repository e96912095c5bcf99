"""`student train --seeds`: the same training from several seeds, one after another."""

from collections.abc import Iterator
from typing import Any

from student.runs.folder import BadRun, Run
from student.settings import TrainSettings
from student.trainer import Stopped, train


def train_seeds(settings: TrainSettings) -> Iterator[dict[str, Any]]:
    """Trains a student from each seed, in the folder seed-N of `settings.out`.

    Yields:
        Each run's summary, when the run has ended.

    Raises:
        BadRun, BadKeyFile, TeacherError: as `train` does; before the first run where a later one's folder
            is taken.
        Stopped: a run stopped before its end; those before it are complete.
    """
    seeds = range(settings.seed, settings.seed + settings.seeds)
    folders = {seed: settings.out / f"seed-{seed}" for seed in seeds}
    for folder in folders.values():
        if Run.is_in(folder) and not settings.go_on:
            raise BadRun(f"{folder} holds a run already: go on with --go-on, or choose another --out")
    for seed, folder in folders.items():
        try:
            yield train(settings.model_copy(update={"seed": seed, "seeds": 1, "out": folder}))
        except Stopped as error:
            again = "the same command with --go-on goes on with all seeds"
            raise Stopped(f"seed {seed}: {error}; {again}", error.exit_code) from error
