"""A model on a server: sessions whose contexts are read by HTTP requests. What answers have told is not asked again.

Requests and answers have the format of a `Format`, such as `vllm.Completions`.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol

from adafuse_core.backends.base import Abilities, Allowed, SessionTokens, TopTokens, Until
from adafuse_core.backends.servers.connection import Json, Server
from adafuse_core.backends.servers.known_steps import KnownSteps
from adafuse_core.backends.servers.read_kinds import ReadKinds
from adafuse_core.errors import ContextOverflowError, MemberError, NonFiniteLogitsError
from adafuse_core.text.ids import Ids

Read = tuple[list[Ids], list[int]]  # contexts, and the tokens that are wanted after one of them

_MAX_ROWS = 64  # contexts of one request
_MAX_AHEAD = 64  # tokens that are drafted ahead
_TIES = 2  # further likeliest tokens that are asked for: equal ones are put in order of id
_WAIT_SECONDS = 0.2  # before a draft without likeliest tokens is read again


@dataclass(frozen=True, slots=True)
class Drafted:
    """One step of a greedy continuation, as a server reports it.

    Args:
        token: The token with which the server has gone on.
        logprobs: Natural log-probabilities of the likeliest tokens.
    """

    token: int
    logprobs: Mapping[int, float]


class Format(Protocol):
    """The requests of one kind of server, and how to read its answers. Malformed answers may raise any error."""

    most_tokens: ClassVar[int]  # most different tokens that one request can read

    @property
    def path(self) -> str:
        """The path of all requests below the base URL, or another URL of the same server."""

    def draft(self, contexts: Sequence[Ids], max_new: int, top: int, salt: str) -> dict[str, Any]:
        """A request for greedy continuations, with the likeliest tokens of each step.

        Args:
            contexts: Token ids.
            max_new: Number of steps.
            top: Number of likeliest tokens.
            salt: Requests share cached prefixes with requests of the same salt only; empty for none.
        """

    def drafted(self, answer: Json) -> list[list[Drafted]]:
        """The steps after each context, up to the first one whose likeliest tokens are missing."""

    def read(self, contexts: Sequence[Ids], tokens: Sequence[int], salt: str) -> dict[str, Any]:
        """A request for the log-probabilities of the same tokens after each context."""

    def values(self, answer: Json) -> list[dict[int, float]]:
        """The log-probabilities after each context."""

    def cached_tokens(self, answer: Json) -> int:
        """Number of tokens of a request with one context that the server had cached; 0 if it does not tell."""


@dataclass(kw_only=True, eq=False, repr=False)
class ServerBackend:
    """Drafts and scores with a model on a server."""

    server: Server
    format: Format
    kinds: ReadKinds  # of all requests to the same server
    described: Abilities
    draft_tokens: int  # steps that a draft asks for at first

    def __post_init__(self) -> None:
        self._forgotten: dict[str | None, int] = {}  # how often each namespace was forgotten; None for all

    def open(
        self,
        context: Ids,
        *,
        window: int | None,
        lookup: bool,
        raise_if_cancelled: Callable[[], None],
        allowed: Allowed | None = None,
        namespace: str = "",
    ) -> ServerSession:
        """See `Backend.open`. There is no guessing, so `lookup` has no effect."""
        assert allowed is None, "given only to backends with masks"
        longest = self.described.max_context
        assert longest is not None, "servers tell it"
        if len(context) >= longest:
            raise ContextOverflowError(
                f"the prompt has {len(context)} tokens, the server's longest context is {longest}",
                hint="shorten the prompt, start the server with a larger --max-model-len, or leave this member out",
            )
        limit = longest if window is None else min(window, longest)
        return ServerSession(self, context, limit, raise_if_cancelled, self._salt(namespace))

    def abilities(self) -> Abilities:
        """See `Backend.abilities`."""
        return self.described

    def forget(self, namespace: str | None = None) -> None:
        """Let later sessions find nothing of earlier ones. The server evicts what no request uses any more."""
        self._forgotten[namespace] = self._forgotten.get(namespace, 0) + 1

    def close(self) -> None:
        """Close the connections. The server keeps running."""
        self.server.close()

    def _salt(self, namespace: str) -> str:
        """Separates the server's cached prefixes of namespaces; it does not tell their names."""
        times = [self._forgotten.get(each, 0) for each in (None, namespace)]
        return hashlib.sha256(f"{namespace} {times}".encode()).hexdigest() if namespace or any(times) else ""


