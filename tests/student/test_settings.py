"""Settings: where a default comes from, what overrides it, and what is refused."""

import pytest

from student.settings import TrainSettings, train_settings_for
from teacher_api.command_line import BadSetting, parse

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("flags", "preset", "rollout_steps", "optimiser"),
    [
        ([], "alone", 128, "adam"),
        (["--teacher", "none", "--algo", "a2c"], "alone", 5, "rmsprop"),
        (["--teacher", "http://x"], "fast", 16, "adam"),
        (["--teacher", "http://x", "--algo", "a2c"], "fast", 5, "adam"),
        (["--preset", "paper", "--algo", "soft-q"], "paper", 128, "adam"),
        (["--preset", "paper", "--algo", "a2c"], "paper", 5, "rmsprop"),
    ],
)
def test_defaults_depend_on_teacher_preset_and_algorithm(
    flags: list[str], preset: str, rollout_steps: int, optimiser: str
) -> None:
    settings = parse(TrainSettings, flags)
    found = (settings.preset, settings.rollout_steps, settings.optimiser)
    assert found == (preset, rollout_steps, optimiser)


def test_what_is_given_overrides_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--lambda", "0.3", "--normalise-advantages", "--preset", "paper", "--algo", "a2c"]
    monkeypatch.setenv("STUDENT_ROLLOUT_STEPS", "8")
    monkeypatch.setenv("STUDENT_TEACHER", "http://x")
    settings = parse(TrainSettings, [*flags, "--environments", "16"])
    assert (settings.teacher_lambda, settings.normalise_advantages) == (0.3, True)
    assert (settings.environments, settings.rollout_steps, settings.frames) == (16, 8, 20_000)
    assert parse(TrainSettings, []).preset == "fast"
    monkeypatch.setenv("STUDENT_PRESET", "paper")
    assert parse(TrainSettings, []).frames == 20_000


def test_the_former_name_of_soft_q_learning_is_read() -> None:
    settings = parse(TrainSettings, ["--algo", "dqn", "--buffer-size", "9"])
    assert settings == parse(TrainSettings, ["--algo", "soft-q", "--buffer-size", "9"])
    assert settings.in_force()["algo"] == "soft-q"


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
            "--algo (or STUDENT_ALGO): unknown algorithm 'sac': choose one of ppo, a2c, soft-q",
        ),
        (
            ["--preset", "slow"],
            "--preset (or STUDENT_PRESET): Input should be 'fast', 'alone' or 'paper', not 'slow'",
        ),
        (
            ["--algo", "a2c", "--epochs", "2", "--clip", "0.1"],
            "`clip`, `epochs` cannot be used with `algo` a2c",
        ),
        (
            ["--go-on", "--resume", "runs/x"],
            "`go_on` cannot be used with `resume`: it resumes the run in `out`",
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
        (["--teacher", "http://x"], "60000", "16"),
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
    assert f"environment steps to train for, over all environments (default: {frames})" in shown
    assert f"steps in each environment between updates (default: {steps})" in shown
