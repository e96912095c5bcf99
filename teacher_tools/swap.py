"""`teacher swap`: makes a running teacher serve another checkpoint, and shows the progress."""

from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread

import httpx
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliPositionalArg

from teacher_api.client import checked_url
from teacher_api.command_line import BadSetting, CannotStart, File, fail, flags_and_variables
from teacher_api.keys import read_key
from teacher_api.schemas import ErrorAnswer, Hosted, Swap, Swapped
from teacher_api.terminal import Waiting

_PATH = "/admin/checkpoint"
_LOOK_EVERY_S = 0.5
_WAIT_S = 30
_NOTHING_TOUCHED = frozenset({401, 403, 404, 409, 422, 503})


class SwapSettings(BaseSettings):
    """Makes a running teacher serve another checkpoint, without a restart."""

    model_config = flags_and_variables("teacher swap", "TEACHER_")

    folder: CliPositionalArg[Path | None] = Field(
        default=None, description="the checkpoint, a folder on the teacher's machine"
    )
    url: str = Field(default="http://127.0.0.1:8000", description="the teacher's address")
    admin_key_file: File | None = Field(
        default=None, description="a file with a key from the teacher's --admin-key-file"
    )
    digest: str | None = Field(
        default=None, description="refuse a checkpoint with another digest; `teacher check` prints the digest"
    )
    in_place: bool = Field(
        default=False,
        description="vllm: load the weights into the running engine, if their shapes are the same",
    )
    allow_unreadable: bool = Field(
        default=False, description="serve the checkpoint even if no answer of the vision check can be read"
    )


def main(settings: SwapSettings) -> int:
    """Runs the command; returns 0 if the checkpoint is served, and 1 if the swap failed after its start.

    Raises:
        BadSetting, BadKeyFile: a setting cannot be used.
        CannotStart: the teacher refused the swap and is unchanged.
    """
    if settings.folder is None:
        raise BadSetting("`folder` is missing: name the checkpoint's folder")
    try:
        url = checked_url(settings.url)
    except ValueError as error:
        raise BadSetting(f"`url`: {error}") from error
    wanted = Swap(
        model=settings.folder.absolute(),
        digest=settings.digest,
        in_place=settings.in_place,
        allow_unreadable=settings.allow_unreadable,
    )
    key = read_key(settings.admin_key_file)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as http:
        return _swap(http, wanted)


def _swap(http: httpx.Client, wanted: Swap) -> int:
    before = _hosted(http)
    print(f"now       {before.identity}  {before.model or ''}".rstrip())
    asked: Future[httpx.Response] = Future()
    # A daemon thread, so that Ctrl-C ends this command; the teacher completes the swap without it
    Thread(target=_post, args=(http, wanted, asked), daemon=True).start()
    touched = _show_progress(http, asked)
    try:
        reply = asked.result()
    except httpx.HTTPError as error:
        why = f"the connection was lost ({error}): look at the teacher, which completes the swap or has ended"
        return fail(why, 1)
    if reply.status_code != httpx.codes.OK:
        reason = _reason(reply)
        if reply.status_code in _NOTHING_TOUCHED and not touched:
            raise CannotStart(reason)
        return fail(reason, 1)
    swapped = Swapped.model_validate_json(reply.content)
    took = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in swapped.seconds.items())
    print(f"{swapped.how}: {took}")
    if swapped.sight is not None:
        sight = swapped.sight
        print(
            f"vision check: changing one tile moves the label log-probabilities by {sight.apart:.2g} nats;"
            f" {sight.readable} of 2 answers are readable"
        )
    print(f"was       {swapped.old}\nis        {swapped.new}")
    return 0


def _show_progress(http: httpx.Client, asked: "Future[httpx.Response]") -> bool:
    """Prints the states of the teacher until the reply to the swap.

    Returns:
        Whether a state after the check was seen.
    """
    shown = "ready"
    while not wait([asked], timeout=_LOOK_EVERY_S).done:
        try:
            state = Hosted.model_validate_json(http.get(_PATH, timeout=10).content).state
        except (httpx.HTTPError, ValidationError):
            continue  # busy or ending: the reply to the swap says which
        if state != shown and not asked.done():
            print(f"{state} ...", flush=True)
            shown = state
    return shown not in ("ready", "checking")


def _post(http: httpx.Client, wanted: Swap, asked: "Future[httpx.Response]") -> None:
    body = wanted.model_dump(mode="json")
    try:  # without a limit for loading
        asked.set_result(http.post(_PATH, json=body, timeout=httpx.Timeout(10.0, read=None)))
    except Exception as error:
        asked.set_exception(error)


def _hosted(http: httpx.Client) -> Hosted:
    """Returns the state of the teacher and its checkpoint.

    Raises:
        CannotStart: there is no teacher at the address, or the teacher refuses swaps.
    """
    try:
        with Waiting(f"the teacher at {str(http.base_url).rstrip('/')}").for_it(_WAIT_S):
            reply = http.get(_PATH, timeout=_WAIT_S)
    except httpx.HTTPError as error:
        raise CannotStart(
            f"no teacher answers at {http.base_url}: {error}; set `url` to its address"
        ) from error
    if reply.status_code != httpx.codes.OK:
        raise CannotStart(_reason(reply))
    try:
        return Hosted.model_validate_json(reply.content)
    except ValidationError as error:
        raise CannotStart(f"the server at {http.base_url} is no teacher that can swap") from error


def _reason(reply: httpx.Response) -> str:
    """Returns the reason of an error in one line."""
    try:
        error = ErrorAnswer.model_validate_json(reply.content).error
    except ValidationError:
        return f"{reply.url} answered {reply.status_code} {reply.reason_phrase}, which is no teacher's reply"
    return " ".join(error.reason.split())
