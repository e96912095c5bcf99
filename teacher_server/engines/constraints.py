"""The grammar that constrains a model to a JSON schema; all engines use this one, so they write alike."""

import json
from functools import lru_cache
from typing import Any

import xgrammar


def grammar_of(schema: dict[str, Any]) -> str:
    """Returns the EBNF of the schema's JSON on one line, with one space after each comma and colon."""
    return _grammar_of(json.dumps(schema))


@lru_cache(maxsize=64)
def _grammar_of(schema: str) -> str:
    return str(xgrammar.Grammar.from_json_schema(schema, any_whitespace=False, separators=(", ", ": ")))
