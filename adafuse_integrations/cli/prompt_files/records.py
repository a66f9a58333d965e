"""The lines of the output: records as JSON objects in UTF-8, each with its line end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adafuse_core import Generation
from adafuse_integrations.cli.prompt_files.lines import Line


def answered(line: Line, answer: Generation, *, trace: bool, logprobs: bool) -> bytes:
    """The record of an answered line.

    Args:
        line: The line of the input.
        answer: Its answer.
        trace: Whether the record has every round, as `Round.to_dict()`.
        logprobs: Whether the record has the log-probabilities of every committed text.
    """
    rounds = [played.to_dict() for played in answer.rounds] if trace or logprobs else []
    return encoded(
        {
            **_beginning(line),
            "answer": answer.text,
            "finish_reason": answer.reason,
            **({"stop": answer.stop} if answer.stop is not None else {}),
            **({"reasoning": answer.reasoning} if answer.reasoning else {}),
            "usage": answer.usage.to_dict(),
            **(
                {"logprobs": [{"text": row["text"], "logprobs": row["logprobs"]} for row in rounds]} if logprobs else {}
            ),
            **({"rounds": rounds} if trace else {}),
        }
    )


def failed(line: Line, error: Exception) -> bytes:
    """The record of a line that could not be answered."""
    return encoded({**_beginning(line), "error": {"type": type(error).__name__, "message": str(error)}})


def encoded(record: Mapping[str, Any]) -> bytes:
    """A record as a line.

    Raises:
        ValueError: It contains a number that JSON lacks, such as infinity.
    """
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON has as an escape only
        return json.dumps(record, allow_nan=False).encode() + b"\n"


def _beginning(line: Line) -> dict[str, Any]:
    return {"line": line.number, **line.fields}
