"""Keeps the libraries under an engine offline."""

import os

_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    # The service prints its address to stdout; vLLM's log on a full pipe there would block vLLM
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "DO_NOT_TRACK": "1",
}


def set_offline() -> None:
    """Turns off model downloads and usage reports in this process and in those that it starts.

    Call it before importing transformers, vllm, xgrammar or onnxruntime: huggingface_hub, vLLM's logger and
    onnxruntime read the variables when they are imported.
    """
    os.environ.update(_VARIABLES)
