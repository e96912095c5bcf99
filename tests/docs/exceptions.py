"""What a page's reader does otherwise here than the page says, and why: one table for each way.

A command that no table names is run as the page has it. A new one needs an entry only where that cannot be:
the shortest first. An entry that fits no command fails the tests, so what leaves the pages leaves here too.
"""

import re

VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "STUDENT_FRAMES": "640",
    "STUDENT_EVALUATE_EVERY": "0",
    "STUDENT_EVALUATION_EPISODES": "2",
    "STUDENT_EPISODES": "2",
    "STUDENT_QUESTIONS": "2",
    "TEACHER_ENGINE": "transformers",
    "TEACHER_DEVICE": "cpu",
    "TEACHER_PROMPTS": "compact",
    "TEACHER_SCORE_EPISODES": "2",
    "TEACHER_SCORE_STATES": "8",
    "TEACHER_BENCH_QUESTIONS": "20",
    "TEACHER_FORGE_DEVICE": "cpu",
}
"""Of every command: small sizes, and the engine that there is without vLLM. A page's flag wins over them."""

PLACEHOLDERS = {
    "DIR": "models/A",
    "HOST": "127.0.0.1",
    "ADDRESS": "127.0.0.1",
    "SEED": "2147483653",
}
"""Words that the reader replaces. models/A and models/B are checkpoints/compact, B with other weights."""

SHORTER = {
    "--frames 120000": "--frames 1280",
    "--episodes 200": "--episodes 2",
    "for t in ALL_TASKS.values() for e in t.env_ids": "for e in ALL_TASKS['lava_gap'].env_ids[:1]",
    "--max-mib 1024": "--max-mib 1",
    "tensorboard --logdir runs": "tensorboard --logdir runs --port 0",
    "--samples 25600": "--samples 2 --batch-size 2 --precision float32",
}
"""Parts of commands that take minutes, and what stands for them here."""

NOT_RUN = {
    r"make .*": "the tests run within one of them",
    r"source .venv/bin/activate": "the tests' PATH begins with their environment",
    r"(\S*/)?pip install .*": "the network: make setup installs all extras but vllm and ray",
    r"(sudo )?apt-get .*": "the machine's own packages",
    r"git pull": "the network",
    r"([A-Z_]+=\S+ )*docker .*": "a Docker engine: make test-docker",
    r"vllm serve .*": "vLLM: make test-operate",
    r"teacher .* --openai-url .*": "a chat server: tests/teacher_server/test_attached.py",
    r"teacher bench .* --vs-openai .*": "a chat server: tests/teacher_server/test_bench_command.py",
    r"teacher (check|serve|bench) .*models/Qwen2.5-VL-3B-Instruct.*": "7 GiB of weights",
    r"teacher serve .*--model DIR --prompts (compact|./my-\S+)": "a checkpoint that knows those labels",
    r"student (train|evaluate) .*--task empty .*": "that checkpoint's answers",
    r"student evaluate .*--task empty": "the same",
    r"student train --seeds .*": "many runs: tests/student/test_control.py",
    r"student report runs/alone runs/taught": "those runs: tests/student/test_report.py",
    r"teacher replay .* --seed SEED.*": "an episode that failed: tests/teacher_server/test_score.py",
    r"teacher forge --base /models/.*": "7 GiB of weights",
    r"teacher forge --out runs/forge": "38 minutes: tests/teacher_server/test_forge_training.py",
    r"teacher serve .*--model runs/forge/checkpoint .*": "what forge makes in 38 minutes",
    r"teacher score --all --episodes 200": "a teacher that forge makes in 38 minutes",
    r"student sweep sweeps/NAME.toml .*": "hours: README.md runs sweeps/smoke.toml",
    r"student report runs/NAME": "the same",
    r"student sweep plan.toml .*--ray .*": "a Ray cluster: tests/student/test_sweep.py",
    r"python benchmarks/\S+.*": "minutes",
    r"(\S*/)?pytest .*": "the tests are running",
    r"\S*python -m student.demo.*": "a minute: tests/student/test_training.py",
}
"""Commands that cannot be run here, each by a pattern of the whole of it, with the reason and what runs it.
Their flags, files, services and targets are looked up all the same."""


def not_run(text: str) -> str | None:
    """The pattern by which a command is not run; None where it is."""
    return next((pattern for pattern in NOT_RUN if re.fullmatch(pattern, text, re.DOTALL)), None)


def as_typed(text: str) -> str:
    """A command with its placeholders replaced and its sizes made small."""
    for word, instead in PLACEHOLDERS.items():
        text = re.sub(rf"(?<![\w.-]){word}(?![\w.-])", instead, text)
    for part, instead in SHORTER.items():
        text = text.replace(part, instead)
    return text
