"""Reads probabilities over actions from a model's answer: from label scores, or from written numbers."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

_MAX_UNLISTED = 0.01
"""Most mass of the unlisted labels, as a share of the listed labels' mass."""


class Unreadable(ValueError):
    """The answer gives no distribution; `fault` names the kind of failure."""

    def __init__(self, fault: str, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


def single_token_problems(
    labels: Mapping[str, str], pieces: Mapping[str, Sequence[tuple[int, str]]], model: str
) -> list[str]:
    """Returns problems with labels: to be read in one step, each has to be a token of its own.

    Args:
        labels: action -> label.
        pieces: label -> its tokens, as ids and texts.
        model: name of the model whose tokens they are.
    """
    found, owners = [], dict[int, str]()
    for action, label in labels.items():
        ids, texts = [i for i, _ in pieces[label]], [text for _, text in pieces[label]]
        if len(ids) != 1:
            cut = f"{len(ids)} tokens of {model} {texts}"
            found.append(
                f"the label {label!r} of {action} is {cut}: choose a word or letter that is one token"
            )
        elif (owner := owners.setdefault(ids[0], action)) != action:
            found.append(f"the labels of {owner} and {action} are the same token ({label!r}): choose another")
    return found


def with_upper_bounds(known: Mapping[str, float], at_most: Mapping[str, float]) -> dict[str, float]:
    """Returns all labels' log-probabilities for an engine that lists only its most probable tokens.

    An unlisted label gets its upper bound. The unlisted labels together may have at most a hundredth of the
    listed labels' mass, so that at temperature 1 no probability is off by more than 0.01.

    Args:
        known: action -> log-probability (nats) of its label over the whole vocabulary.
        at_most: action -> upper bound of the log-probability, for unlisted labels.

    Raises:
        Unreadable: the unlisted labels may have more.
    """
    if at_most:
        listed, unlisted = (math.fsum(map(math.exp, scores.values())) for scores in (known, at_most))
        if not unlisted <= _MAX_UNLISTED * listed:
            raise Unreadable(
                "untold",
                f"the labels of {', '.join(at_most)} are unlisted and may have a probability of"
                f" {unlisted:.3g} together, more than a hundredth of the listed labels' {listed:.3g}",
            )
    return {**known, **at_most}


def from_label_scores(
    scores: Mapping[str, float], *, temperature: float, min_mass: float
) -> tuple[dict[str, float], float]:
    """Returns probabilities by a softmax over the labels' log-probabilities, and the labels' mass.

    p(a) = exp(s_a / T) / sum_b exp(s_b / T); mass = sum_a exp(s_a), the probability that the model answers
    with a label at all.

    Args:
        scores: action -> log-probability (nats) of its label over the whole vocabulary.
        temperature: T.
        min_mass: least mass of a readable answer.

    Raises:
        Unreadable: the mass is too small, or a score is not a number.
    """
    try:
        mass = math.fsum(math.exp(score) for score in scores.values())
    except OverflowError:
        mass = math.inf
    if not math.isfinite(mass):
        raise Unreadable("scores", f"the labels' log-probabilities are not all numbers: {dict(scores)}")
    if mass < min_mass:
        raise Unreadable(
            "label_mass",
            f"the labels have a probability of {mass:.3g} together, less than {min_mass:g}",
        )
    best = max(scores.values())
    if not math.isfinite(best):
        raise Unreadable("scores", "no label has any probability")
    weights = {action: math.exp((score - best) / temperature) for action, score in scores.items()}
    total = math.fsum(weights.values())
    return {action: weight / total for action, weight in weights.items()}, mass


def numbers_schema(actions: Sequence[str]) -> dict[str, Any]:
    """Returns the JSON schema of written probabilities: a number from 0 to 1 for each action, in order."""
    return {
        "type": "object",
        "properties": {action: {"type": "number", "minimum": 0, "maximum": 1} for action in actions},
        "required": list(actions),
        "additionalProperties": False,
    }


def from_numbers(text: str, actions: Sequence[str], *, tolerance: float) -> dict[str, float]:
    """Returns the probabilities that a model wrote, normalised to a sum of 1.

    Args:
        text: JSON of `numbers_schema`.
        actions: the actions that it has to name.
        tolerance: largest difference of the sum from 1.

    Raises:
        Unreadable: the text does not match the schema, or the sum is too far from 1.
    """
    try:
        numbers = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable("schema", f"the text is not JSON: {error}") from error
    if not isinstance(numbers, dict) or set(numbers) != set(actions):
        raise Unreadable("schema", f"the text does not name exactly {', '.join(actions)}")
    for action, number in numbers.items():
        # A bool is an int in Python; `not (0 <= NaN)` refuses NaN too
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
            raise Unreadable("schema", f"{action} has {number!r}, which is not a probability")
    total = math.fsum(numbers.values())
    if total == 0 or abs(total - 1) > tolerance:
        raise Unreadable("sum", f"the probabilities sum to {total:g}, not to 1 within {tolerance:g}")
    return {action: numbers[action] / total for action in actions}


def hardened(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Returns hard targets: 1 for the most probable action, the first among equals, and 0 for the others."""
    best = max(probabilities, key=probabilities.__getitem__)
    return {action: float(action == best) for action in probabilities}
