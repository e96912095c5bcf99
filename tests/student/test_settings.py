"""Settings: a preset's and an algorithm's defaults, and what wins over them."""

import pytest

from student.settings import TrainSettings, train_settings_for
from teacher_api.command_line import BadSetting, parse

pytestmark = pytest.mark.unit

_PAPER = {
    "frames": 20_000,
    "teacher_lambda": 0.01,
    "lambda_schedule": "constant",
    "targets": "soft",
    "environments": 3,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "entropy_coefficient": 0.01,
    "value_coefficient": 0.5,
    "normalise_advantages": False,
}
_PAPER_BY_ALGORITHM = {
    "ppo": {"rollout_steps": 128, "optimiser": "adam", "epochs": 4, "minibatch_size": 256, "clip": 0.2},
    "a2c": {"rollout_steps": 5, "optimiser": "rmsprop"},
}


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_the_papers_preset(algo: str) -> None:
    settings = parse(TrainSettings, ["--preset", "paper", "--algo", algo])
    expected = _PAPER | _PAPER_BY_ALGORITHM[algo]
    assert {name: getattr(settings, name) for name in expected} == expected


_FAST = {
    "frames": 60_000,
    "teacher_lambda": 1.0,
    "lambda_schedule": "linear",
    "lambda_frames": 4096,
    "teacher_temperature": 0.5,
    "replay_ratio": 32,
    "environments": 32,
    "optimiser": "adam",
    "learning_rate": 3e-4,
    "normalise_advantages": False,
}


@pytest.mark.parametrize(("algo", "rollout_steps"), [("ppo", 16), ("a2c", 5), ("dqn", 16)])
def test_the_fast_preset_is_the_default_with_a_teacher(algo: str, rollout_steps: int) -> None:
    settings = parse(TrainSettings, ["--algo", algo, "--teacher", "http://x"])
    expected = _FAST | {"algo": algo, "preset": "fast", "rollout_steps": rollout_steps}
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize("flags", [[], ["--teacher", "none"]])
def test_the_preset_of_a_student_alone_is_the_default_without(
    monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    settings = parse(TrainSettings, flags)
    assert settings == TrainSettings(preset="alone", algo="ppo")
    assert (settings.environments, settings.rollout_steps, settings.learning_rate) == (16, 128, 1e-3)
    monkeypatch.setenv("STUDENT_TEACHER", "http://x")
    assert parse(TrainSettings, []).preset == "fast"
    monkeypatch.setenv("STUDENT_PRESET", "alone")
    assert parse(TrainSettings, []).preset == "alone"


def test_what_is_given_wins_over_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--lambda", "0.3", "--normalise-advantages", "--preset", "paper", "--algo", "a2c"]
    monkeypatch.setenv("STUDENT_ROLLOUT_STEPS", "8")
    settings = parse(TrainSettings, [*flags, "--environments", "16"])
    assert (settings.teacher_lambda, settings.normalise_advantages) == (0.3, True)
    assert (settings.environments, settings.rollout_steps, settings.frames) == (16, 8, 20_000)
    monkeypatch.setenv("STUDENT_PRESET", "paper")
    assert parse(TrainSettings, []).frames == 20_000


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_what_is_in_force_makes_the_same_settings_again(algo: str) -> None:
    settings = parse(TrainSettings, ["--preset", "paper", "--algo", algo, "--targets", "hard"])
    stored = settings.in_force()
    assert TrainSettings.model_validate(stored) == settings
    assert {"algo", "preset", "lambda", "optimiser", "targets", "lambda_schedule"} <= stored.keys()
    assert ("epochs" in stored) == ("clip" in stored) == (algo == "ppo")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--algo", "sac"],
            "--algo (or STUDENT_ALGO): unknown algorithm 'sac': choose one of ppo, a2c, dqn",
        ),
        (
            ["--preset", "slow"],
            "--preset (or STUDENT_PRESET): Input should be 'fast', 'alone' or 'paper', not 'slow'",
        ),
        (
            ["--algo", "a2c", "--epochs", "2", "--clip", "0.1"],
            "--clip, --epochs: of no meaning to --algo a2c",
        ),
    ],
)
def test_refusals_say_what_is_wrong_and_no_more(flags: list[str], said: str) -> None:
    with pytest.raises(BadSetting) as refused:
        parse(TrainSettings, flags)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("flags", "frames", "steps"),
    [
        ([], "60000", "128"),
        (["--teacher", "http://x"], "60000", "16"),
        (["--preset", "paper"], "20000", "128"),
        (["--preset=paper", "--algo=a2c"], "20000", "5"),
    ],
)
def test_help_shows_the_defaults_in_force(
    capsys: pytest.CaptureFixture[str], flags: list[str], frames: str, steps: str
) -> None:
    arguments = [*flags, "--help"]
    with pytest.raises(SystemExit):
        parse(train_settings_for(arguments), arguments)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"steps in the environments to train for (default: {frames})" in shown
    assert f"steps in each environment between updates (default: {steps})" in shown
