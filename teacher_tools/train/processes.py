"""The processes that train one model together: this one alone, or those that `torchrun` starts."""

import atexit
import os
from collections.abc import Iterable, Mapping

import torch
from torch import distributed, nn


class Processes:
    """What a process knows of those that take each step with it, a part of its samples each.

    Args:
        device: cpu, cuda or cuda:N; with several processes and cuda, each has a GPU of its own.

    Attributes:
        rank: this process's number. 0 writes the run's files and the output.
        count: how many there are.
        device: this process's.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.count, self.device = 0, 1, torch.device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if device != "cpu":
                self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(self.device)
            distributed.init_process_group("gloo" if device == "cpu" else "nccl")
            atexit.register(distributed.destroy_process_group)
            self.rank, self.count = distributed.get_rank(), distributed.get_world_size()

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the sums over all processes, each of which calls this with the same names."""
        if self.count == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by the sum over all processes."""
        if self.count > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)

    def share_weights(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each weight by that of the first process."""
        if self.count > 1:
            for parameter in parameters:
                distributed.broadcast(parameter.detach(), 0)

    def wait(self) -> None:
        """Returns when all processes have called this."""
        if self.count > 1:
            distributed.barrier()
