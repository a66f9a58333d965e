"""Opens a member as an actor of a Ray cluster: the local backend, in a process on any node.

`ray_actor.py` has the actor and the calls to it, the other files what is not specific to Ray.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from adafuse_core.backends import RUN_OPTIONS
from adafuse_core.backends.base import ModelFiles, Shared
from adafuse_core.backends.remote.session import RemoteBackend
from adafuse_core.backends.remote.words import token_kinds
from adafuse_core.checks import expect, expect_integer, expect_mapping, expect_number
from adafuse_core.errors import ConfigError, ModelLoadError
from adafuse_core.member_config import MemberConfig

logger = logging.getLogger(__name__)

INSTALL = 'pip install "adafuse[ray]"'
NAMESPACE = "adafuse"  # of shared actors

_OF_THE_ACTOR = ("num_gpus", "num_cpus", "resources", "max_restarts", "max_concurrency")  # fields of `Ray`


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Runs a model in an actor of a Ray cluster. All fields of `MemberConfig` have the same meaning there.

    Args:
        address: Address of the cluster, such as `"10.0.0.1:6379"`; `"auto"` for the one on this machine, `"local"` for
            a new one on this machine. Default: the cluster that this process is connected to, or that of the
            environment variable `RAY_ADDRESS`, or `"auto"`, or, if there is none, `"local"`.
        num_gpus: GPUs that the actor reserves; may be a fraction, for members that share a GPU. Default: one if a node
            of the cluster has one, unless the member's device is `"cpu"`.
        num_cpus: CPU cores that the actor reserves, and threads of its forward passes on a CPU.
        resources: Further resources that the actor reserves, such as `{"big_node": 1}`, to choose its node.
        max_restarts: How often the actor is started again after its process or node was lost; -1 for no bound.
        max_concurrency: Most calls that the actor works on at the same time; further calls wait. Calls of requests that
            run at the same time share forward passes.
        timeout: Most seconds that one call may take, including the time in which a lost actor is started again and
            loads its model.
        load_timeout: Most seconds until the actor has started and loaded its model.
        actor_name: Name of an actor that processes of the cluster share: the first one that loads the member starts
            it, the others use it. It goes on when they close the member or end, until `end_actor`. Default: an actor
            of this process alone, which ends with it.
        actor_namespace: Ray namespace of `actor_name`.
    """

    address: str | None = None
    num_gpus: float | None = None
    num_cpus: float = 1
    resources: Mapping[str, float] = field(default_factory=dict)
    max_restarts: int = -1
    max_concurrency: int = 64
    timeout: float = 300.0
    load_timeout: float = 1800.0
    actor_name: str | None = None
    actor_namespace: str = NAMESPACE

    honours: ClassVar[frozenset[str]] = frozenset(RUN_OPTIONS)

    def __post_init__(self) -> None:
        address = self.address
        expect(address is None or (isinstance(address, str) and bool(address)), "address", address, "a text or None")
        if address is not None and "://" in address:
            raise ConfigError(
                f"got address={address!r}: members can't be reached through a Ray Client server",
                hint="run this program on a node of the cluster, for example with `ray job submit`",
            )
        if self.num_gpus is not None:
            expect_number("num_gpus", self.num_gpus, at_least=0)
        expect_number("num_cpus", self.num_cpus, at_least=0)
        expect_mapping("resources", self.resources)
        for name, amount in self.resources.items():
            expect_number(f"resources[{name!r}]", amount, above=0)
        expect_integer("max_restarts", self.max_restarts, at_least=-1)
        expect_integer("max_concurrency", self.max_concurrency, at_least=1)
        for name in ("timeout", "load_timeout"):
            expect_number(name, getattr(self, name), above=0)
        self._check_names()

    def _check_names(self) -> None:
        name, namespace = self.actor_name, self.actor_namespace
        expect(name is None or (isinstance(name, str) and bool(name)), "actor_name", name, "a text or None")
        expect(isinstance(namespace, str) and bool(namespace), "actor_namespace", namespace, "a text")
        if name is None and namespace != NAMESPACE:
            raise ConfigError(
                f"got actor_namespace={namespace!r} without actor_name", hint="set actor_name, or leave both out"
            )

    def open_backend(self, config: MemberConfig, files: ModelFiles, shared: Shared) -> RemoteBackend:
        """Start the actor and have it load and test the model; see `Opener.open_backend`."""
        ray = _imported()
        from adafuse_core.backends.remote.ray_actor import ActorChannel

        connection = shared("ray", _Connection)
        with connection.lock:  # members are loaded by several threads
            self._connect(ray, connection)
        size = len(files.tokenizer)
        if (declared := getattr(files.architecture.get_text_config(), "vocab_size", None)) is not None:
            size = max(size, declared)
        there = replace(config, backend="local", backend_options={})
        channel = ActorChannel(
            ray,
            config.label,
            # Ray keeps small arguments for restarts; those of more than 100 KB could get lost.
            (there, files.reread, zlib.compress(token_kinds(files.tokenizer, size)), self._shared_options()),
            self._actor_options(ray, config),
            timeout=self.timeout,
        )
        try:
            abilities = channel.load(self.load_timeout)
        except BaseException:
            channel.close()
            raise
        logger.info("member %r: runs in %s", config.label, channel)
        return RemoteBackend(channel, abilities)

    def _connect(self, ray: Any, connection: _Connection) -> None:
        """Connect this process to the cluster, unless it is connected."""
        if ray.is_initialized():
            connected = ray.get_runtime_context().gcs_address
            local = ["local"] if connection.cluster == connected else []
            if self.address not in (None, "auto", connected, *local):
                raise ConfigError(
                    f"got address={self.address!r}, but this process is connected to the Ray cluster {connected!r}",
                    hint="a process can use one cluster: leave address out, or set it to the connected cluster",
                )
            return
        try:
            connection.join(ray, self.address)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = "the Ray cluster" if self.address is None else f"the Ray cluster {self.address!r}"
            raise ModelLoadError(
                f"can't connect to {where}: {error}",
                hint="check address and RAY_ADDRESS, and `ray status` on a node of the cluster",
            ) from error

    def _shared_options(self) -> dict[str, Any]:
        """The options in which all processes that share an actor must agree."""
        return {name: getattr(self, name) for name in _OF_THE_ACTOR}

    def _actor_options(self, ray: Any, config: MemberConfig) -> dict[str, Any]:
        """Arguments of Ray's `options`."""
        gpus = self.num_gpus
        if gpus is None:
            gpus = min(1.0, math.floor(ray.cluster_resources().get("GPU", 0))) if config.device != "cpu" else 0
        shared = {
            "name": self.actor_name,
            "namespace": self.actor_namespace,
            "get_if_exists": True,
            "lifetime": "detached",  # the process that started it may end before the others
        }
        return {
            **(shared if self.actor_name is not None else {}),
            "num_cpus": self.num_cpus,
            "num_gpus": gpus,
            "resources": dict(self.resources),
            "max_restarts": self.max_restarts,
            "max_task_retries": 0,  # calls are repeated here, within their timeout
            "max_concurrency": self.max_concurrency,
        }


