"""A simulation of requests to an ensemble: servers, members, and passes that requests share. See `sizing.py`."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

MAX_RUNNING = 32  # requests of a server process at the same time


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of one member, as far as all members are alike.

    Args:
        members: Number of members.
        steps: Passes per word and member, of a request that runs alone.
        pass_ms: Time of a pass, however many requests share it.
        step_ms: Further time of a pass for each request that shares it.
        prompt_token_ms: Time to read a token of a prompt.
        host_ms: CPU time of the server process per word: text, candidates, decisions, HTTP.
        call_ms: Time of a call to a member in another process, besides its passes.
    """

    members: int = 2
    steps: float
    pass_ms: float
    step_ms: float
    prompt_token_ms: float = 0.0
    host_ms: float = 1.0
    call_ms: float = 1.4


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where members and servers are in one copy.

    Args:
        name: Name.
        shared_device: Whether all members use one device in turn.
        remote: Whether members are in processes of their own, which several servers share.
    """

    name: str
    shared_device: bool
    remote: bool

    def devices(self, costs: Costs) -> int:
        """Devices of a copy."""
        return 1 if self.shared_device else costs.members


LAYOUTS = (
    Layout(name="one device", shared_device=True, remote=False),
    Layout(name="a device per member", shared_device=False, remote=False),
    Layout(name="shared members", shared_device=False, remote=True),
)


@dataclass(slots=True)
class Request:
    """A request on its way."""

    arrived: float  # milliseconds
    words: int
    prompt: int
    steps: int = 0  # steps that are left
    waiting: int = 0  # members that have not taken the current step
    first: float = math.nan  # end of the first step


@dataclass
class Device:
    """Runs the passes of its members, one after the other."""

    queues: list[deque[Request]]  # requests that wait, by member
    busy: bool = False
    turn: int = 0
    worked: float = 0.0  # milliseconds


@dataclass
class Copy:
    """One copy of a layout, and its clock.

    Args:
        costs: Costs.
        layout: Layout.
        servers: Server processes.
        slots: Requests that run at the same time.
    """

    costs: Costs
    layout: Layout
    servers: int = 1
    slots: int = MAX_RUNNING
    now: float = 0.0
    passes: int = 0
    running: int = 0
    hosting: float = 0.0  # milliseconds of work of all servers
    done: list[Request] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        members = range(self.costs.members)
        kept = [members] if self.layout.shared_device else [[member] for member in members]
        self.devices = [Device([deque() for _ in each]) for each in kept]
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.line: deque[Request] = deque()
        self.host_free = [0.0] * self.servers

    def run(self, requests: Sequence[Request]) -> Copy:
        """Answer all requests."""
        for request in requests:
            self.at(request.arrived, partial(self.arrive, request))
        while self.events:
            self.now, _, event = heapq.heappop(self.events)
            event()
        return self

    def at(self, time: float, event: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, event))

    def arrive(self, request: Request) -> None:
        self.line.append(request)
        self.admit()

    def admit(self) -> None:
        while self.line and self.running < self.slots:
            self.running += 1
            request = self.line.popleft()
            request.steps = max(1, round(request.words * self.costs.steps))
            self.host(request)

    def host(self, request: Request) -> None:
        """The work of the server before a step; afterwards all members take it."""
        server = min(range(self.servers), key=self.host_free.__getitem__)
        work = self.costs.host_ms / self.costs.steps
        ready = max(self.now, self.host_free[server]) + work
        self.host_free[server] = ready
        self.hosting += work
        self.at(ready + (self.costs.call_ms if self.layout.remote else 0.0), partial(self.ask, request))

    def ask(self, request: Request) -> None:
        request.waiting = self.costs.members
        for device in self.devices:
            for queue in device.queues:
                queue.append(request)
            self.start(device)

    def start(self, device: Device) -> None:
        """Start a pass of the next member that has requests."""
        if device.busy:
            return
        for offset in range(len(device.queues)):
            place = (device.turn + offset) % len(device.queues)
            if device.queues[place]:
                batch, device.queues[place] = list(device.queues[place]), deque()
                device.turn, device.busy = place + 1, True
                time = self.pass_time(batch)
                device.worked += time
                self.passes += 1
                self.at(self.now + time, partial(self.end, device, batch))
                return

    def pass_time(self, batch: Sequence[Request]) -> float:
        costs = self.costs
        new = sum(request.prompt for request in batch if math.isnan(request.first))
        return costs.pass_ms + costs.step_ms * len(batch) + costs.prompt_token_ms * new

    def end(self, device: Device, batch: Sequence[Request]) -> None:
        device.busy = False
        for request in batch:
            request.waiting -= 1
            if not request.waiting:
                self.step(request)
        self.start(device)

    def step(self, request: Request) -> None:
        """A request has taken a step."""
        if math.isnan(request.first):
            request.first = self.now
        request.steps -= 1
        if request.steps:
            self.host(request)
            return
        self.done.append(request)
        self.ends.append(self.now)
        self.running -= 1
        self.admit()


def poisson(rate: float, seconds: float, words: int, prompt: int, seed: int) -> Iterator[Request]:
    """At least 20 requests at random times, `rate` per second; words and prompts vary by half of their mean."""
    draw, now = random.Random(seed), 0.0
    for _ in range(max(20, round(rate * seconds))):
        now += 1e3 * draw.expovariate(rate)
        size = draw.uniform(0.5, 1.5)
        yield Request(now, max(1, round(words * size)), round(prompt * draw.uniform(0.5, 1.5)))