class ServerSession:
    """One growing context."""

    def __init__(
        self, backend: ServerBackend, context: Ids, limit: int, raise_if_cancelled: Callable[[], None], salt: str
    ) -> None:
        self._backend = backend
        self._limit = limit
        self._raise_if_cancelled = raise_if_cancelled
        self._salt = salt
        self._known = KnownSteps(context)
        self._top = 2  # likeliest tokens that drafts ask for
        self._cached: int | None = None  # tokens of the first context that the server had cached; None before it

    def draft(
        self, contexts: Sequence[Ids], max_new: int, top: int, until: Until, guesses: Sequence[Ids] = ()
    ) -> list[list[TopTokens]]:
        """See `Session.draft`. Some more steps are read than `until` allows: it is not known to the server."""
        self._top = max(self._top, top)  # also for rows that complete a word: the next draft begins in one of them
        steps: list[list[TopTokens]] = [[] for _ in contexts]
        written, live, ahead = list(contexts), list(range(len(contexts))), self._backend.draft_tokens

        def lacks_step(row: int) -> bool:
            """Continue a row as far as its steps are known; returns whether it is unfinished."""
            while (step := self._likeliest(written[row], top)) is not None:
                steps[row].append(step)
                if until(row, steps[row]) or len(steps[row]) >= max_new:
                    return False
                written[row] += step.ids[:1]
            return True

        while live := [row for row in live if lacks_step(row)]:
            left = max_new - min(len(steps[row]) for row in live)
            self._read_ahead([written[row] for row in live], min(ahead, left))
            ahead = min(2 * ahead, _MAX_AHEAD)
        return steps

    def score(
        self, contexts: Sequence[Ids], continuations: Sequence[Ids], guesses: Sequence[Ids] = ()
    ) -> list[list[float]]:
        """See `Session.score`."""
        wanted = [
            [(context + ids[:length], token) for length, token in enumerate(ids)]
            for context, ids in zip(contexts, continuations, strict=True)
        ]
        self._read_tokens(pair for pairs in wanted for pair in pairs if self._logprob(*pair) is None)
        return [[self._known.at(context).logprobs[token] for context, token in pairs] for pairs in wanted]

    def commit(self, context: Ids) -> None:
        """See `Session.commit`."""
        self._known.commit(context)

    def tokens(self) -> SessionTokens:
        """See `Session.tokens`. Counted as if the server kept all that it has read for this session."""
        cached = self._cached or 0
        return SessionTokens(read=max(0, self._known.tokens_read - cached), cached=cached)

    def close(self) -> None:
        """Nothing is left to free: the server evicts what no request uses."""

    def _likeliest(self, context: Ids, count: int) -> TopTokens | None:
        """The likeliest tokens after a context; None if not so many are known."""
        step = self._known.get(context)
        if step is None or len(step.top.ids) < count:
            return None
        return TopTokens(step.top.ids[:count], step.top.logprobs[:count])

    def _logprob(self, context: Ids, token: int) -> float | None:
        step = self._known.get(context)
        return None if step is None else step.logprobs.get(token)

    def _read_ahead(self, contexts: Sequence[Ids], max_new: int) -> None:
        """Read the likeliest tokens after each context and of further steps, in one request."""
        deadline = time.monotonic() + self._backend.server.address.deadline
        top = min(self._top + _TIES, self._backend.described.top or self._top)
        steps = min(max_new, self._limit - max(map(len, contexts)))
        assert steps > 0, "a context has no room for another token"
        form = self._backend.format
        missing = list(dict.fromkeys(contexts))
        while missing:
            rows = list(_batches(missing, _MAX_ROWS))
            for draft in self._answers("draft", rows, [form.draft(each, steps, top, self._salt) for each in rows]):
                self._learn_steps(*draft)
            left = [each for each in missing if self._likeliest(each, self._top) is None]
            if left == missing:
                self._wait(deadline)
            missing = left

    def _read_tokens(self, wanted: Iterable[tuple[Ids, int]]) -> None:
        """Read the log-probabilities of tokens after contexts, in requests that run together."""
        form = self._backend.format
        reads = list(_reads(wanted, form.most_tokens))
        if reads:
            rows = [contexts for contexts, _ in reads]
            bodies = [form.read(contexts, tokens, self._salt) for contexts, tokens in reads]
            answers = self._answers("read", rows, bodies)
            for (contexts, values), (_, tokens) in zip(answers, reads, strict=True):
                for context, logprobs in zip(contexts, values, strict=True):
                    if not logprobs.keys() >= set(tokens):
                        raise self._unknown_format("some tokens have no log-probability")
                    self._known.at(context).add(_finite(logprobs))

    def _answers(
        self, kind: str, rows: Sequence[Sequence[Ids]], bodies: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Sequence[Ids], list[Any]]]:
        """The contexts of each request with what was read for them."""
        backend, form = self._backend, self._backend.format
        with backend.kinds.turn(kind, self._raise_if_cancelled):
            answers = backend.server.post_all(form.path, bodies, self._raise_if_cancelled)
        if self._cached is None:
            self._cached = form.cached_tokens(answers[0]) if sum(map(len, rows)) == 1 else 0
        read = form.drafted if kind == "draft" else form.values
        return [(each, self._parsed(read, answer, len(each))) for each, answer in zip(rows, answers, strict=True)]

    def _parsed(self, read: Callable[[Json], list[Any]], answer: Json, rows: int) -> list[Any]:
        """What an answer has for each context. Raises `MemberError` if it has another format."""
        try:
            parsed = read(answer)
            if len(parsed) != rows:
                raise ValueError(f"{len(parsed)} results for {rows} prompts")
            return parsed
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._unknown_format(f"{type(error).__name__}: {error}") from error

    def _unknown_format(self, problem: str) -> MemberError:
        return MemberError(
            f"the server at {self._backend.server.address.base_url} answered in an unknown format: {problem}",
            hint="check base_url in backend_options, and the server's version",
            retryable=False,
        )

    def _learn_steps(self, contexts: Sequence[Ids], drafts: Sequence[Sequence[Drafted]]) -> None:
        """Keep the steps after each context."""
        for context, drafted in zip(contexts, drafts, strict=True):
            for step in drafted:
                self._known.at(context).add_top(_ranked(_finite(step.logprobs)))
                context += (step.token,)

    def _wait(self, deadline: float) -> None:
        """Wait until other clients' requests may have ended that keep the server from reporting likeliest tokens."""
        if time.monotonic() >= deadline:
            raise MemberError(
                f"the server at {self._backend.server.address.base_url} does not report the likeliest tokens of drafts",
                hint="give this ensemble a server of its own: other clients that send logprob_token_ids disturb drafts",
            )
        self._raise_if_cancelled()
        time.sleep(_WAIT_SECONDS)


