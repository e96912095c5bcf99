"""The teacher whose model others serve: a chat server on the local network, tried out and described."""

import asyncio
import logging
from typing import Any

from teacher_api.keys import read_key
from teacher_server.engines.base import EngineError
from teacher_server.engines.openai.features import ServerFeatures, find_features
from teacher_server.engines.openai.server import CannotAttach, ChatServer, UnexpectedReply
from teacher_server.engines.openai.sessions import MessageSessionFactory
from teacher_server.prompting.prompt_set import PromptSet
from teacher_server.prompting.readout import single_token_problems
from teacher_server.settings import Settings
from teacher_server.teachers.prompted import PromptedTeacher, ReadoutSettings

_log = logging.getLogger(__name__)


def attach(settings: Settings, prompts: PromptSet) -> PromptedTeacher:
    """A teacher over the server that the settings name; the server is asked what it is and can do.

    Raises:
        BadKeyFile: the file of the server's key holds none.
        CannotAttach: the server cannot be used as asked, or does not answer.
    """
    if settings.model is not None:
        raise CannotAttach(
            "the server has its model already: take --model away, and name it by --openai-model"
        )
    if settings.openai_url is None or settings.openai_model is None:
        raise CannotAttach("needs --openai-url http://HOST:PORT/v1 and --openai-model NAME")
    reading = ReadoutSettings.chosen(settings, prompts)
    server = ChatServer(
        settings.openai_url,
        settings.openai_model,
        key=read_key(settings.openai_key_file),
        allow_host=settings.allow_host,
        connections=settings.concurrency,
        timeout_s=settings.timeout_s,
    )
    try:
        described, offers = asyncio.run(_ask(server, prompts))
    except EngineError as error:
        raise CannotAttach(str(error)) from error
    if reading.readout == "labels" and (problems := _label_problems(server, offers, prompts)):
        raise CannotAttach(f"{'; '.join(problems)}; or take --readout numbers")
    if offers.constraint is None:
        _log.warning(
            "the server at %s holds no answer to a schema: what does not fit by itself cannot be read",
            server.url,
        )
    server.recognise(described)
    return PromptedTeacher(
        MessageSessionFactory(server, offers, prompts.labels),
        prompts,
        reading,
        checkpoint={"attached": described, **_ways(offers, reading)},
        hosting={
            "model": server.model,
            "engine": "openai",
            "server": server.url,
            "prompts": prompts.name,
        },
        seed=settings.seed,
    )


async def _ask(server: ChatServer, prompts: PromptSet) -> tuple[dict[str, Any], ServerFeatures]:
    await server.start()
    try:
        return await _describe(server), await find_features(server, prompts.labels)
    finally:
        await server.close()


async def _describe(server: ChatServer) -> dict[str, Any]:
    """What the server says of itself; where its API is elsewhere, CannotAttach says where."""
    try:
        return await server.describe()
    except UnexpectedReply as error:
        if not error.wrong_address:
            raise
        if address := await server.find_address():
            raise CannotAttach(f"{error}; its API is elsewhere: --openai-url {address}") from error
        raise CannotAttach(
            f"{error}; --openai-url is the address of an API like OpenAI's, as in http://HOST:PORT/v1: it has"
            " GET /models below it"
        ) from error


def _ways(offers: ServerFeatures, reading: ReadoutSettings) -> dict[str, Any]:
    """How the server is asked, as far as that can change an answer."""
    told: dict[str, Any] = {"constraint": offers.constraint, "own_sampling": not offers.neutral}
    if reading.readout == "labels":
        told["label_scores"] = "all" if offers.by_id else f"of the {offers.top} most probable tokens"
    return told


def _label_problems(server: ChatServer, offers: ServerFeatures, prompts: PromptSet) -> list[str]:
    """Why labels cannot be read in one step."""
    if not offers.by_id and not offers.top:
        return [
            f"the server at {server.url} gives no log-probabilities (logprobs and top_logprobs of a request),"
            " which --readout labels needs: let it give them"
        ]
    return single_token_problems(prompts.labels, offers.pieces, server.model) if offers.pieces else []
