"""`python -m student` is the `student` command."""

import sys

from student.cli import main

sys.exit(main())
