"""The prompted teacher over a chat server on the local network: tries the server out and describes it."""

import asyncio
import logging
from typing import Any

from teacher_api.keys import read_key
from teacher_server.engines.base import EngineError
from teacher_server.engines.openai.features import ServerFeatures, find_features
from teacher_server.engines.openai.server import CannotAttach, ChatServer, UnexpectedReply
from teacher_server.engines.openai.sessions import MessageSessionFactory
from teacher_server.prompting.preparation import SIDE
from teacher_server.prompting.prompt_set import PromptSet
from teacher_server.prompting.readout import single_token_problems
from teacher_server.settings import Settings
from teacher_server.teachers.prompted import PromptedTeacher, ReadoutSettings

_log = logging.getLogger(__name__)


def attach(settings: Settings, prompts: PromptSet) -> PromptedTeacher:
    """Returns a teacher over the server in the settings, after asking the server for its model and features.

    Raises:
        BadKeyFile: the server's key file holds no key.
        CannotAttach: the server cannot be used with these settings, or does not answer.
    """
    if settings.model is not None:
        raise CannotAttach("the server has its own model: omit `model`, and name it in `openai_model`")
    if settings.openai_url is None or settings.openai_model is None:
        raise CannotAttach("it needs `openai_url` http://HOST:PORT/v1 and `openai_model` NAME")
    reading = ReadoutSettings.from_settings(settings, prompts)
    server = ChatServer(
        settings.openai_url,
        settings.openai_model,
        key=read_key(settings.openai_key_file),
        allow_host=settings.allow_host,
        connections=settings.concurrency * settings.views,
        timeout_s=settings.timeout_s,
    )
    try:
        described, features = asyncio.run(_probe(server, prompts))
    except EngineError as error:
        raise CannotAttach(str(error)) from error
    if reading.readout == "labels" and (problems := _label_problems(server, features, prompts)):
        raise CannotAttach(f"{'; '.join(problems)}; or set `readout` to numbers")
    if features.constraint is None:
        _log.warning(
            "the server at %s does not constrain answers to a schema: answers that break it are unreadable",
            server.url,
        )
    server.recognise(described)
    checkpoint: dict[str, Any] = {"attached": described, **_access(features, reading)}
    if settings.openai_token_side != SIDE:  # other pictures
        checkpoint["token_side"] = settings.openai_token_side
    return PromptedTeacher(
        MessageSessionFactory(server, features, prompts.labels),
        prompts,
        reading,
        checkpoint=checkpoint,
        hosting={
            "model": server.model,
            "engine": "openai",
            "server": server.url,
            "prompts": prompts.name,
        },
        seed=settings.seed,
        views=settings.views,
    )


async def _probe(server: ChatServer, prompts: PromptSet) -> tuple[dict[str, Any], ServerFeatures]:
    await server.start()
    try:
        return await _describe(server), await find_features(server, prompts.labels)
    finally:
        await server.close()


async def _describe(server: ChatServer) -> dict[str, Any]:
    """Returns the server's description; CannotAttach names the API's address if it is a different one."""
    try:
        return await server.describe()
    except UnexpectedReply as error:
        if not error.wrong_address:
            raise
        if address := await server.find_address():
            raise CannotAttach(
                f"{error}; its API is at another address: set `openai_url` to {address}"
            ) from error
        raise CannotAttach(
            f"{error}; `openai_url` is the address of an API like OpenAI's, such as http://HOST:PORT/v1, with"
            " GET /models below it"
        ) from error


def _access(features: ServerFeatures, reading: ReadoutSettings) -> dict[str, Any]:
    """Returns how requests use the server, as far as that can change an answer; part of the identity."""
    used: dict[str, Any] = {"constraint": features.constraint, "own_sampling": not features.neutral}
    if reading.readout == "labels":
        used["label_scores"] = "all" if features.by_id else f"of the {features.top} most probable tokens"
    return used


def _label_problems(server: ChatServer, features: ServerFeatures, prompts: PromptSet) -> list[str]:
    """Returns why labels cannot be read in one step."""
    if not features.by_id and not features.top:
        return [
            f"the server at {server.url} returns no log-probabilities (logprobs and top_logprobs of a"
            " request), which `readout` labels needs: enable them there"
        ]
    return single_token_problems(prompts.labels, features.pieces, server.model) if features.pieces else []
