"""The `teacher` command."""

from collections.abc import Sequence

from teacher_api.commands import Command, Group, dispatch

COMMANDS = Group(
    "serve, measure and train teachers",
    {
        "serve": Command(
            "answer questions over HTTP", "teacher_server.settings:Settings", "teacher_server.serve:main"
        ),
        "bench": Command(
            "measure how fast teachers answer: latency, rates, where the time goes",
            "teacher_tools.bench.settings:BenchSettings",
            "teacher_tools.bench.bench:main",
            takes_rest=True,
        ),
        "check": Command(
            "examine a checkpoint's folder: can it be served here, offline?",
            "teacher_tools.check:CheckSettings",
            "teacher_tools.check:main",
        ),
        "swap": Command(
            "have a running teacher serve another checkpoint, without a restart",
            "teacher_tools.swap:SwapSettings",
            "teacher_tools.swap:main",
        ),
        "fleet": Group(
            "serve a teacher on a Ray cluster, as replicas behind one address",
            {
                "deploy": Command(
                    "start the replicas, or exchange those that run, one after the other",
                    "teacher_tools.fleet:DeploySettings",
                    "teacher_tools.fleet:deploy",
                ),
                "delete": Command(
                    "end the replicas when they have answered",
                    "teacher_tools.fleet:DeleteSettings",
                    "teacher_tools.fleet:delete",
                ),
            },
        ),
        "score": Command(
            "measure how good a running teacher is: as a policy, against the planner, stage by stage",
            "teacher_tools.score.settings:ScoreSettings",
            "teacher_tools.score.score:main",
        ),
        "replay": Command(
            "list a score's failed episodes, or play one again, step by step",
            "teacher_tools.score.settings:ReplaySettings",
            "teacher_tools.score.replay:main",
        ),
        "compare": Command(
            "put scored or running teachers side by side, on one page",
            "teacher_tools.score.settings:CompareSettings",
            "teacher_tools.score.compare:main",
        ),
        "answers": Group(
            "show, export, import, recover, count or prune the stored answers",
            {
                "show": Command(
                    "list the newest answers",
                    "teacher_tools.answers.settings:ShowSettings",
                    "teacher_tools.answers.command:show",
                ),
                "export": Command(
                    "write answers into a file, to keep or for another machine; --csv: as a table",
                    "teacher_tools.answers.settings:ExportSettings",
                    "teacher_tools.answers.command:export_answers",
                ),
                "import": Command(
                    "read exported answers into a store",
                    "teacher_tools.answers.settings:ImportSettings",
                    "teacher_tools.answers.command:import_answers",
                ),
                "recover": Command(
                    "add the answers of a damaged store to a sound one",
                    "teacher_tools.answers.settings:RecoverSettings",
                    "teacher_tools.answers.command:recover_answers",
                ),
                "stats": Command(
                    "count the answers and check the store: its size and whether it is damaged",
                    "teacher_tools.answers.settings:StatsSettings",
                    "teacher_tools.answers.command:stats",
                ),
                "prune": Command(
                    "delete answers, by teacher, age or size, and free their disk space",
                    "teacher_tools.answers.settings:PruneSettings",
                    "teacher_tools.answers.command:prune",
                ),
            },
        ),
        "train": Command(
            "train a checkpoint to teach: a small one from scratch, or adapters for a large one",
            "teacher_tools.train.settings:TrainingSettings",
            "teacher_tools.train.train:main",
        ),
        "prompts": Group(
            "list the prompt sets, or show the conversation that a model gets",
            {
                "list": Command(
                    "list the prompt sets by name",
                    "teacher_tools.prompts:ListSettings",
                    "teacher_tools.prompts:list_sets",
                ),
                "show": Command(
                    "show the conversation about one picture",
                    "teacher_tools.prompts:ShowSettings",
                    "teacher_tools.prompts:show",
                ),
            },
        ),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 failed while running, 2 could not start."""
    return dispatch("teacher", COMMANDS, arguments)
