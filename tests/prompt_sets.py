"""Prompt sets for models of random weights."""

import re
import shutil
from pathlib import Path

from teacher_server.prompts import SETS


def patient_prompts(folder: Path, name: str = "minigrid") -> Path:
    """A copy of a set with room for the longest analysis there can be: random weights seldom stop earlier."""
    shutil.copytree(SETS / name, folder)
    settings = (folder / "set.toml").read_text()
    settings = re.sub(r"analysis_max_tokens = \d+", "analysis_max_tokens = 900", settings)
    (folder / "set.toml").write_text(settings)
    return folder
