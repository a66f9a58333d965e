"""Guesses are what followed the last tokens when they stood there before, as far as guesses have held so far."""

from __future__ import annotations

import random

import pytest

from adafuse_core.engine.lookup import Lookup

LONGEST = 8


def guess(ids, beyond=()):
    return Lookup().guess(tuple(ids), tuple(beyond))


def test_what_followed_the_last_tokens_before_is_guessed():
    assert guess([1, 2, 3, 4, 5, 1, 2]) == (3, 4, 5)


def test_first_guess_is_short():
    assert guess([*range(20), 0, 1]) == (2, 3, 4)


def test_guess_ends_with_what_is_known():
    assert guess([1, 2, 9, 1, 2]) == (9, 1, 2)
    assert guess([7, 7, 7]) == (7,)


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 2]])
def test_nothing_is_guessed_where_nothing_is_repeated(ids):
    assert guess(ids) == ()


def test_one_repeated_token_is_no_ground_for_a_guess():
    assert guess([1, 2, 3, 1]) == ()


def test_longer_match_is_better_than_a_later_one():
    assert guess([1, 2, 3, 8, 8, 2, 3, 9, 9, 1, 2, 3]) == (8, 8, 2)


def test_later_match_is_better_than_an_earlier_one_of_equal_length():
    assert guess([2, 3, 8, 2, 3, 9, 2, 3]) == (9, 2, 3)


def test_tokens_beyond_the_committed_ones_are_looked_up_too():
    ids = [1, 2, 3, 4, 5, 6]
    assert guess(ids, [2, 3]) == (4, 5, 6)
    assert guess([*ids, 2], [3]) == (4, 5, 6)
    assert guess(ids, [1, 2, 3, 4, 5]) == (6,)


def test_tokens_beyond_are_not_learnt():
    lookup = Lookup()
    lookup.guess((1, 2), (5, 6, 7, 5, 6))
    assert lookup.guess((1, 2, 9), (5, 6)) == ()


def test_last_tokens_may_be_written_anew():
    lookup = Lookup()
    assert lookup.guess((1, 2, 3, 1, 2), ()) == (3, 1, 2)
    assert lookup.guess((1, 2, 3, 1, 7, 2, 3), ()) == (1, 7, 2)
    assert lookup.guess((1, 2, 3, 1, 7, 4, 1), (2,)) == (3, 1, 7)
    assert lookup.guess((1, 2, 3, 1, 7, 4, 1), (2, 3, 1, 7)) == (4, 1)
    assert lookup.guess((1, 2, 3, 1, 7, 4, 1), (7, 2)) == ()


def test_guesses_that_hold_grow_longer_up_to_a_bound():
    text = tuple(range(30)) * 3
    lookup, end, lengths = Lookup(), 32, []
    for _ in range(4):
        came = lookup.guess(text[:end], ())
        assert came == text[end : end + len(came)]
        lengths.append(len(came))
        end += len(came)
    assert lengths == [3, 6, LONGEST, LONGEST]


def failing(lookup, rounds):
    """Lengths of guesses of which none ever holds; and what was committed."""
    ids, lengths = (1, 2), []
    for step in range(rounds):
        ids = (*ids, 10 + step, 1, 2)
        lengths.append(len(lookup.guess(ids, ())))
    return lengths, ids


def test_guesses_that_fail_become_short_and_then_rare():
    lengths, _ = failing(Lookup(), 40)
    assert lengths[:4] == [3, 2, 1, 0]
    assert max(lengths[3:]) == 1
    assert 0 < sum(lengths[3:]) <= 37 // 4 + 1


def test_guesses_come_back_once_one_holds():
    lookup = Lookup()
    _, ids = failing(lookup, 20)
    lengths = []
    for token in range(100, 124):  # a text that repeats itself
        ids = (*ids, 100 + token % 8)
        lengths.append(len(lookup.guess(ids, ())))
    assert max(lengths) > 1


def test_guess_after_tokens_that_were_not_written_is_not_judged():
    lookup, ids = Lookup(), (1, 2, 3, 4, 5, 6)
    for step in range(10):
        assert lookup.guess(ids, (1, 2)) == (3, 4, 5)
        ids = (*ids, 10 + step)


def plainly(ids, beyond):
    last = (*ids[-4:], *beyond)[-4:]
    for size in (4, 3, 2):
        for end in range(len(ids) - 1, size - 1, -1):
            if len(last) >= size and ids[end - size : end] == last[-size:]:
                return ids[end : end + LONGEST]
    return ()


@pytest.mark.parametrize("seed", range(50))
def test_growing_step_by_step_guesses_what_a_plain_search_finds(seed):
    draw = random.Random(seed)
    lookup, ids, found = Lookup(), (0,), 0
    for _ in range(60):
        if draw.random() < 0.2:  # tokens on the seam
            ids = ids[: max(1, len(ids) - draw.randrange(1, 3))]
        if draw.random() < 0.6:  # as was expected
            ids += plainly(ids, ())[: draw.randrange(1, 4)]
        else:
            ids += tuple(draw.randrange(4) for _ in range(draw.randrange(1, 4)))
        for _ in range(3):
            beyond = tuple(draw.randrange(4) for _ in range(draw.randrange(0, 6)))
            got = lookup.guess(ids, beyond)
            assert got == plainly(ids, beyond)[: len(got)]
            found += bool(got)
    assert found > 30
