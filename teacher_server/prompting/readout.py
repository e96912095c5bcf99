"""From what a model says to probabilities over actions: by label tokens, or by numbers that it writes."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

_OPEN = 0.01
"""What labels that are not told may have of what those told have."""


class Unreadable(ValueError):
    """What the model said holds no distribution; `fault` names the kind of failure."""

    def __init__(self, fault: str, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


def single_token_problems(
    labels: Mapping[str, str], pieces: Mapping[str, Sequence[tuple[int, str]]], model: str
) -> list[str]:
    """Labels that are not one token each of their own: only those can be read in one step.

    Args:
        labels: action to label.
        pieces: label to its tokens: ids and texts.
        model: whose tokens they are.
    """
    found, owners = [], dict[int, str]()
    for action, label in labels.items():
        ids, texts = [i for i, _ in pieces[label]], [text for _, text in pieces[label]]
        if len(ids) != 1:
            cut = f"{len(ids)} tokens of {model} {texts}"
            found.append(f"the label {label!r} of {action} is {cut}: choose a word or letter that is one")
        elif (owner := owners.setdefault(ids[0], action)) != action:
            found.append(f"the labels of {owner} and {action} are the same token ({label!r}): choose another")
    return found


def with_upper_bounds(known: Mapping[str, float], at_most: Mapping[str, float]) -> dict[str, float]:
    """All labels' log-probabilities, where some engine tells those of its most probable tokens alone.

    A label that it does not tell gets the most that it may have. That is a hundredth of what the labels
    told have, all of them together, or it is no answer: at temperature 1 no probability is then further than
    0.01 off.

    Args:
        known: action to the natural log-probability of its label among all tokens.
        at_most: action to the largest it may be, for those not told.

    Raises:
        Unreadable: too much is left open.
    """
    if at_most:
        told, untold = (math.fsum(map(math.exp, scores.values())) for scores in (known, at_most))
        if not untold <= _OPEN * told:
            raise Unreadable(
                "untold",
                f"of the labels of {', '.join(at_most)} it is only known that they have a probability of"
                f" {untold:.3g} together at most, and the others have {told:.3g}",
            )
    return {**known, **at_most}


def from_label_scores(
    scores: Mapping[str, float], *, temperature: float, min_mass: float
) -> tuple[dict[str, float], float]:
    """Probabilities by a softmax over the labels' log-probabilities, and the labels' mass.

    p(a) = exp(s_a / T) / sum_b exp(s_b / T); mass = sum_a exp(s_a), which tells how much of its belief the
    model has in answering with a label at all.

    Args:
        scores: action to the natural log-probability of its label among all tokens.
        temperature: T.
        min_mass: a smaller mass is no answer.

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
            f"the labels have a probability of {mass:.3g} together; at least {min_mass:g} is asked",
        )
    best = max(scores.values())
    if not math.isfinite(best):
        raise Unreadable("scores", "no label has any probability")
    weights = {action: math.exp((score - best) / temperature) for action, score in scores.items()}
    total = math.fsum(weights.values())
    return {action: weight / total for action, weight in weights.items()}, mass


def numbers_schema(actions: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of probabilities written out: one number from 0 to 1 for each action, in order."""
    return {
        "type": "object",
        "properties": {action: {"type": "number", "minimum": 0, "maximum": 1} for action in actions},
        "required": list(actions),
        "additionalProperties": False,
    }


def from_numbers(text: str, actions: Sequence[str], *, tolerance: float) -> dict[str, float]:
    """The probabilities that a model wrote, made to sum to 1 where they nearly do.

    Args:
        text: JSON as `numbers_schema` describes it.
        actions: what it has to be about.
        tolerance: how far from 1 the sum may be.

    Raises:
        Unreadable: it is something else, or the sum is too far from 1.
    """
    try:
        numbers = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable("schema", f"it is not JSON: {error}") from error
    if not isinstance(numbers, dict) or set(numbers) != set(actions):
        raise Unreadable("schema", f"it is not about {', '.join(actions)}")
    for action, number in numbers.items():
        # A bool is an int to Python; and `not (0 <= NaN)` refuses NaN as well
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
            raise Unreadable("schema", f"{action} has {number!r}, which is no probability")
    total = math.fsum(numbers.values())
    if total == 0 or abs(total - 1) > tolerance:
        raise Unreadable("sum", f"the probabilities sum to {total:g}, not to 1 within {tolerance:g}")
    return {action: numbers[action] / total for action in actions}


def hardened(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Hard targets: 1 for the most probable action, the first among equals, and 0 for the rest."""
    best = max(probabilities, key=probabilities.__getitem__)
    return {action: float(action == best) for action in probabilities}
