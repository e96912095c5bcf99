"""`python -m teacher_tools` is the `teacher` command."""

import sys

from teacher_tools.cli import main

sys.exit(main())
