"""`python -m teacher_server` is the `teacher` command."""

import sys

from teacher_server.cli import main

sys.exit(main())
