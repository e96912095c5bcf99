"""`student train`: trains a student, or several from different seeds, one after another."""

from collections.abc import Iterator
from typing import Any

from student.runs.evaluate import print_report
from student.runs.folder import BadRun, Run
from student.settings import TrainSettings
from student.trainer import Stopped, train
from teacher_api.failures import in_words
from teacher_api.terminal import say


def main(settings: TrainSettings) -> int:
    """Runs the command; returns 0 when training is complete."""
    if settings.teacher == "none" and settings.preset == "fast" and settings.resume is None:
        say(
            "note: `preset` fast is for a student with a teacher; without one, `preset` alone, the default,"
            " learns faster"
        )
    successes = []
    for summary in train_seeds(settings) if settings.seeds > 1 else [train(settings)]:
        print(_in_a_line(summary))
        print_report({"sampled": summary["sampled"], "argmax": summary["argmax"]})
        successes.append(summary["success"])
    if settings.seeds > 1:
        print(
            f"{settings.seeds} seeds: success {sum(successes) / len(successes):.3f} on average, from"
            f" {min(successes):.3f} to {max(successes):.3f}; curves: student report {settings.out}"
        )
    return 0


def train_seeds(settings: TrainSettings) -> Iterator[dict[str, Any]]:
    """Trains a student from each seed, in the folder seed-N of `settings.out`; yields each run's summary.

    Raises:
        BadRun, BadKeyFile, TeacherError: see `train`; if a folder holds a run already, no run starts.
        Stopped: a run stopped before its end; the runs before it are complete.
    """
    seeds = range(settings.seed, settings.seed + settings.seeds)
    folders = {seed: settings.out / f"seed-{seed}" for seed in seeds}
    for folder in folders.values():
        if Run.is_in(folder) and not settings.go_on:
            raise BadRun(f"{folder} holds a run already: resume it with `go_on`, or choose another `out`")
    for seed, folder in folders.items():
        try:
            yield train(settings.model_copy(update={"seed": seed, "seeds": 1, "out": folder}))
        except Stopped as error:
            again = "the same command with `go_on` resumes all seeds"
            raise Stopped(f"seed {seed}: {error}; {again}", error.exit_code) from error


def _in_a_line(summary: dict[str, Any]) -> str:
    """Returns the frames, the speed and the questions of a run."""
    line = f"{summary['env']}: {summary['frames']} frames in {summary['seconds']:.0f} s of training"
    if summary["frames_per_second"]:
        line += f" ({summary['frames_per_second']:.0f} frames/s)"
    if summary["teacher"] is None:
        return f"{line}; without a teacher"
    line += f"; asked {summary['questions']} questions, {summary['store_hits']} more from the store"
    if summary["failed"]:
        # Runs of earlier versions kept no reasons
        why = in_words({each["reason"]: each["count"] for each in summary.get("failures", [])}, 3)
        line += f"; {summary['failed']} of these states have no label{f': {why}' if why else ''}"
    return line
