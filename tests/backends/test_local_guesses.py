"""Guesses of the next draft are all of its branches or none: a few of them would save no pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from adafuse_core.backends.local import LocalSession

BEGINNINGS = {(1,): [(1, 7), (1, 8), (1, 9)], (2,): [(2, 7)], (3,): [(3, 7), (3, 8), (3, 9)]}


@pytest.mark.parametrize(
    ("affordable", "contexts"), [(0, []), (1, []), (2, [1]), (3, [1]), (4, [1, 2]), (5, [1, 2]), (6, [1, 2, 3])]
)
def test_branches_of_a_context_are_read_together(affordable, contexts):
    costs = SimpleNamespace(affordable_guesses=lambda: affordable)
    session = SimpleNamespace(_lookup=object(), _costs=costs, _beginnings=lambda context: BEGINNINGS[context])
    found = LocalSession._next_words(session, [(1,), (2,), (1,), (3,)])
    assert found == [each for context in contexts for each in BEGINNINGS[context,]]
