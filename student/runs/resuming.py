"""How a run that is there is gone on with: what may be told anew, and what it was made with."""

from student.runs.folder import BadRun, Run
from student.settings import TrainSettings
from teacher_api.command_line import flag_of

_TOLD_ANEW = {
    *("resume", "go_on", "teacher", "teacher_key_file", "teacher_wait_s", "allow_teacher_change"),
    *("frames", "progress", "threads"),
}
"""What may be told anew when a run is resumed; the rest is the run's own."""


def resumed(run: Run, given: TrainSettings) -> TrainSettings:
    """A run's settings, with those that are told anew.

    Raises:
        BadRun: others are told than the run was made with.
    """
    settings = load_settings(run)
    told = {name: getattr(given, name) for name in given.model_fields_set}
    if given.go_on:
        told.pop("out", None)  # it is where the run was found, however it was written before
    if told.get("algo", settings.algo) != settings.algo:
        raise BadRun(
            f"{run.folder} learns by {settings.algo} and cannot go on by {given.algo}; start a new run with"
            " another --out"
        )
    changed = {name for name, value in told.items() if value != getattr(settings, name)}
    fixed = sorted(flag_of(TrainSettings, name) for name in changed - _TOLD_ANEW)
    if fixed:
        raise BadRun(
            f"{', '.join(fixed)} cannot be changed when a run is resumed; start a new one with another --out"
        )
    if settings.lambda_schedule == "linear" and not settings.lambda_frames and "frames" in changed:
        raise BadRun(
            "--frames cannot be changed when a run with --lambda-schedule linear and no --lambda-frames is"
            " resumed: its lambda falls"
            f" to 0 over {settings.frames} frames"
        )
    teacher = told.get("teacher", settings.teacher)
    if settings.teacher != "none" and teacher == "none":
        raise BadRun("the run learns from a teacher; resume it with --teacher ADDRESS")
    if settings.teacher == "none" and teacher != "none":
        raise BadRun("the run learns without a teacher and cannot take one on when it is resumed")
    return settings.model_copy(update={**told, "out": run.folder})


def load_settings(run: Run) -> TrainSettings:
    """The settings that a run was made with.

    Raises:
        BadRun: they are not those of this version.
    """
    stored = run.config["settings"]
    try:
        return TrainSettings.model_validate(stored)
    except ValueError as error:
        lines = " ".join(str(error).split("\n")[1:3])
        raise BadRun(f"{run.folder}/config.json is not of this version: {lines}") from error
