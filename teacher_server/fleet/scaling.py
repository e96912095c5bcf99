"""How many replicas a fleet has: Ray Serve's controller calls this function, in a process of its own."""

from typing import Any

QUESTIONS = "questions"
"""The name of the figure that each replica reports: the questions that it has."""


def replicas_for_questions(context: Any) -> tuple[float, dict[str, Any]]:
    """Returns the replicas that the questions need; Ray Serve applies bounds and delays to it.

    replicas = questions of all replicas / questions that one replica is to have

    Args:
        context: Ray Serve's `AutoscalingContext`.
    """
    reported = (context.aggregated_metrics or {}).get(QUESTIONS, {})
    return sum(reported.values()) / context.config.target_ongoing_requests, {}
