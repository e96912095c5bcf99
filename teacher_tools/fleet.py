"""`teacher fleet`: puts a teacher on a Ray cluster, as replicas behind one address, and takes it away."""

import logging
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, Self

import httpx
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from teacher_api.command_line import CannotStart, CommandFailed, ValueName, flags_and_variables
from teacher_api.ray_cluster import connect_to_ray
from teacher_api.terminal import Waiting
from teacher_server.answers.location import is_address
from teacher_server.fleet import APPLICATION, DEPLOYMENT
from teacher_server.settings import Settings

_ADDRESS: Any = Field(
    default="auto",
    description="the Ray cluster: HOST:PORT of its head node, ray://HOST:PORT from elsewhere, or auto on one"
    " of its machines",
)
_LOOK_EVERY_S = 0.5
_REPORTED_EVERY_S = 10
"""Seconds between two reports of a replica to Ray Serve's controller."""


class DeploySettings(Settings):
    """Serves a teacher as replicas on a Ray cluster, behind one address; waits until all of them answer.

    Replicas of another teacher are exchanged one after the other; if a new one cannot start, the teacher
    before is served again, and the command fails. The replicas stay when the command has ended:
    `teacher fleet delete` ends them. The flags of the teacher are those of `teacher serve`.
    """

    model_config = flags_and_variables("teacher fleet deploy", "TEACHER_")
    help_groups: ClassVar[Mapping[str, str]] = {**Settings.help_groups, "ray": "the fleet"}

    ray: Annotated[str, ValueName("ADDRESS")] = _ADDRESS
    min_replicas: int = Field(default=1, ge=1, description="replicas that there are at least")
    max_replicas: int | None = Field(
        default=None, ge=1, description="replicas that there are at most; default: --min-replicas"
    )
    questions_per_replica: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="questions that a replica is to have: with more on average, replicas are added; default:"
        " --concurrency",
    )
    scale_up_s: float = Field(
        default=10.0, ge=0, description="seconds of too many questions, after which replicas are added"
    )
    scale_down_s: float = Field(
        default=300.0, ge=0, description="seconds of few questions, after which replicas are removed"
    )
    replica_gpus: float | None = Field(
        default=None, ge=0, description="GPUs of a replica; default: those of the engine vllm, else 0"
    )
    replica_cpus: float = Field(default=1.0, ge=0, description="CPUs of a replica")
    proxies: Literal["head", "every-node"] = Field(
        default="head",
        description="where --host and --port are listened on: the head node, or every node with a replica",
    )
    ready_s: float = Field(
        default=1800.0, gt=0, description="seconds to wait until all replicas answer; then the command fails"
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"`max_replicas` {self.max_replicas} is less than `min_replicas` {self.min_replicas}"
            )
        return self

    @property
    def gpus(self) -> float:
        """GPUs of a replica."""
        if self.replica_gpus is not None:
            return self.replica_gpus
        on_gpu = self.teacher == "prompted" and self.engine == "vllm"
        return self.tensor_parallel_size * self.data_parallel_size if on_gpu else 0

    @property
    def options(self) -> dict[str, Any]:
        """The options of Ray Serve's deployment."""
        return {
            # The service itself refuses questions above `max_pending`: no request waits in Ray's own queue
            "max_ongoing_requests": self.max_pending,
            "graceful_shutdown_wait_loop_s": 0.5,
            "graceful_shutdown_timeout_s": self.timeout_s + self.drain_s,
            "health_check_period_s": 5,
            "ray_actor_options": {"num_cpus": self.replica_cpus, "num_gpus": self.gpus},
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas or self.min_replicas,
                "target_ongoing_requests": self.questions_per_replica or self.concurrency,
                "upscale_delay_s": self.scale_up_s,
                "downscale_delay_s": self.scale_down_s,
                "look_back_period_s": max(self.scale_up_s, _REPORTED_EVERY_S + 1),
                "policy": {"policy_function": "teacher_server.fleet.scaling:replicas_for_questions"},
            },
        }


class DeleteSettings(BaseSettings):
    """Ends the teacher's replicas on a Ray cluster, when they have answered the questions that they have."""

    model_config = flags_and_variables("teacher fleet delete", "TEACHER_")

    ray: Annotated[str, ValueName("ADDRESS")] = _ADDRESS


class DeploymentFailed(CommandFailed):
    """The replicas do not answer, or not all of them."""


