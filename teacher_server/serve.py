"""`teacher serve`: answers questions over HTTP."""

from collections.abc import Sequence

from teacher_api.command_line import CannotStart, parse


def main(arguments: Sequence[str]) -> int:
    """Serves until it is told to stop; returns the exit code, as `serve` does."""
    # The settings alone first, so that --help and a wrong flag answer at once
    from teacher_server.settings import Settings  # noqa: PLC0415

    settings = parse(Settings, arguments)
    from teacher_server.answers.errors import StoreError  # noqa: PLC0415
    from teacher_server.serving import CannotListen, serve  # noqa: PLC0415
    from teacher_server.teachers.registry import CannotTeach  # noqa: PLC0415

    try:
        return serve(settings)
    except (CannotListen, CannotTeach, StoreError) as error:
        raise CannotStart(str(error)) from error
