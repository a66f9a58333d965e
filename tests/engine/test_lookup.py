"""A guess is what followed the last n-gram before. Its length depends on the earlier guesses."""

from __future__ import annotations

import random

import pytest

from adafuse_core.engine.lookup import Lookup

MAX_LENGTH = 8


def guess(ids, uncommitted=()):
    return Lookup().guess(tuple(ids), tuple(uncommitted))


def test_guess_is_what_followed_the_same_tokens_before():
    assert guess([1, 2, 3, 4, 5, 1, 2]) == (3, 4, 5)


def test_first_guess_is_short():
    assert guess([*range(20), 0, 1]) == (2, 3, 4)


def test_guess_ends_at_the_end_of_the_context():
    assert guess([1, 2, 9, 1, 2]) == (9, 1, 2)
    assert guess([7, 7, 7]) == (7,)


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 2]])
def test_context_without_repetition_gives_no_guess(ids):
    assert guess(ids) == ()


def test_one_repeated_token_gives_no_guess():
    assert guess([1, 2, 3, 1]) == ()


def test_longer_match_is_better_than_a_later_one():
    assert guess([1, 2, 3, 8, 8, 2, 3, 9, 9, 1, 2, 3]) == (8, 8, 2)


def test_later_match_is_better_than_an_earlier_one_of_equal_length():
    assert guess([2, 3, 8, 2, 3, 9, 2, 3]) == (9, 2, 3)


def test_uncommitted_tokens_are_looked_up_too():
    ids = [1, 2, 3, 4, 5, 6]
    assert guess(ids, [2, 3]) == (4, 5, 6)
    assert guess([*ids, 2], [3]) == (4, 5, 6)
    assert guess(ids, [1, 2, 3, 4, 5]) == (6,)


def test_uncommitted_tokens_are_not_indexed():
    lookup = Lookup()
    lookup.guess((1, 2), (5, 6, 7, 5, 6))
    assert lookup.guess((1, 2, 9), (5, 6)) == ()


def test_commit_may_replace_the_last_tokens():
    lookup = Lookup()
    assert lookup.guess((1, 2, 3, 1, 2), ()) == (3, 1, 2)
    assert lookup.guess((1, 2, 3, 1, 7, 2, 3), ()) == (1, 7, 2)
    assert lookup.guess((1, 2, 3, 1, 7, 4, 1), (2,)) == (3, 1, 7)
    assert lookup.guess((1, 2, 3, 1, 7, 4, 1), (2, 3, 1, 7)) == (4, 1)
    assert lookup.guess((1, 2, 3, 1, 7, 4, 1), (7, 2)) == ()


def test_guesses_get_longer_after_correct_ones_up_to_a_bound():
    text = tuple(range(30)) * 3
    lookup, end, lengths = Lookup(), 32, []
    for _ in range(4):
        guessed = lookup.guess(text[:end], ())
        assert guessed == text[end : end + len(guessed)]
        lengths.append(len(guessed))
        end += len(guessed)
    assert lengths == [3, 6, MAX_LENGTH, MAX_LENGTH]


def failing(lookup, rounds):
    """Lengths of guesses that are all wrong, and the committed ids."""
    ids, lengths = (1, 2), []
    for step in range(rounds):
        ids = (*ids, 10 + step, 1, 2)
        lengths.append(len(lookup.guess(ids, ())))
    return lengths, ids


def test_guesses_get_shorter_after_wrong_ones_and_then_rare():
    lengths, _ = failing(Lookup(), 40)
    assert lengths[:4] == [3, 2, 1, 0]
    assert max(lengths[3:]) == 1
    assert 0 < sum(lengths[3:]) <= 37 // 4 + 1


def test_guesses_come_back_after_a_correct_one():
    lookup = Lookup()
    _, ids = failing(lookup, 20)
    lengths = []
    for token in range(100, 124):  # a text that repeats itself
        ids = (*ids, 100 + token % 8)
        lengths.append(len(lookup.guess(ids, ())))
    assert max(lengths) > 1


def test_guess_after_rejected_tokens_does_not_change_the_length():
    lookup, ids = Lookup(), (1, 2, 3, 4, 5, 6)
    for step in range(10):
        assert lookup.guess(ids, (1, 2)) == (3, 4, 5)
        ids = (*ids, 10 + step)


def plain_search(ids, uncommitted):
    last = (*ids[-4:], *uncommitted)[-4:]
    for size in (4, 3, 2):
        for end in range(len(ids) - 1, size - 1, -1):
            if len(last) >= size and ids[end - size : end] == last[-size:]:
                return ids[end : end + MAX_LENGTH]
    return ()


@pytest.mark.parametrize("seed", range(50))
def test_guesses_equal_a_plain_search_at_every_step(seed):
    draw = random.Random(seed)
    lookup, ids, found = Lookup(), (0,), 0
    for _ in range(60):
        if draw.random() < 0.2:  # replace the last tokens
            ids = ids[: max(1, len(ids) - draw.randrange(1, 3))]
        if draw.random() < 0.6:  # as guessed
            ids += plain_search(ids, ())[: draw.randrange(1, 4)]
        else:
            ids += tuple(draw.randrange(4) for _ in range(draw.randrange(1, 4)))
        for _ in range(3):
            uncommitted = tuple(draw.randrange(4) for _ in range(draw.randrange(0, 6)))
            got = lookup.guess(ids, uncommitted)
            assert got == plain_search(ids, uncommitted)[: len(got)]
            found += bool(got)
    assert found > 30
