"""Stable-Baselines3's PPO and A2C with a teacher: lambda * KL(teacher || student) is added to the loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from student.labels.own_loop import TeacherLabels


class _Taught(OnPolicyAlgorithm):
    """What the taught algorithms share.

    The gradient of the paper's equation 1 is the sum of the algorithm's own and that of lambda * KL. So each
    gradient step of the algorithm begins with the latter, for the states of the same minibatch.
    """

    def __init__(
        self,
        *args: Any,
        teacher: TeacherLabels | None = None,
        teacher_lambda: float = 1.0,
        lambda_timesteps: int = 100_000,
        **settings: Any,
    ) -> None:
        """As the algorithm without a teacher, and:

        Args:
            teacher: the teacher's labels; None: learn from rewards alone.
            teacher_lambda: lambda at the start; it falls linearly.
            lambda_timesteps: the timesteps at which lambda is 0 and the teacher is asked no more.
        """
        super().__init__(*args, **settings)
        self.teacher, self.teacher_lambda, self.lambda_timesteps = teacher, teacher_lambda, lambda_timesteps
        self._batch: Any = None
        """The observations of the minibatch that is learned from."""

    @property
    def present_lambda(self) -> float:
        """Lambda at this timestep."""
        if self.teacher is None:
            return 0.0
        return self.teacher_lambda * max(1 - self.num_timesteps / self.lambda_timesteps, 0.0)

    def train(self) -> None:
        """Updates the policy as the algorithm does, with lambda * KL in each gradient step."""
        weight = self.present_lambda
        if weight == 0:
            return super().train()
        with self._with_gradients_of_kl(weight):
            super().train()
        assert self.teacher is not None
        self.logger.record("teacher/lambda", weight)
        self.logger.record("teacher/asked", self.teacher.asked)
        self.logger.record("teacher/stored", self.teacher.stored)
        self.logger.record("teacher/failed", self.teacher.failed)
        return None

    def see(self, observations: Any) -> None:
        """Asks the teacher about the states that the environments are in."""
        assert self.teacher is not None
        assert self.env is not None
        env = self.env
        self.teacher.see(self._keys(observations), lambda i: env.env_method("render", indices=[i])[0])

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        made = super()._init_callback(callback, progress_bar)
        if self.teacher is None:
            return made
        both = CallbackList([_SeeStates(), made])
        both.init_callback(self)
        return both

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "teacher", "_batch"]

    def _keys(self, observations: Any) -> Any:
        """Returns observations as arrays of the space's own dtypes, from the environment or from a batch."""
        space: Any = self.observation_space
        if isinstance(observations, dict):
            return {name: _array(part, space.spaces[name].dtype) for name, part in observations.items()}
        return _array(observations, space.dtype)

    @contextmanager
    def _with_gradients_of_kl(self, weight: float) -> Iterator[None]:
        policy: Any = self.policy
        evaluate, zero_grad = policy.evaluate_actions, policy.optimizer.zero_grad

        def evaluate_and_note(obs: Any, *rest: Any) -> Any:
            self._batch = obs
            return evaluate(obs, *rest)

        def zero_grad_and_add(*args: Any, **settings: Any) -> None:
            zero_grad(*args, **settings)
            logits_BA = policy.get_distribution(self._batch).distribution.logits
            assert self.teacher is not None
            kl = self.teacher.kl(self._keys(self._batch), logits_BA)
            if kl.requires_grad:
                (weight * kl).backward()  # type: ignore[no-untyped-call]

        policy.evaluate_actions, policy.optimizer.zero_grad = evaluate_and_note, zero_grad_and_add
        try:
            yield
        finally:
            del policy.evaluate_actions, policy.optimizer.zero_grad


class _SeeStates(BaseCallback):
    """Shows the teacher each state, the first ones too, while lambda is above 0."""

    def _on_training_start(self) -> None:
        self._see(self.model._last_obs)

    def _on_step(self) -> bool:
        self._see(self.locals["new_obs"])
        return True

    def _see(self, observations: Any) -> None:
        model: Any = self.model
        if model.present_lambda > 0:
            model.see(observations)


class TaughtPPO(_Taught, PPO):
    """PPO that learns from a teacher too."""


class TaughtA2C(_Taught, A2C):
    """A2C that learns from a teacher too."""


def _array(observations: Any, dtype: Any) -> NDArray[Any]:
    if isinstance(observations, torch.Tensor):
        observations = observations.detach().cpu().numpy()
    return np.asarray(observations, dtype)
