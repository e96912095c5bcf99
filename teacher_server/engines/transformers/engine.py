"""Runs a checkpoint under transformers: on any machine, in this process, one batch at a time."""

from teacher_server.engines.batching import Batches
from teacher_server.engines.local import LocalEngine
from teacher_server.engines.transformers.runner import Runner


class TransformersEngine(LocalEngine):
    """A `ChatEngine` that runs waiting requests in batches, either to generate or to score."""

    def load(self) -> Batches:
        """Loads the checkpoint.

        Raises:
            CannotLoad: the device is missing or too small, or the checkpoint is broken.
        """
        runner = Runner(self.checkpoint, self.settings)
        return Batches(lambda requests, take: runner.run(requests), self.settings.max_num_seqs)
