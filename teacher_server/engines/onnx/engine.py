"""Runs a checkpoint in ONNX Runtime: the fastest engine on a CPU, in this process, in float32."""

import torch

from teacher_server.engines.batching import Batches, Request, Take
from teacher_server.engines.local import LocalEngine
from teacher_server.engines.onnx.model import OnnxModel
from teacher_server.engines.onnx.runner import Runner

_SMALL = 2**28
"""Bytes of weights up to which each thread works on requests of its own; threads share a larger model's
arithmetic instead, which memory limits."""


class OnnxEngine(LocalEngine):
    """A `ChatEngine` on the CPU.

    A request joins the others at their next token. What prompts have in common up to the question's picture
    is computed once.
    """

    def load(self) -> Batches:
        """Loads the checkpoint.

        Raises:
            CannotLoad: the weights cannot be read, or the checkpoint needs what this engine does not compute.
        """
        checkpoint, settings = self.checkpoint, self.settings
        threads = settings.threads or torch.get_num_threads()
        workers = threads if checkpoint.weight_bytes("float32") <= _SMALL else 1
        model = OnnxModel(checkpoint, settings, threads // workers)
        free = [
            Runner(
                model,
                checkpoint,
                places=-(-settings.max_num_seqs // workers),
                longest=settings.max_model_len,
                prefix_bytes=checkpoint.prefix_cache_bytes(settings, "onnx") // workers,
            )
            for _ in range(workers)
        ]

        def run(requests: list[Request], take: Take) -> None:
            runner = free.pop()
            try:
                runner.run(requests, take)
            finally:
                free.append(runner)

        return Batches(run, 1, threads=workers)
