"""The questions to a server before it is used: which model, which limits, which tokenizer, which numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adafuse_core.backends.servers.connection import Json, Server, together
from adafuse_core.backends.servers.errors import Refused
from adafuse_core.backends.servers.session import Format
from adafuse_core.errors import (
    AdaFuseError,
    MemberError,
    ModelLoadError,
    ModelNotFoundError,
    TokenizerMismatchError,
    UnsupportedModelError,
)
from adafuse_core.text.ids import Ids

logger = logging.getLogger(__name__)

_TEXTS = (
    "Hello world",
    "Hello  world,   again",
    "line one\nline two\r\n\n\tindented\n    four",
    " leading and trailing ",
    "1984 + 3.14 = 1987.14; 1,000,000",
    "don't (stop) [now] {ok} <a href='x'> a < b",
    "Grüße aus Zürich, naïve façade, ½ €",
    "日本語のテキスト。中文 한국어 ไทย",
    "Привет, мир! Γειά σου Κόσμε. שלום عالم",
    "👩‍👩‍👧 🇩🇪 😀!",
    "def f(x):\n    return x ** 2  # comment\n",
    "MixedCase camelCase snake_case kebab-case ALLCAPS",
    "e\u0301 \u00e9 \ufb01 \u2126 \u00a0|",
    "...---!!!???",
    "the quick brown fox jumps over the lazy dog",
)
_SPECIAL_TOKENS = 6  # of the tokenizer's own that are encoded, too
_TOPS = (20, 10, 5, 3, 2)  # numbers of likeliest tokens to try
_FORMAT_ERRORS = (AttributeError, LookupError, TypeError, ValueError)
_CHECK = "check base_url in backend_options, and the server's version"
_TOLERANCE = 0.1  # nats by which two passes of a model in 16 bits may differ


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the server has told.

    Args:
        model: Name of the model on the server.
        root: Where the server has loaded it from.
        max_context: Most tokens of prompt and continuation.
        version: Version of its software.
    """

    model: str
    root: str
    max_context: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Handshake:
    """Checks of one server for one member.

    Args:
        server: The server.
        model: Name of the model on it; None for its only one.
        usual: Name to look for if the server has several models, and `model` is None.
        tokenizer: The member's tokenizer.
        schema: Name of the requests' schema in `/openapi.json`, and the fields that it must have.
        since: The software that has these fields, for errors.
    """

    server: Server
    model: str | None
    usual: str
    tokenizer: Any
    schema: tuple[str, tuple[str, ...]]
    since: str

    def run(self) -> Found:
        """Ask the server, and wait for it up to the deadline if it does not answer.

        The same checks are made again whenever the server did not answer for a while.

        Raises:
            ModelLoadError: The server can't be reached, or is not usable for this member.
        """
        try:
            found = self.server.run_persistently(self._checked)
        except MemberError as error:
            raise ModelLoadError(error.message, hint=error.hint) from error
        except _FORMAT_ERRORS as error:
            raise self._unsupported(
                f"answers in an unknown format ({type(error).__name__}: {error})", _CHECK
            ) from error

        async def check_again() -> None:
            try:
                if await self._checked() != found:
                    raise ModelLoadError("it has another model, version or context window than before")
            except (ModelLoadError, *_FORMAT_ERRORS) as error:
                raise _replaced(error, self.server.address.base_url) from error

        self.server.check_after_outages(check_again)
        return found

    async def _checked(self) -> Found:
        listed = (await self.server.get("/models"))["data"]
        model = self._chosen({entry["id"]: entry for entry in listed})
        version, _, _ = await together(self._version(), self._check_fields(), self._check_tokenizer(model["id"]))
        if not model.get("max_model_len"):
            raise self._unsupported("does not tell its longest context (max_model_len)", f"use {self.since}")
        return Found(
            model=model["id"],
            root=str(model.get("root") or model["id"]),
            max_context=int(model["max_model_len"]),
            version=version,
        )

    def _chosen(self, models: dict[str, Json]) -> Json:
        wanted = self.model or (next(iter(models)) if len(models) == 1 else self.usual)
        if wanted not in models:
            raise ModelNotFoundError(
                f"the server at {self.server.address.base_url} has no model {wanted!r}, it has {list(models)}",
                hint="set backend_options={'model': ...} to one of them",
            )
        return models[wanted]

    async def _version(self) -> str:
        try:
            return str((await self.server.get(f"{self.server.address.root}/version"))["version"])
        except Refused:  # behind a proxy that has the routes of OpenAI's format only
            return "of unknown version"

    async def _check_fields(self) -> None:
        """Refuse servers that would ignore a field of the requests."""
        try:
            schemas = (await self.server.get(f"{self.server.address.root}/openapi.json"))["components"]["schemas"]
        except Refused:  # switched off; the numbers are checked in any case
            return
        name, fields = self.schema
        known = schemas.get(name, {}).get("properties", {})
        if missing := [field for field in fields if field not in known]:
            raise self._unsupported(f"does not know {' and '.join(missing)}", f"use {self.since}")

    async def _check_tokenizer(self, model: str) -> None:
        """Compare the ids of some texts, which include names of special tokens."""
        texts = (*_TEXTS, *map(str, self.tokenizer.all_special_tokens[:_SPECIAL_TOKENS]))
        encoded = await together(*(self._encoded(model, text) for text in texts))
        for text, got in zip(texts, encoded, strict=True):
            expected = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if got != expected:
                raise TokenizerMismatchError(
                    f"the server at {self.server.address.base_url} encodes {text!r} as {got[:12]}, "
                    f"the member's tokenizer as {expected[:12]}",
                    hint="set model (or tokenizer) of the member to the files that the server has loaded",
                )

    async def _encoded(self, model: str, text: str) -> list[int]:
        url, body = f"{self.server.address.root}/tokenize", {"model": model, "prompt": text}
        try:
            return list((await self.server.post(url, {**body, "add_special_tokens": False}))["tokens"])
        except Refused as error:
            problem = f"does not encode texts at /tokenize ({error}), so its tokenizer can't be checked"
            raise self._unsupported(problem, "let the proxy in front of it pass this route") from error

    def _unsupported(self, problem: str, hint: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"the server at {self.server.address.base_url} {problem}", hint=hint)


