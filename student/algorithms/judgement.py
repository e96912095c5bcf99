"""Labels judged by experience: what becomes of a teacher's label in each state, and how much it counts.

Three kinds of mistakes are found in three ways:

- Where actions were tried in a state, a label's action may be known to be worse than another. The label is
  then replaced: target(a) ~ label(a) * exp((Q(a) - V) / TEMPERATURE), the closed form of KL-regularised
  policy improvement (Abdolmaleki et al., arXiv 1806.06920) with the label as the prior.
- Systematic mistakes (left and right exchanged) show in the confusion matrix of the teacher's best action and
  the best action known (Dawid and Skene, 1979). Labels are corrected by it in all states, also where nothing
  was tried (Patrini et al., arXiv 1609.03683).
- Random mistakes are learned last, because a network first learns what most labels agree on. So a label
  counts less where the student disagrees with it (`distillation.kl_to_teacher`), and is not learned by heart.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.algorithms.distillation import Labels
from student.algorithms.experience import Values

TEMPERATURE = 0.005
"""Of the values: at DISCOUNT, one step lost near a success of 0.8 is a factor of 3,000."""
_FAMILIAR = 4.0
"""Steps in a state after which its label counts by the square root of the student's agreement instead of the
agreement itself: experience will judge what the student often meets."""
_OFTEN = 8.0
"""Steps in a state from which it is learned without a label; of rarer states too little is known."""
_DECISIVE = 2.0
"""A difference of values, in units of TEMPERATURE, from which a state is decided by experience."""
_PRIOR_TRIES = 2.0
"""Tries of an action after which half of the evidence against it counts: a better way on may be found."""
_UNTRIED = 0.05
"""The factor of an untried action where another is known to lead to success."""
_ERROR = 0.05
"""The share of a label that is spread over all actions where experience decides."""
_PSEUDO_COUNT = 10.0
"""Decided states in which the teacher is assumed to have been right with each action, before the first."""
_SHARPNESS = 3.0
"""The power that corrected labels are raised to: the matrix spreads them."""
_FRUITLESS = 64.0
"""Steps in a state from which no success is known, after which half of its label is doubted."""
_DOUBTED = 0.3
"""A share of doubt from which a state counts as decided."""


def judged(
    labels: Labels, values: Values, policy: Callable[[NDArray[np.intp]], Tensor], *, taught: bool
) -> Labels:
    """Returns the targets of M states.

    Args:
        labels: the teacher's labels, as the settings `targets` and `teacher_temperature` take them.
        values: the values of the actions tried in these states.
        policy: returns the student's probabilities [B, A] in rows of these states. They take the place of
            the label where there is none.
        taught: whether labels count; otherwise only experience does.

    Returns:
        Targets [M, A]; `given_B` marks the states that have a label or are decided by experience; `powers_B`
        is 0 in the latter.
    """
    q_MA, v_M = torch.from_numpy(values.q_MA).float(), torch.from_numpy(values.v_M).float()
    tried_MA, visits_MA = torch.from_numpy(values.tried_MA), torch.from_numpy(values.visits_MA).float()
    weight_MA = visits_MA / (visits_MA + _PRIOR_TRIES)
    lead_MA = torch.where(tried_MA, weight_MA * (q_MA - v_M[:, None]) / TEMPERATURE, 0)
    evidence_MA = lead_MA.clamp(min=-30).exp().where(tried_MA | (v_M <= 0)[:, None], _UNTRIED)
    decided_M = -lead_MA.amin(1) > _DECISIVE
    labelled_M = labels.given_B if taught else torch.zeros_like(labels.given_B)

    targets_MA = labels.probs_BA
    if values.deterministic:
        targets_MA = _corrected(targets_MA, labels.given_B & decided_M & (v_M > 0), tried_MA, evidence_MA)
    prior_MA = torch.lerp(targets_MA, torch.full_like(targets_MA, 1 / targets_MA.shape[1]), _ERROR)
    targets_MA = torch.where(decided_M[:, None], _normalised(prior_MA * evidence_MA), targets_MA)
    visits_M = visits_MA.sum(1)
    if values.deterministic:
        doubt_M = torch.where(v_M <= 0, visits_M**2 / (visits_M**2 + _FRUITLESS**2), 0)
        decided_M = decided_M | (doubt_M > _DOUBTED)
        own_R = (decided_M & ~labelled_M & (visits_M >= _OFTEN)).nonzero().squeeze(1)
        own_RA = policy(own_R.numpy())
        # Without a label, experience moves probability among the tried actions alone
        among_RA = own_RA * tried_MA[own_R]
        moved_RA = _normalised(among_RA * evidence_MA[own_R]) * among_RA.sum(1, keepdim=True)
        targets_MA = targets_MA.index_copy(0, own_R, torch.where(tried_MA[own_R], moved_RA, own_RA))
        untried_MA = (visits_MA == 0) | (visits_MA > 0).all(1, keepdim=True)
        targets_MA = torch.lerp(targets_MA, _normalised(untried_MA * evidence_MA), doubt_M[:, None])
        labelled_M = labelled_M.index_fill(0, own_R, True)
    powers_M = torch.where(decided_M, 0, _FAMILIAR / (visits_M + _FAMILIAR))
    return Labels(targets_MA, labelled_M, powers_M)


def _corrected(label_MA: Tensor, known_M: Tensor, tried_MA: Tensor, evidence_MA: Tensor) -> Tensor:
    """Returns labels corrected by the confusion matrix of the teacher's best actions and the best known ones.

    A label is corrected where another action than the one it names is mostly better; random mistakes are not.

    Args:
        known_M: the states that the matrix is counted in, where the teacher's best action was tried.
    """
    actions = label_MA.shape[1]
    said_M = label_MA.argmax(1)
    known_M = known_M & tried_MA.gather(1, said_M[:, None]).squeeze(1)
    best_KA = _normalised((evidence_MA * tried_MA)[known_M])
    counts_AA = (torch.eye(actions) * _PSEUDO_COUNT).index_add(0, said_M[known_M], best_KA)
    confusion_AA = _normalised(counts_AA)
    corrected_MA = _normalised((label_MA @ confusion_AA) ** _SHARPNESS)
    mistaken_A = confusion_AA.argmax(1) != torch.arange(actions)
    return torch.where(mistaken_A[said_M][:, None], corrected_MA, label_MA)


def _normalised(weights_MA: Tensor) -> Tensor:
    relative_MA = weights_MA / weights_MA.amax(1, keepdim=True).clamp(min=1e-30)
    return relative_MA / relative_MA.sum(1, keepdim=True).clamp(min=1e-9)
