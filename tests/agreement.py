"""Compares the library's answers with the oracle's: text, decisions, and the numbers behind them."""

from __future__ import annotations

from dataclasses import fields, replace

EXACT = 1e-9  # tolerance in float64
ROUGH = 1e-5  # tolerance for models that compute their softmax in float32


def difference(answer, expected, tolerance=EXACT):
    """A description of the first difference from the oracle's answer; None if there is none."""
    if full_text(answer) != expected.full_text:
        return f"text {full_text(answer)!r}, not {expected.full_text!r}"
    if answer.reason != "tool_calls" and ending(answer) != ending(expected):
        return f"ending {ending(answer)}, not {ending(expected)}"
    for number, (got, wanted) in enumerate(zip(answer.rounds, expected.rounds, strict=False)):
        if differing := differing_fields(decisions(got), decisions(wanted)):
            return f"round {number}: {differing}"
        if apart(numbers(got), numbers(wanted)) > tolerance:
            return f"round {number} has numbers {numbers(got)}, not {numbers(wanted)}"
    return None if len(answer.rounds) == len(expected.rounds) else f"{len(answer.rounds)} rounds"


def full_text(answer):
    """The whole text of an answer, markup of tool calls included."""
    return "".join(played.span.text for played in answer.rounds)


def ending(answer):
    return answer.text, answer.reason, answer.stop


def decisions(played):
    """A round without its numbers: spans, proposers, choice, and the counts of the scores."""
    return replace(
        played,
        drafts=tuple(replace(draft, margins=(0.0,) * len(draft.margins)) for draft in played.drafts),
        scores=tuple(counts(row) for row in played.scores),
        values=(),
        fused=(),
        committed_scores=counts(played.committed_scores),
    )


def differing_fields(got, wanted):
    """Names and values of the fields that differ."""
    return ", ".join(
        f"{field.name} {getattr(got, field.name)}, not {getattr(wanted, field.name)}"
        for field in fields(got)
        if getattr(got, field.name) != getattr(wanted, field.name)
    )


def counts(row):
    """Scores without log-probabilities: numbers of tokens, words and bytes."""
    return tuple(replace(score, logprobs=(0.0,) * len(score.logprobs)) for score in row)


def numbers(played):
    """Margins, log-probabilities, members' values and fused values of a round."""
    margins = [margin for draft in played.drafts for margin in draft.margins]
    logprobs = [value for row in (*played.scores, played.committed_scores) for score in row for value in score.logprobs]
    return margins + logprobs + [value for row in played.values for value in row] + [*played.fused]


def apart(first, second):
    """The largest difference of two lists of numbers; infinite if their lengths differ or one is NaN."""
    if len(first) != len(second):
        return float("inf")
    gaps = [abs(one - other) for one, other in zip(first, second, strict=True)]
    return max(gaps, default=0.0) if all(gap == gap for gap in gaps) else float("inf")
