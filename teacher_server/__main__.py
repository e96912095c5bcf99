"""`python -m teacher_server serve` runs the service without the operator's tools."""

import sys

from teacher_api.commands import Command, Group, dispatch

_SERVE = Command(
    "answer questions over HTTP", "teacher_server.settings:Settings", "teacher_server.serve:main"
)


def main() -> int:
    """Runs the command; returns the exit code."""
    return dispatch("teacher", Group("serve a teacher", {"serve": _SERVE}), None)


if __name__ == "__main__":
    sys.exit(main())