def _ranked(logprobs: Mapping[int, float]) -> TopTokens:
    """Tokens, likeliest first, equal ones in order of id."""
    ranked = sorted((-value, token) for token, value in logprobs.items())
    return TopTokens(tuple(token for _, token in ranked), tuple(-value for value, _ in ranked))


def _finite(logprobs: Mapping[int, float]) -> Mapping[int, float]:
    """The same log-probabilities. Raises `NonFiniteLogitsError` if one is NaN or infinite."""
    if not all(map(math.isfinite, logprobs.values())):
        raise NonFiniteLogitsError(
            "the server returned NaN or infinite log-probabilities", hint="start it with another --dtype"
        )
    return logprobs


def _batches(contexts: Iterable[Ids], size: int) -> Iterator[list[Ids]]:
    """Groups of at most `size` contexts."""
    left = iter(contexts)
    while batch := list(islice(left, size)):
        yield batch


def _reads(wanted: Iterable[tuple[Ids, int]], most_tokens: int) -> Iterator[Read]:
    """Group contexts and tokens into requests that read the same tokens after each of their contexts."""
    by_context: dict[Ids, dict[int, None]] = {}
    for context, token in wanted:
        by_context.setdefault(context, {})[token] = None
    parts = [
        (context, tokens)
        for context, every in by_context.items()
        for tokens in _batches_of_tokens(list(every), most_tokens)
    ]
    contexts: list[Ids] = []
    union: dict[int, None] = {}
    for context, tokens in parts:
        joined = union | dict.fromkeys(tokens)
        if contexts and (len(joined) > most_tokens or len(contexts) == _MAX_ROWS or context in contexts):
            yield contexts, list(union)
            contexts, joined = [], dict.fromkeys(tokens)
        contexts, union = [*contexts, context], joined
    if contexts:
        yield contexts, list(union)


def _batches_of_tokens(tokens: list[int], size: int) -> list[list[int]]:
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]
