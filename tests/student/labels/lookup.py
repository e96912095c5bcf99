"""Labels by observations, as tests want them."""

from typing import Any

import numpy as np

from student.algorithms.distillation import Labels
from student.labels.table import LabelTable


def labels_of(table: LabelTable, obs_BK: np.ndarray, **spending: Any) -> Labels:
    """Returns the labels of B states."""
    return table.labels_of(table.rows_of(obs_BK), **spending)
