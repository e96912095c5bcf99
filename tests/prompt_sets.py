"""Prompt sets for random weights, which write until the schema stops them, a letter or two a token."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from teacher_server.prompting.prompt_set import PromptSet


def shortened(prompts: PromptSet, copy: Path) -> Path:
    """The set with strings of a tenth of their length and lists of two at most, in its examples as well.

    Then an analysis has about as many tokens as a worked example's, 100 to 130.
    """

    def shorter(schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        cut = {key: shorter(value) for key, value in schema.items()}
        if "maxLength" in cut:
            cut["maxLength"] = math.ceil(cut["maxLength"] / 10)
        if "maxItems" in cut:
            cut["maxItems"] = max(cut.get("minItems", 0), min(cut["maxItems"], 2))
        return cut

    def fitting(value: Any, schema: dict[str, Any]) -> Any:
        if isinstance(value, dict):
            return {key: fitting(part, schema["properties"][key]) for key, part in value.items()}
        if isinstance(value, list):
            return [fitting(part, schema["items"]) for part in value[: schema["maxItems"]]]
        return value[: schema["maxLength"]] if "maxLength" in schema else value

    shutil.copytree(prompts.folder, copy)
    schema = shorter(prompts.schema)
    (copy / "analysis.schema.json").write_text(json.dumps(schema))
    for file in copy.glob("examples/*/*.json"):
        example = json.loads(file.read_text())
        file.write_text(json.dumps(example | {"analysis": fitting(example["analysis"], schema)}))
    return copy
