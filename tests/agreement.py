"""Holds the product's answers against the oracle's: the text, every decision, and every number behind one."""

from __future__ import annotations

from dataclasses import fields, replace

EXACT = 1e-9  # between float64 and float64
ROUGH = 1e-5  # for a family whose own softmax is of float32


def difference(answer, expected, tolerance=EXACT):
    """What is wrong with an answer, in words; None if it is the oracle's."""
    if written(answer) != expected.written:
        return f"text {written(answer)!r}, not {expected.written!r}"
    if answer.reason != "tool_calls" and ending(answer) != ending(expected):
        return f"ending {ending(answer)}, not {ending(expected)}"
    for number, (got, wanted) in enumerate(zip(answer.rounds, expected.rounds, strict=False)):
        if others := unlike(decisions(got), decisions(wanted)):
            return f"round {number}: {others}"
        if apart(numbers(got), numbers(wanted)) > tolerance:
            return f"round {number} has numbers {numbers(got)}, not {numbers(wanted)}"
    return None if len(answer.rounds) == len(expected.rounds) else f"{len(answer.rounds)} rounds"


def written(answer):
    """The whole text of an answer, markup of calls included."""
    return "".join(played.span.text for played in answer.rounds)


def ending(answer):
    return answer.text, answer.reason, answer.stop


def decisions(played):
    """A round without its numbers: spans, proposers, choice, and what the scores count."""
    return replace(
        played,
        drafts=tuple(replace(draft, margins=(0.0,) * len(draft.margins)) for draft in played.drafts),
        scores=tuple(counts(row) for row in played.scores),
        values=(),
        fused=(),
        cut_scores=counts(played.cut_scores),
    )


def unlike(got, wanted):
    """The fields that differ."""
    return ", ".join(
        f"{field.name} {getattr(got, field.name)}, not {getattr(wanted, field.name)}"
        for field in fields(got)
        if getattr(got, field.name) != getattr(wanted, field.name)
    )


def counts(row):
    """Scores without their log-probabilities: how many there are, words and bytes."""
    return tuple(replace(score, logprobs=(0.0,) * len(score.logprobs)) for score in row)


def numbers(played):
    """Margins, log-probabilities, members' values and fused values of a round."""
    margins = [margin for draft in played.drafts for margin in draft.margins]
    logprobs = [value for row in (*played.scores, played.cut_scores) for score in row for value in score.logprobs]
    return margins + logprobs + [value for row in played.values for value in row] + [*played.fused]


def apart(first, second):
    """The largest difference of two rows of numbers; infinite if there are more of one kind, or one is no number."""
    if len(first) != len(second):
        return float("inf")
    gaps = [abs(one - other) for one, other in zip(first, second, strict=True)]
    return max(gaps, default=0.0) if all(gap == gap for gap in gaps) else float("inf")
