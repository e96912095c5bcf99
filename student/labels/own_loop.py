"""A teacher's labels for training loops of the user's own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from gridworld.pictures import Picture, encode_png
from student.algorithms.distillation import Labels, kl_to_teacher
from student.labels.table import LabelTable, check_task
from teacher_api.client import connect
from worlds.world import Observation, States

Observations = ArrayLike | Mapping[str, ArrayLike]
"""N observations: an array whose first axis is N, or several by name."""


class TeacherLabels:
    """The teacher's labels by state, each asked for once: what a loop needs to add lambda * KL to its loss.

        labels = TeacherLabels("http://127.0.0.1:8000", task="frozen_lake", actions=("left", "down", ...))
        labels.see(obs, lambda i: envs[i].render())     # in each step: asks about states that are new
        loss = loss + weight * labels.kl(obs, logits)   # in each update

    Questions are sent in the background; `of` and `kl` wait for their answers. Equal observations are one
    state. A state that the teacher gives no answer for has no label and no part in the KL.

    Args:
        url: the teacher's address.
        task: the task's key, one that the teacher knows.
        actions: the names of the A actions, in the order of their numbers.
        mission: of states that `see` is given no mission for.
        key_file: a file with the key that the teacher asks for.
        wait_s: seconds that the teacher may be away.

    Raises:
        TeacherError: the teacher cannot be reached, or does not know the task.
    """

    def __init__(
        self,
        url: str,
        *,
        task: str,
        actions: Sequence[str],
        mission: str = "",
        key_file: Path | None = None,
        wait_s: float = 60.0,
    ) -> None:
        self._client = connect(url, key_file=key_file, wait_s=wait_s)
        self._world, self._task = _SeenStates(tuple(actions), mission), task
        self._table: LabelTable | None = None
        self._rows: dict[bytes, int] = {}
        """The table's row of each state that was seen."""
        check_task(self._client.teacher(), url, task)

    def see(
        self,
        observations: Observations,
        draw: Callable[[int], Picture],
        missions: Sequence[str] | None = None,
    ) -> None:
        """Asks about those of N states that are new.

        Args:
            observations: of N environments, which are in these states now.
            draw: returns the picture of one of them, uint8 [H, W, 3], from its index.
            missions: of the N states; None: the constructor's. Observations have to tell missions apart.

        Raises:
            TeacherError: the teacher cannot be reached.
            ValueError: the observations have another size than before.
        """
        obs_NK = _encoded(observations)
        table = self._table or self._new_table(obs_NK.shape[1])
        if obs_NK.shape[1] != self._world.length:
            raise ValueError(
                f"an observation has {obs_NK.shape[1]} bytes, and had {self._world.length} before: give all"
                " observations in one shape and one dtype"
            )
        keys = [obs_K.tobytes() for obs_K in obs_NK]
        for i, key in enumerate(keys):
            if key not in self._rows and key not in self._world.pictures:
                self._world.pictures[key] = encode_png(np.asarray(draw(i), np.uint8))
                if missions is not None:
                    self._world.missions[key] = missions[i]
        rows_N = table.rows_of(obs_NK)
        self._rows |= zip(keys, rows_N.tolist(), strict=True)
        table.ask(rows_N)

    def _new_table(self, length: int) -> LabelTable:
        self._world.length = length
        self._table = LabelTable(self._world, self._client, task=self._task)
        self._table.start()
        return self._table

    def of(self, observations: Observations) -> Labels:
        """Returns the labels of B states: `probs_BA`, the teacher's probabilities, and `given_B`, whether it
        gave them. States that `see` was never given have none.

        Raises:
            TeacherError: the teacher was away for too long, or answers no question.
        """
        rows_B = np.array([self._rows.get(obs_K.tobytes(), -1) for obs_K in _encoded(observations)])
        labels = Labels.nothing(len(rows_B), len(self._world.actions))
        if self._table is not None:
            seen_B = torch.from_numpy(rows_B >= 0)
            found = self._table.labels_of(rows_B[rows_B >= 0])
            labels.probs_BA[seen_B], labels.given_B[seen_B] = found.probs_BA, found.given_B
        return labels

    def kl(self, observations: Observations, logits_BA: torch.Tensor) -> torch.Tensor:
        """Returns the mean KL(teacher || student) over the labelled ones of B states: the paper's equation 1.

        Args:
            logits_BA: the student's logits, or log-probabilities.

        Raises:
            TeacherError: see `of`.
        """
        labels, device = self.of(observations), logits_BA.device
        moved = Labels(labels.probs_BA.to(device), labels.given_B.to(device))
        return kl_to_teacher(logits_BA.log_softmax(1), moved)

    @property
    def asked(self) -> int:
        """Questions that the teacher answered, or failed to answer, itself."""
        return self._table.asked if self._table else 0

    @property
    def stored(self) -> int:
        """Questions that the teacher's store answered."""
        return self._table.store_hits if self._table else 0

    @property
    def failed(self) -> int:
        """States that the teacher gave no answer for."""
        return self._table.failed if self._table else 0

    def close(self) -> None:
        """Ends the requests in flight."""
        if self._table is not None:
            self._table.close()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _encoded(observations: Observations) -> NDArray[np.uint8]:
    """Returns the bytes of N observations, uint8 [N, K]."""
    if isinstance(observations, Mapping):
        parts = [observations[name] for name in sorted(observations)]
    else:
        parts = [observations]
    arrays = [np.ascontiguousarray(part) for part in parts]
    return np.concatenate([array.reshape(len(array), -1).view(np.uint8) for array in arrays], 1)


class _SeenStates(States):
    """The states that a loop was in, with the pictures of those whose labels are still missing."""

    keeps_pictures = True

    def __init__(self, actions: tuple[str, ...], mission: str) -> None:
        super().__init__("this environment", actions, 0, None)
        self.missions: dict[bytes, str] = {}
        self.pictures: dict[bytes, bytes] = {}
        self._mission = mission

    def mission(self, obs_K: Observation) -> str:
        """Returns the mission of a state."""
        return self.missions.get(obs_K.tobytes(), self._mission)

    def picture(self, obs_K: Observation) -> bytes:
        """Returns the picture of a state."""
        return self.pictures[obs_K.tobytes()]

    def keep(self, obs_K: Observation, picture: bytes | None) -> None:
        """Forgets a picture whose label has come."""
        if picture is None:
            self.pictures.pop(obs_K.tobytes(), None)