def deploy(settings: DeploySettings) -> int:
    """Runs `teacher fleet deploy`.

    Raises:
        CannotStart: Ray or a setting cannot be used, or the cluster is too small; nothing was changed.
        DeploymentFailed: a replica could not start; the teacher before, if any, is served again.
    """
    _check_keys(settings)
    with _serve(settings.ray) as (ray, serve):
        from teacher_server.fleet.replica import application  # noqa: PLC0415

        _check_cluster(ray, settings)
        serve.start(
            proxy_location={"head": "HeadOnly", "every-node": "EveryNode"}[settings.proxies],
            http_options={"host": settings.host, "port": settings.port},
            logging_config={"enable_access_log": False},
        )
        before = None
        if APPLICATION in serve.status().applications:
            handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
            running = handle.broadcast("deployed").results(timeout_s=60, return_exceptions=True)
            before = next((each for each in running if isinstance(each, DeploySettings)), None)
        try:
            _run(serve, application(settings, settings.options), settings)
        except DeploymentFailed as error:
            if before is None:
                serve.delete(APPLICATION)
                raise
            _run(serve, application(before, before.options), before)
            raise DeploymentFailed(f"{error}; the teacher before answers again") from error
        print(f"teacher: {_where(settings)} answers as {_identity(settings)}", flush=True)
    return 0


def delete(settings: DeleteSettings) -> int:
    """Runs `teacher fleet delete`.

    Raises:
        CannotStart: Ray cannot be used, or has no teacher.
    """
    with _serve(settings.ray) as (_, serve):
        if APPLICATION not in serve.status().applications:
            raise CannotStart(f"the cluster at {settings.ray} has no teacher")
        serve.delete(APPLICATION)
    return 0


def _check_keys(settings: DeploySettings) -> None:
    """
    Raises:
        CannotStart: others could reach the teacher without a key, or `host` has no address.
    """
    from teacher_server.http.authentication import ApiKeys  # noqa: PLC0415
    from teacher_server.serve import check_keys  # noqa: PLC0415

    try:
        address = socket.getaddrinfo(settings.host, settings.port)[0][4][0]
    except OSError as error:
        raise CannotStart(f"`host` {settings.host}: {error.strerror}") from error
    check_keys(settings, keyless=ApiKeys(settings.api_key_file).empty, address=str(address))


def _check_cluster(ray: Any, settings: DeploySettings) -> None:
    """
    Raises:
        CannotStart: the cluster has too little for `min_replicas`, or its machines cannot share the store.
    """
    has = ray.cluster_resources()
    for name, needs in (("GPU", settings.gpus), ("CPU", settings.replica_cpus)):
        if settings.min_replicas * needs > has.get(name, 0):
            raise CannotStart(
                f"`min_replicas` {settings.min_replicas} needs {settings.min_replicas * needs:g} {name}s, and"
                f" the cluster has {has.get(name, 0):g}"
            )
    machines = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1 and settings.store and not is_address(settings.store):
        raise CannotStart(
            f"`store`: {len(machines)} machines cannot share the file {settings.store}: name a database,"
            " postgresql://USER@HOST:PORT/DATABASE, or none"
        )


def _run(serve: Any, application: Any, settings: DeploySettings) -> None:
    """Deploys, and waits until all replicas are those of these settings.

    Raises:
        DeploymentFailed: a replica could not start, or `ready_s` have passed.
    """
    target = serve.RunTarget(application, name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    waiting = Waiting("the fleet")
    deadline = time.monotonic() + settings.ready_s
    with waiting.for_it(slow=True):
        while True:
            time.sleep(_LOOK_EVERY_S)
            found = serve.status().applications[APPLICATION]
            state = found.deployments.get(DEPLOYMENT)
            if found.status == "RUNNING":
                break
            if found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                message = (state.message if state else "") or found.message
                raise DeploymentFailed(f"a replica could not start: {reason(message)}")
            if time.monotonic() > deadline:
                raise DeploymentFailed(f"not all replicas answer after `ready_s`, {settings.ready_s:g} s")
    waiting.came()


@contextmanager
def _serve(address: str) -> Iterator[tuple[Any, Any]]:
    """Connects to a cluster; returns the modules `ray` and `ray.serve`.

    Raises:
        CannotStart: Ray cannot be used.
    """
    ray = connect_to_ray(address, "fleet")
    try:
        from ray import serve  # noqa: PLC0415

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        yield ray, serve
    except ImportError as error:
        raise CannotStart(f"Ray is installed without Serve: pip install 'lvlm2p[fleet]' ({error})") from error
    finally:
        ray.shutdown()


def reason(message: str) -> str:
    """Returns the error of a traceback, without the exception's name."""
    lines = [line.strip() for line in message.splitlines()]
    said = next((line for line in reversed(lines) if re.match(r"[\w.]+: ", line)), message.strip())
    return re.sub(r"^[\w.]+: ", "", said)


def _where(settings: DeploySettings) -> str:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    return f"http://{host}:{settings.port}"


def _identity(settings: DeploySettings) -> str:
    """Returns the identity of the teacher that answers.

    Raises:
        DeploymentFailed: nothing answers.
    """
    try:
        reply = httpx.get(f"{_where(settings)}/metrics", timeout=30)
        lines = [line for line in reply.text.splitlines() if line.startswith("teacher_info{")]
        return lines[0].split('identity="')[1].split('"')[0]
    except (httpx.HTTPError, IndexError) as error:
        raise DeploymentFailed(
            f"the replicas run, and {_where(settings)} does not answer: Ray Serve listens elsewhere, because"
            " it was started with another `host` or `port`; `serve shutdown` ends it"
        ) from error