def end_actor(name: str, *, namespace: str = NAMESPACE, address: str = "auto") -> bool:
    """End a shared actor and free its memory and reserved resources. Members that still use it start it again.

    Args:
        name: Its `actor_name`.
        namespace: Its `actor_namespace`.
        address: Address of the cluster; see `Ray`.

    Returns:
        Whether there was such an actor.

    Raises:
        ModelLoadError: The cluster can't be reached.
    """
    ray = _imported()
    Ray(address=address)._connect(ray, _Connection())
    try:
        actor = ray.get_actor(name, namespace=namespace)
    except ValueError:  # there is none
        return False
    ray.kill(actor, no_restart=True)
    return True


def _imported() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ModelLoadError("the package ray is missing, which backend='ray' needs", hint=INSTALL) from error
    return ray


class _Connection:
    """The connection of this process to a cluster."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cluster: str | None = None  # address of the cluster that this process has started

    def join(self, ray: Any, address: str | None) -> None:
        """Connect to a cluster; without an address, to a running one, or to a new one on this machine."""
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address not in (None, "local"):
            ray.init(address, **quiet)
            return
        if address is None:
            try:
                ray.init("auto", **quiet)
            except ConnectionError:
                if os.environ.get("RAY_ADDRESS"):
                    raise
            else:
                return
        _on_lasting_thread(lambda: ray.init("local", include_dashboard=False, **quiet))
        self.cluster = ray.get_runtime_context().gcs_address


def _on_lasting_thread(work: Callable[[], object]) -> None:
    """Run a function on a thread that lives as long as this process.

    On Linux, the processes of a new cluster are killed when the thread that started them ends.
    """
    done: Future[object] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
        else:
            threading.Event().wait()

    threading.Thread(target=run, name="adafuse-ray", daemon=True).start()
    done.result()
