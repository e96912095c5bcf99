"""`python -m teacher_server serve` runs the service without the operator's tools."""

import sys

from teacher_api.command_line import dispatch
from teacher_server.serve import main

_USAGE = """usage: python -m teacher_server serve ...
"""

sys.exit(dispatch("teacher", _USAGE, {"serve": main}, None, ("teacher_server.settings:Settings",)))
