"""Scores a teacher, environment by environment; what is complete is kept in the score's folder."""

import os
from pathlib import Path

from pydantic import ValidationError

from teacher_api.client import TeacherClient, TeacherError, connect
from teacher_api.command_line import CannotStart
from teacher_api.terminal import Bar
from teacher_api.validation import in_words
from teacher_tools.score import measures
from teacher_tools.score.asking import Asked
from teacher_tools.score.figures import FORMAT, Played, Score, TaskScore
from teacher_tools.score.policy import play_chance, play_teacher
from teacher_tools.score.settings import Scoring
from teacher_tools.score.world import actions_of, held_out_states

_FILE = "score.json"


class BadScore(CannotStart):
    """A folder that holds no score, or another one."""


def score_teacher(url: str, settings: Scoring, out: Path | None) -> Score:
    """A running teacher's score.

    Args:
        out: a folder that keeps each environment's figures as soon as they are there; those that it holds
            already are not made again. None: nothing is kept.

    Raises:
        BadScore: the folder holds the score of another teacher or of other settings, or cannot be written.
        BadSetting: the settings name no environment.
        TeacherError: the teacher cannot be asked, or does not know the task.
    """
    places = settings.places
    key_file, wait_s = settings.teacher_key_file, settings.teacher_wait_s
    with connect(url, key_file=key_file, wait_s=wait_s, batch_size=settings.parallel) as client:
        info = client.teacher()
        for task in places.values():
            if task not in info.tasks:
                raise TeacherError(f"the teacher at {url} knows {', '.join(info.tasks)}, and not {task}")
        asked_with = {name: getattr(settings, name) for name in ("episodes", "states", "seed")}
        score = Score(identity=info.identity, teacher=info.description, asked_with=asked_with)
        if out is not None:
            score = _begun(out, score)
        for env, task in places.items():
            if env not in score.tasks or score.tasks[env].task != task:
                found = _score_task(client, score.identity, env, task, settings)
                score = score.model_copy(update={"tasks": score.tasks | {env: found}})
                if out is not None:
                    _keep(out, score)
    return score.model_copy(update={"tasks": {env: score.tasks[env] for env in places}})


def read_score(folder: Path) -> Score:
    """The score that a folder holds.

    Raises:
        BadScore: it holds none that this version can read.
    """
    path = folder / _FILE
    try:
        return Score.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadScore(
            f"{folder} holds no score ({path}: {error.strerror}): name a folder that"
            " `teacher score --out` made, or a teacher's address such as http://127.0.0.1:8000"
        ) from error
    except ValidationError as error:
        raise BadScore(
            f"{path} is no score of format {FORMAT} ({in_words(error)}): make it anew with"
            " `teacher score --out`"
        ) from error


def _begun(out: Path, score: Score) -> Score:
    """What a folder has of a score already; makes the folder if it is not there."""
    if not (out / _FILE).exists():
        _keep(out, score)
        return score
    begun = read_score(out)
    if begun.identity != score.identity:
        raise BadScore(
            f"--out: {out} holds the score of {begun.identity}, and {score.identity} answers now: choose"
            " another folder"
        )
    if begun.asked_with != score.asked_with:
        with_ = ", ".join(f"--{name} {value}" for name, value in begun.asked_with.items())
        raise BadScore(f"--out: {out} holds a score made with {with_}: choose another folder, or the same")
    return begun


def _keep(out: Path, score: Score) -> None:
    """Writes score.json as a whole or not at all."""
    part = out / f".{_FILE}.{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        part.write_text(score.model_dump_json(indent=1) + "\n", encoding="utf-8")
        part.replace(out / _FILE)
    except OSError as error:
        raise BadScore(f"--out: cannot write to {out}: {error.strerror}") from error


def _score_task(client: TeacherClient, identity: str, env: str, task: str, settings: Scoring) -> TaskScore:
    with Bar(None, "questions", name=env, shown=settings.progress) as bar:

        def part(name: str) -> None:
            bar.update(figures={name: ""})

        asked = Asked(client, actions_of(env), identity, lambda: bar.update(len(asked.outcomes)))
        part("chance")
        chance = play_chance(env, task, episodes=settings.episodes, seed=settings.seed)
        part("finding states")
        states = held_out_states(env, task, settings.states, settings.seed)
        part(f"{len(states)} states")
        outcomes = []
        for start in range(0, len(states), settings.parallel):
            outcomes += asked.about([state.scene for state in states[start : start + settings.parallel]])
        answers = measures.judged(states, outcomes)
        played: dict[str, Played | None] = dict.fromkeys(("argmax", "sampled"))
        for name in played if answers else ():
            part(f"{settings.episodes} episodes, {name}")
            played[name] = play_teacher(
                asked,
                env,
                task,
                sampled=name == "sampled",
                episodes=settings.episodes,
                seed=settings.seed,
                together=settings.parallel,
            )
        part("done")
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
        costs=measures.costs(asked.outcomes, asked.seconds),
        mistakes=measures.worst_mistakes(answers),
    )