def probe_top(server: Server, form: Format, ids: Sequence[int], vocab_size: int, wanted: int | None) -> int:
    """Read some numbers from the server; returns how many likeliest tokens it reports for a step.

    Args:
        server: The server.
        form: How to ask it.
        ids: A short context.
        vocab_size: Number of token ids of the model.
        wanted: The number of likeliest tokens to ask for; None for as many as usual.

    Raises:
        ModelLoadError: The server reports fewer, or reports something else than log-probabilities of this model.
    """
    context, problem = tuple(ids), None
    for top in [wanted] if wanted else [top for top in _TOPS if top <= vocab_size]:
        try:
            _check_numbers(*_numbers(server, form, context, top, vocab_size), vocab_size, server.address.base_url)
            return top
        except MemberError as error:
            problem = error
        except _FORMAT_ERRORS as error:
            raise UnsupportedModelError(
                f"the server at {server.address.base_url} answers in an unknown format: {error}", hint=_CHECK
            ) from error
    assert problem is not None
    raise ModelLoadError(problem.message, hint=f"lower top, or raise the server's --max-logprobs; {problem.hint}")


def _numbers(
    server: Server, form: Format, context: Ids, top: int, vocab_size: int
) -> tuple[Mapping[int, float], Mapping[int, float]]:
    """The log-probabilities of the likeliest tokens after a context, as drafts report them and as reads do."""
    (answer,) = server.post_all(form.path, [form.draft([context], 1, top, "")])
    likeliest = form.drafted(answer)[0][0].logprobs
    (answer,) = server.post_all(form.path, [form.read([context], [*likeliest, vocab_size - 1], "")])
    return likeliest, form.values(answer)[0]


def _check_numbers(likeliest: Mapping[int, float], read: Mapping[int, float], vocab_size: int, address: str) -> None:
    total = math.fsum(map(math.exp, likeliest.values()))
    least = 0.99 * len(likeliest) / vocab_size  # the likeliest tokens are no less likely than the average one
    if not least <= total <= 1.01:
        problem = f"reports probabilities of the likeliest tokens that add up to {total:.3g}"
        hint = "start it without --logprobs-mode: it must report raw log-probabilities"
    elif any(abs(read.get(token, math.inf) - value) > _TOLERANCE for token, value in likeliest.items()):
        problem, hint = "does not report the log-probabilities of given tokens", "use a later version"
    else:
        return
    raise UnsupportedModelError(f"the server at {address} {problem}", hint=hint)


def _replaced(error: Exception, address: str) -> MemberError:
    reason = error.message if isinstance(error, AdaFuseError) else f"{type(error).__name__}: {error}"
    return MemberError(
        f"the server at {address} was replaced during an outage: {reason}",
        hint="load the ensemble again",
        retryable=False,
    )
