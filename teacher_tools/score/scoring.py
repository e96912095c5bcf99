"""Scores a teacher, environment by environment; the folder keeps each environment as soon as it is done."""

from pathlib import Path

from pydantic import ValidationError

from teacher_api.client import TeacherClient, TeacherError, connect
from teacher_api.command_line import CannotStart
from teacher_api.files import write_whole, writing
from teacher_api.terminal import Bar
from teacher_api.validation import in_words
from teacher_tools.score import measures
from teacher_tools.score.answers import CachedAnswers
from teacher_tools.score.episodes import actions_of, held_out_states, play_chance, play_teacher
from teacher_tools.score.results import FORMAT, PolicyResult, Score, TaskScore
from teacher_tools.score.settings import ScoringSettings

_FILE = "score.json"


class BadScore(CannotStart):
    """A folder holds no score, or not the expected one."""


def score_teacher(url: str, settings: ScoringSettings, out: Path | None) -> Score:
    """Returns a running teacher's score.

    Args:
        out: a folder that keeps each environment's results; those that it holds already are not measured
            again. None: nothing is kept.

    Raises:
        BadScore: the folder holds the score of another teacher or of other settings.
        CannotStart: the folder cannot be written.
        BadSetting: the settings name no environment.
        TeacherError: the teacher cannot be reached, or does not know the task.
    """
    environments = settings.environments
    key_file, wait_s = settings.teacher_key_file, settings.teacher_wait_s
    with connect(url, key_file=key_file, wait_s=wait_s, batch_size=settings.parallel) as client:
        info = client.teacher()
        for task in environments.values():
            if task not in info.tasks:
                raise TeacherError(
                    f"the teacher at {url} does not know {task}; its tasks are {', '.join(info.tasks)}"
                )
        asked_with = {name: getattr(settings, name) for name in ("episodes", "states", "seed")}
        score = Score(identity=info.identity, teacher=info.description, asked_with=asked_with)
        if out is not None:
            score = _stored(out, score)
        for env, task in environments.items():
            if env not in score.tasks or score.tasks[env].task != task:
                found = _score_task(client, score.identity, env, task, settings)
                score = score.model_copy(update={"tasks": score.tasks | {env: found}})
                if out is not None:
                    _save(out, score)
    return score.model_copy(update={"tasks": {env: score.tasks[env] for env in environments}})


def read_score(folder: Path) -> Score:
    """Returns the score that a folder holds.

    Raises:
        BadScore: the folder holds no score, or one that this version cannot read.
    """
    path = folder / _FILE
    try:
        return Score.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadScore(
            f"{folder} holds no score ({path}: {error.strerror}): give a folder of"
            " `teacher score --out`, or a teacher's address such as http://127.0.0.1:8000"
        ) from error
    except ValidationError as error:
        raise BadScore(
            f"{path} is not a score of format {FORMAT} ({in_words(error)}): score the teacher again with"
            " `teacher score --out`"
        ) from error


def _stored(out: Path, score: Score) -> Score:
    """Returns a folder's part of the score; creates the folder and an empty score if missing."""
    if not (out / _FILE).exists():
        _save(out, score)
        return score
    stored = read_score(out)
    if stored.identity != score.identity:
        raise BadScore(
            f"`out`: {out} holds the score of {stored.identity}, but {score.identity} answers now: use"
            " another folder"
        )
    if stored.asked_with != score.asked_with:
        made_with = ", ".join(f"`{name}` {value}" for name, value in stored.asked_with.items())
        raise BadScore(f"`out`: {out} holds a score with {made_with}: use these settings, or another folder")
    return stored


def _save(out: Path, score: Score) -> None:
    """Writes score.json; replaces the file atomically."""
    with writing("out", out):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / _FILE, f"{score.model_dump_json(indent=1)}\n".encode())


def _score_task(
    client: TeacherClient, identity: str, env: str, task: str, settings: ScoringSettings
) -> TaskScore:
    with Bar(None, "questions", name=env, shown=settings.progress) as bar:

        def show(part: str) -> None:
            bar.update(figures={part: ""})

        asked = CachedAnswers(client, actions_of(env), identity, lambda: bar.update(len(asked.outcomes)))
        show("chance")
        chance = play_chance(env, task, episodes=settings.episodes, seed=settings.seed)
        show("finding states")
        states = held_out_states(env, task, settings.states, settings.seed)
        show(f"{len(states)} states")
        outcomes = []
        for start in range(0, len(states), settings.parallel):
            outcomes += asked.about([state.scene for state in states[start : start + settings.parallel]])
        answers = measures.judged(states, outcomes)
        played: dict[str, PolicyResult | None] = dict.fromkeys(("argmax", "sampled"))
        for name in played if answers else ():
            show(f"{settings.episodes} episodes, {name}")
            played[name] = play_teacher(
                asked,
                env,
                task,
                sampled=name == "sampled",
                episodes=settings.episodes,
                seed=settings.seed,
                together=settings.parallel,
            )
        show("done")
    return TaskScore(
        env=env,
        task=task,
        states=len(states),
        **played,
        chance=chance,
        agreement=measures.agreement(states, outcomes),
        perception=measures.perception(answers),
        reasoning=measures.reasoning(answers),
        calibration=measures.calibration(answers),
        confidence=measures.confidence(answers),
        costs=measures.costs(asked.outcomes, asked.seconds),
        mistakes=measures.worst_mistakes(answers),
    )
