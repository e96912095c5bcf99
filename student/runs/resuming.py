"""Settings of a run that is resumed: those of the run, and the few that may change."""

from pydantic import ValidationError

from student.runs.folder import BadRun, Run
from student.settings import TrainSettings
from teacher_api.validation import in_words

CHANGEABLE = {
    *("resume", "go_on", "teacher", "teacher_key_file", "teacher_wait_s", "allow_teacher_change"),
    *("frames", "progress", "threads"),
}
"""Settings that may change when a run is resumed."""


def resumed(run: Run, given: TrainSettings) -> TrainSettings:
    """Returns a run's settings with the changes that are given.

    Raises:
        BadRun: a setting changes that may not.
    """
    settings = load_settings(run)
    changes = {name: getattr(given, name) for name in given.model_fields_set}
    if given.go_on:
        changes.pop("out", None)  # the run was found there, whatever its path was before
    if changes.get("algo", settings.algo) != settings.algo:
        raise BadRun(
            f"{run.folder} learns by {settings.algo} and cannot be resumed with {given.algo}; start a new run"
            " with another `out`"
        )
    changed = {name for name, value in changes.items() if value != getattr(settings, name)}
    fixed = sorted(f"`{name}`" for name in changed - CHANGEABLE)
    if fixed:
        raise BadRun(
            f"{', '.join(fixed)} cannot be changed when a run is resumed; start a new run with another `out`"
        )
    if settings.lambda_schedule == "linear" and not settings.lambda_frames and "frames" in changed:
        raise BadRun(
            "`frames` cannot be changed when a run with `lambda_schedule` linear and no `lambda_frames` is"
            f" resumed: its lambda falls to 0 over {settings.frames} frames"
        )
    teacher = changes.get("teacher", settings.teacher)
    if settings.teacher != "none" and teacher == "none":
        raise BadRun("the run learns from a teacher; resume it with `teacher` ADDRESS")
    if settings.teacher == "none" and teacher != "none":
        raise BadRun("the run learns without a teacher and cannot be resumed with one")
    return settings.model_copy(update={**changes, "out": run.folder})


def load_settings(run: Run) -> TrainSettings:
    """Returns the settings that a run was started with.

    Raises:
        BadRun: config.json holds settings that this version does not know.
    """
    # Earlier versions had neither
    stored = {"judge_labels": False, "recover": False} | run.config["settings"]
    try:
        return TrainSettings.model_validate(stored)
    except ValidationError as error:
        raise BadRun(f"{run.folder}/config.json is not of this version: {in_words(error)}") from error
