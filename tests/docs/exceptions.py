"""What a page's reader does otherwise here than the page says, and why: one table for each way.

A command that no table names is run as the page has it. A new one needs an entry only where that cannot be:
the shortest first. An entry that fits no command fails the tests, so what leaves the pages leaves here too.
"""

import re

VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "STUDENT_FRAMES": "256",
    "STUDENT_EVALUATE_EVERY": "0",
    "STUDENT_EVALUATION_EPISODES": "2",
    "STUDENT_EPISODES": "2",
    "STUDENT_QUESTIONS": "2",
    "TEACHER_ENGINE": "transformers",
    "TEACHER_DEVICE": "cpu",
    "TEACHER_SCORE_EPISODES": "2",
    "TEACHER_SCORE_STATES": "8",
    "TEACHER_BENCH_QUESTIONS": "16",
    "TEACHER_BENCH_ROUNDS": "2",
    "TEACHER_BENCH_WARM_UP": "1",
    "TEACHER_TRAIN_DEVICE": "cpu",
}
"""Of every command: small sizes, and the engine that there is without vLLM. A page's flag wins over them."""

_READERS = {"SCORE": "teacher (score|compare|replay)", "BENCH": "teacher bench", "TRAIN": "teacher train"}

PLACEHOLDERS = {
    "DIR": "models/A",
    "HOST": "127.0.0.1",
    "ADDRESS": "127.0.0.1",
    "SEED": "2147483653",
}
"""Words that the reader replaces. models/A and models/B are checkpoints/compact, B with other weights."""

SHORTER = {
    "--frames 120000": "--frames 1280",
    "--frames 40960 ": "--frames 256 ",
    "--episodes 200": "--episodes 2",
    "--rate 5,10": "--rate 20,40",
    "for t in ALL_TASKS.values() for e in t.env_ids": "for e in ALL_TASKS['lava_gap'].env_ids[:1]",
    "--max-mib 1024": "--max-mib 1",
    "tensorboard --logdir runs": "tensorboard --logdir runs --port 0",
    "--samples 25600": "--samples 2 --batch-size 2 --precision float32",
}
"""Parts of commands that take minutes, and what stands for them here."""

SMOKE = {
    "envs": '["MiniGrid-LavaGapS5-v0"]',
    "seeds": "1",
    "frames": "256",
    "evaluate-every": "128",
    "evaluation-episodes": "2",
}
"""What sweeps/smoke.toml says here instead: two short runs."""

NOT_RUN = {
    r"([A-Z_]+=\S+ )*make .*": "the tests run within one of them",
    r"PGPASSWORD=\S+ teacher serve --store postgresql:.*": "a database; tests/fleet has one",
    r"ray start .*|(PGPASSWORD=\S+ )?teacher fleet .*": "a Ray cluster: tests/fleet/test_ray.py",
    r"source .venv/bin/activate": "the tests' PATH begins with their environment",
    r"(\S*/)?pip install .*": "the network; what can be installed: tools/resolve.py",
    r"(sudo )?apt-get .*": "the machine's own packages",
    r"git pull": "the network",
    r"([A-Z_]+=\S+ )*docker .*": "a Docker engine: tests/docker/test_compose.py",
    r"vllm serve .*": "vLLM: tests/operate/test_bench.py",
    r"teacher .* --openai-url .*": "a chat server: tests/teacher_server/teachers/test_attached.py",
    r"teacher bench .* --vs-openai .*": "vLLM: tests/operate/test_bench.py",
    r"teacher (check|serve|bench) .*models/Qwen2.5-VL-3B-Instruct.*": "7 GiB; smaller ones: tests/vllm",
    r"teacher serve .*DIR --prompts compact": "docs/reference/policy.md serves one with these flags",
    r"teacher serve .*DIR --prompts toy-text": "tests/teacher_server/prompting/test_toy_text.py does",
    r"teacher serve .*DIR --prompts ./my-\S+": "its labels: teachers/test_prompted_service.py",
    r"student train .*--frames 1000 .*": "the same: tests/teacher_tools/test_prompts.py",
    r"student train .*--task unlock_pickup .*": "another room: tests/student/test_other_environments.py",
    r"([A-Z_]+=\S+ )*(student (train|evaluate)|teacher score) .*:8002 .*": "no teacher on this port",
    r"student (train|evaluate) .*--task empty\b.*": "the same: teachers/test_prompted_service.py",
    r"teacher answers recover .*": "SQLite's own program: tests/teacher_tools/answers/test_recover.py",
    r"teacher replay .* --seed SEED.*": "an episode that failed: tests/teacher_tools/score/test_score.py",
    r"teacher train --base /models/.*": "the same; a small base: tests/teacher_tools/train/test_train.py",
    r"teacher train --out runs/compact": "hours: tests/teacher_tools/train/test_train.py",
    r"PYTHONPATH=examples teacher train .*": "minutes; tests/teacher_tools/train/test_general.py",
    r"teacher serve .* runs/lake/checkpoint .*": "the same",
    r"teacher serve .* runs/compact/checkpoint .*": "the same: tests/teacher_tools/train/test_train.py",
    r"teacher score --all --episodes 200": "a teacher of that: tests/operate/test_score.py",
    r"student sweep sweeps/NAME.toml .*": "hours: tests/student/experiments/test_sweep.py",
    r"student report runs/NAME": "what that leaves: tests/student/experiments/test_report.py",
    r"student sweep plan.toml .*--ray .*": "a Ray cluster: tests/student/experiments/test_sweep.py",
    r"python benchmarks/\S+.*": "minutes",
    r"(\S*/)?pytest .*": "the tests are running",
    r"\S*python -m student.demo.*": "a minute: tests/student/test_training.py",
}
"""Commands that cannot be run here, each by a pattern of the whole of it: the reason, and what runs the like.
Their flags, files, services and targets are looked up all the same."""


def not_run(text: str) -> str | None:
    """The pattern by which a command is not run; None where it is."""
    return next((pattern for pattern in NOT_RUN if re.fullmatch(pattern, text, re.DOTALL)), None)


def may_read(text: str, variable: str) -> bool:
    """Whether a command is one of those that a variable is for: others load all settings to know it."""
    family = re.match(r"TEACHER_(SCORE|BENCH|TRAIN)_", variable)
    return family is None or re.search(_READERS[family[1]], text) is not None


def as_typed(text: str) -> str:
    """A command with its placeholders replaced and its sizes made small."""
    for word, instead in PLACEHOLDERS.items():
        text = re.sub(rf"(?<![\w.-]){word}(?![\w.-])", instead, text)
    for part, instead in SHORTER.items():
        text = text.replace(part, instead)
    return text
