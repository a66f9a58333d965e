"""A member's actor in a Ray cluster, and the calls to it: waiting, timeouts, and repetition when the actor was lost."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from adafuse_core.backends import RUN_OPTIONS
from adafuse_core.backends.base import Abilities, ModelFiles
from adafuse_core.backends.huggingface import Local
from adafuse_core.backends.remote.host import Host
from adafuse_core.backends.remote.messages import DraftCall, Reply, ScoreCall, SessionCall
from adafuse_core.errors import AdaFuseError, CancelledError, MemberError, ModelLoadError
from adafuse_core.forks import renew_after_fork
from adafuse_core.member_config import MemberConfig

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # interval at which waiting calls check for cancellation
_PAUSES = (0.1, 0.2, 0.5, 1.0)  # seconds before a call is repeated; the last one again and again
_MOST_TOLD = 1000
_CONTROL = "control"  # calls that never wait for forward passes, on threads of their own
_CONTROL_THREADS = 2
_INSTALL_HINT = "install the same versions of adafuse and its dependencies on all nodes of the cluster"
_LOST_HINT = (
    "check `ray status` and the memory of the node; to have the actor started again, set max_restarts=-1 in "
    "backend_options; then load the ensemble again"
)


class MemberActor:
    """The process of a member. Loads its model at the first call, also after Ray has started it again.

    Args:
        config: The member's config, for the local backend.
        reread: See `ModelFiles`.
        kinds: See `token_kinds`; compressed by zlib.
        options: Options of the actor, to compare with those of other processes that share it.
    """

    def __init__(
        self,
        config: MemberConfig,
        reread: Callable[[MemberConfig], ModelFiles],
        kinds: bytes,
        options: Mapping[str, Any],
    ) -> None:
        self._config = config
        self._options = options
        self._reread = reread
        self._kinds = zlib.decompress(kinds)
        self._lock = threading.Lock()
        self._loaded: Host | None = None

    def __repr__(self) -> str:
        """The name that Ray's logs show."""
        return f"adafuse:{self._config.label}"

    def load(self) -> tuple[Abilities, str]:
        """Load the model; returns abilities, and the address of the node."""
        import ray

        return self._host().backend.abilities(), ray.util.get_node_ip_address()

    def differences(self, config: MemberConfig, options: Mapping[str, Any]) -> list[str]:
        """What is different from another config and other options, as texts without secrets."""
        asked, own = {**options, **_facts(config)}, {**self._options, **_facts(self._config)}
        return [
            "model_kwargs" if name == "model_kwargs" else f"{name}={value!r} (the actor has {own[name]!r})"
            for name, value in asked.items()
            if own[name] != value
        ]

    def draft(self, call: DraftCall) -> Reply | None:
        """See `Host.draft`. None if the call was cancelled, since nobody waits for the error."""
        try:
            return self._host().draft(call)
        except CancelledError:
            return None

    def score(self, call: ScoreCall) -> Reply | None:
        """See `Host.score`. None if the call was cancelled."""
        try:
            return self._host().score(call)
        except CancelledError:
            return None

    def cancel(self, call: str) -> None:
        """See `Host.cancel`."""
        self._host().cancel(call)

    def end(self, call: SessionCall) -> None:
        """See `Host.end`."""
        self._host().end(call)

    def forget(self, namespace: str | None) -> None:
        """See `Backend.forget`."""
        self._host().backend.forget(namespace)

    def _host(self) -> Host:
        with self._lock:
            if self._loaded is None:
                _hide_progress_bars()
                files = self._reread(self._config)
                backend = Local().open_backend(self._config, files, lambda _, make: make())
                self._loaded = Host(backend, self._kinds)
            return self._loaded


def _facts(config: MemberConfig) -> dict[str, Any]:
    """The fields of a config on which the model in an actor depends."""
    return {name: getattr(config, name) for name in ("model", "revision", "gguf_file", *RUN_OPTIONS)}


