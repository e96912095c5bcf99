"""A small tokenizer for a prompt set: byte-level, with each word and each stretch of JSON a single token."""

import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from gridworld.views import NAMES
from teacher_server.prompting.prompt_set import PromptSet

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

_JSON = (
    '{"agent": {"row": ',
    ', "column": ',
    ', "heading": "',
    '"}, "target": {"name": "',
    '", "row": ',
    '}, "hazards": [',
    '}, "hazards": [[',
    ", ",
    "], [",
    '], "front": "',
    ']], "front": "',
    '", "direction": "',
    '"}',
)
"""What stands between the values of an analysis."""
_TURNS = ("system", "user", "assistant", "\n")
_MISSIONS = "a an and avoid fetch floor free get go goal green lava must square the to you"
_LARGEST_NUMBER = 24


def make_tokenizer(prompts: PromptSet) -> Tokenizer:
    """The tokenizer: any text can be written with it, and the set's own in the fewest tokens.

    A text is cut into the longest pieces that the vocabulary holds, from the left, and what no piece covers
    into bytes.
    """
    pieces = sorted({*_JSON, *_TURNS, *_words(prompts), *map(str, range(_LARGEST_NUMBER + 1))})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    written = [to_bytes.pre_tokenize_str(piece)[0][0] for piece in pieces]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *written]))}
    # A piece that stands in the vocabulary is taken whole: there is nothing to merge
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    longest_first = "|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(longest_first), behavior="isolated"), to_bytes]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _words(prompts: PromptSet) -> Iterator[str]:
    """All words of the set and of the missions, as they begin a text and after a space."""
    texts = [*prompts.labels.values(), *_values(prompts.schema), *NAMES, _MISSIONS]
    for task, actions in prompts.tasks.items():
        told = prompts.conversation(task=task, mission="", actions=actions, readout="labels")
        messages = [*told.opening, told.question, told.followup]
        texts += [part["text"] for message in messages for part in message["content"] if "text" in part]
    for word in {word for text in texts for word in re.findall(r"[A-Za-z]+(?:-[a-z]+)*|[.,;?]", text)}:
        yield word
        if word[0].isalpha():
            yield f" {word}"


def _values(schema: Any) -> Iterator[str]:
    """The strings that a schema lists."""
    if isinstance(schema, dict):
        yield from (value for value in schema.get("enum", ()) if isinstance(value, str))
        for part in schema.values():
            yield from _values(part)
