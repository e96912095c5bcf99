"""A small byte-level tokenizer for a prompt set: each word and each run of JSON punctuation is one token."""

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from gridworld.tasks import ACTIONS
from gridworld.views import NAMES
from teacher_server.prompting.prompt_set import PromptSet
from teacher_server.settings import Readout

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_NUMBER, _TEXT = "\0", "\1"
"""Stand for values in an outline of an analysis."""
_PROBABILITIES = tuple(f"{percent / 100:.2f}" for percent in range(101))
_TURNS = ("system", "user", "assistant", "\n")
_MISSIONS = (
    "a an and avoid fetch find floor free get go goal green lava must object opening square the to you"
)
_LARGEST_NUMBER = 24


def make_tokenizer(prompts: PromptSet) -> Tokenizer:
    """Returns a tokenizer that can encode any text, and the prompt set's own texts in few tokens.

    It splits a text from the left into the longest pieces of the vocabulary, and the rest into bytes.
    """
    actions = dict.fromkeys([*ACTIONS, *(action for useful in prompts.tasks.values() for action in useful)])
    names = [piece for action in actions for piece in (f'{{"{action}": ', f', "{action}": ')]
    numbers = [*map(str, range(_LARGEST_NUMBER + 1)), *_PROBABILITIES]
    pieces = sorted({*_between_values(prompts.schema), *_TURNS, *_words(prompts), *names, *numbers, "}"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoded = [to_bytes.pre_tokenize_str(piece)[0][0] for piece in pieces]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *encoded]))}
    # Each piece is in the vocabulary as a whole, so there are no merges
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    longest_first = "|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(longest_first), behavior="isolated"), to_bytes]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _between_values(schema: Any) -> set[str]:
    """Returns the texts between the values of analyses that fit a schema, with the quotes of strings."""
    pieces = set()
    for items in range(3):
        text = json.dumps(_outline(schema, items)).replace(json.dumps(_NUMBER), _NUMBER)
        pieces |= {*text.replace(json.dumps(_TEXT).strip('"'), _NUMBER).split(_NUMBER)}
    return pieces


def _outline(schema: Any, items: int) -> Any:
    """Returns an analysis with stand-ins as values, and with `items` items in lists of any length.

    An empty list has a stand-in too: what begins after it is a piece of its own.
    """
    kind = schema.get("type", "string")
    if kind == "object":
        return {name: _outline(part, items) for name, part in schema["properties"].items()}
    if kind == "array":
        item = _outline(schema["items"], items)
        return [item] * schema.get("minItems", items) or [_NUMBER]
    return _TEXT if kind == "string" else _NUMBER


def _words(prompts: PromptSet) -> Iterator[str]:
    """Yields all words of the prompt set and of the missions, with and without a leading space."""
    texts = [*prompts.labels.values(), *_values(prompts.schema), *NAMES, _MISSIONS]
    for task, actions in prompts.tasks.items():
        for readout in get_args(Readout):
            conversation = prompts.conversation(task=task, mission="", actions=actions, readout=readout)
            messages = [*conversation.opening, conversation.question, conversation.followup]
            texts += [part["text"] for message in messages for part in message["content"] if "text" in part]
    for word in {word for text in texts for word in re.findall(r"[A-Za-z]+(?:-[a-z]+)*|[.,;?]", text)}:
        yield word
        if word[0].isalpha():
            yield f" {word}"


def _values(schema: Any) -> Iterator[str]:
    """Yields the strings in a schema's enums."""
    if isinstance(schema, dict):
        yield from (value for value in schema.get("enum", ()) if isinstance(value, str))
        for part in schema.values():
            yield from _values(part)