class ActorChannel:
    """Calls to the actor of a member; see `Channel`. It starts the actor, and `close` ends it.

    An actor with a name is shared: it is used if it exists already, and goes on after `close`.

    Args:
        ray: The module ray, connected to a cluster.
        member: Name of the member, for messages.
        arguments: Arguments of `MemberActor`.
        options: Arguments of Ray's `options` for the actor.
        timeout: Most seconds of a call.
    """

    def __init__(
        self, ray: Any, member: str, arguments: tuple[Any, ...], options: Mapping[str, Any], *, timeout: float
    ) -> None:
        self._ray = ray
        self._member = member
        self._timeout = timeout
        self._needs = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
        self._cluster = ray.get_runtime_context().gcs_address
        self._node = "unknown"
        self._closed = self._forked = False
        kinds = ray.exceptions
        self._losses = (kinds.RayActorError, kinds.ObjectLostError, kinds.NodeDiedError, kinds.WorkerCrashedError)
        self._told: deque[Any] = deque(maxlen=_MOST_TOLD)  # results of messages that nobody waits for
        self._arguments, self._options = arguments, options
        self._is_shared = "name" in options
        self._actor = self._start()
        renew_after_fork(self)

    def _start(self) -> Any:
        """Start the actor, unless another process has started the shared one."""
        kind = self._ray.remote(concurrency_groups={_CONTROL: _CONTROL_THREADS})(MemberActor)
        return kind.options(**self._options).remote(*self._arguments)

    def __str__(self) -> str:
        """Where the actor is, for messages."""
        actor = self._actor._actor_id.hex()
        name = f"{self._options['name']!r}, " if self._is_shared else ""
        return f"Ray actor {name}{actor[:12]} (cluster {self._cluster}, last seen on node {self._node})"

    def load(self, seconds: float) -> Abilities:
        """Have the actor load its model; returns its abilities, with the place of the actor."""
        try:
            abilities: Abilities
            self._check_shared(seconds)
            abilities, self._node = self._repeated("load", (), lambda: None, seconds)
        except MemberError as error:
            if type(error) is not MemberError:  # an error of the model: nobody can use this actor
                self._end()
                raise
            raise ModelLoadError(error.message, hint=error.hint) from error
        place = f"ray:{self._actor._actor_id.hex()[:12]}"
        return replace(abilities, device=f"{abilities.device} of Ray node {self._node}", place=place)

    def _check_shared(self, seconds: float) -> None:
        """Refuse a shared actor that was made with another config."""
        if not self._is_shared:
            return
        config, _, _, options = self._arguments
        found = self._repeated("differences", (config, options), lambda: None, seconds)
        if found:
            raise MemberError(
                f"{self} is shared with other processes, and was made with other options: {', '.join(found)}",
                hint="use the same options in all processes, set another actor_name, or end the actor with "
                "adafuse_core.backends.remote.ray.end_actor",
                retryable=False,
            )

    def ask(self, method: str, call: SessionCall, check: Callable[[], None]) -> Reply:
        """See `Channel.ask`. A call is repeated while the actor is lost, until its timeout."""
        try:
            reply = self._repeated(method, (call,), check, self._timeout)
        except BaseException:
            self.tell("cancel", call.call)
            raise
        assert isinstance(reply, Reply), "only cancelled calls have no reply"
        return reply

    def tell(self, method: str, *arguments: Any) -> None:
        """See `Channel.tell`."""
        if self._forked or self._closed or not self._ray.is_initialized():
            return
        try:
            self._told.append(self._submit(method, arguments))
            while len(self._told) > 1 and self._ray.wait([self._told[0]], timeout=0)[0]:
                self._ray.get(self._told.popleft())
        except (self._ray.exceptions.RayError, IndexError):  # the actor is lost, or another thread was faster
            logger.debug("member %r: a message to %s was lost", self._member, self, exc_info=True)

    def close(self) -> None:
        """End the actor, unless it is shared."""
        if not self._closed and not self._is_shared:
            self._end()
        self._closed = True

    def _end(self) -> None:
        if not self._forked and self._ray.is_initialized():
            self._ray.kill(self._actor, no_restart=True)

    def after_fork(self) -> None:
        """Remember that this is another process than the one that is connected to the cluster."""
        self._forked = True

    def _repeated(self, method: str, arguments: tuple[Any, ...], check: Callable[[], None], seconds: float) -> Any:
        """The result of a call, which is made again while the actor is lost."""
        deadline, tries = time.monotonic() + seconds, 0
        while True:
            self._check_usable()
            tries += 1
            try:
                return self._result(self._submit(method, arguments), check, deadline)
            except self._ray.exceptions.GetTimeoutError:
                raise self._late(method, seconds, tries) from None
            except self._losses as error:
                self._check_usable()
                pause = _PAUSES[min(tries, len(_PAUSES)) - 1]
                if not self._restarts(error) or time.monotonic() + pause > deadline:
                    raise self._lost(method, tries, error) from error
                if self._has_ended(error):
                    self._actor = self._start()
                    self._check_shared(deadline - time.monotonic())
                logger.warning("member %r: %s was lost, trying again: %s", self._member, self, _reason(error))
                self._pause(pause, check)

    def _submit(self, method: str, arguments: tuple[Any, ...]) -> Any:
        call = getattr(self._actor, method)
        return (call if method in ("draft", "score", "load") else call.options(concurrency_group=_CONTROL)).remote(
            *arguments
        )

    def _result(self, reference: Any, check: Callable[[], None], deadline: float) -> Any:
        """Wait for a result. Errors of this library in the actor are raised as they are."""
        while True:
            left = deadline - time.monotonic()
            try:
                return self._ray.get(reference, timeout=max(0.0, min(POLL_SECONDS, left)))
            except self._ray.exceptions.GetTimeoutError:
                check()
                self._check_usable()
                if left <= 0:
                    raise
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, AdaFuseError):
                    raise error.cause from error
                raise MemberError(f"{self} failed: {type(error.cause).__name__}: {error.cause}") from error

    def _pause(self, seconds: float, check: Callable[[], None]) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            check()
            time.sleep(min(POLL_SECONDS, left))

    def _check_usable(self) -> None:
        """Raise an error that no repetition can help against."""
        if self._forked:
            problem = "this process was forked from the one that is connected to its Ray cluster"
            hint = "load members after the fork, or start processes with multiprocessing's 'spawn'"
        elif self._closed:
            problem = "its actor was ended by close() while it was in use"
            hint = "close when all streams are done"
        elif not self._ray.is_initialized():
            problem = "this process was disconnected from its Ray cluster by ray.shutdown()"
            hint = "close the ensemble and load it again"
        else:
            return
        raise MemberError(problem, hint=hint, retryable=False)

    def _restarts(self, error: Exception) -> bool:
        """Whether the lost actor is started again, by Ray or, if it is shared and was ended, by this process."""
        return not self._has_ended(error) or (self._is_shared and self._options["max_restarts"] == -1)

    def _has_ended(self, error: Exception) -> bool:
        return isinstance(error, self._ray.exceptions.ActorDiedError)

    def _late(self, method: str, seconds: float, tries: int) -> MemberError:
        return MemberError(
            f"{self} has not answered a call of {method!r} within {seconds:g} seconds (tries: {tries}); "
            f"{self._nodes_that_fit()}",
            hint="check `ray status`; if loading or long prompts need more time, raise the option timeout of backend "
            "'ray' (load_timeout while loading)",
        )

    def _lost(self, method: str, tries: int, error: Exception) -> MemberError:
        return MemberError(
            f"{self} was lost during a call of {method!r} (tries: {tries}): {_reason(error)}; {self._nodes_that_fit()}",
            hint=_INSTALL_HINT if getattr(error, "actor_init_failed", False) else _LOST_HINT,
        )

    def _nodes_that_fit(self) -> str:
        """How many nodes of the cluster could run the actor, for messages."""
        needs = {name: amount for name, amount in self._needs.items() if amount}
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        fit = [has for has in alive if all(has.get(name, 0) >= amount for name, amount in needs.items())]
        return f"of {len(alive)} nodes in the cluster, {len(fit)} have the resources it needs: {needs}"


def _reason(error: Exception) -> str:
    """The last line of Ray's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _hide_progress_bars() -> None:
    """An actor's output goes to the log of its node."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
