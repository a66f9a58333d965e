"""A memo has the distributions that were read, of one sequence and its branches."""

from __future__ import annotations

import gc
import random
import weakref

import pytest

from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import nodes_to_read

PROMPT = tuple(range(10, 20))


def read(memo, *contexts):
    """As a pass does: give every node of a context a slot, and the last node a distribution."""
    for context in contexts:
        node = memo.node(context)
        for above in node.path():
            above.kv = above.kv or "slot"
        node.distribution = ("after", *context)


def nodes(memo):
    return list(memo.root.subtree())


def test_new_memo_has_no_distributions():
    assert Memo(PROMPT).get(PROMPT) is None


def test_memo_has_the_contexts_that_were_read_and_no_others():
    memo = Memo(PROMPT)
    read(memo, (*PROMPT, 1, 2))
    assert memo.get((*PROMPT, 1, 2)) == ("after", *PROMPT, 1, 2)
    for other in [PROMPT, (*PROMPT, 1), (*PROMPT, 1, 3), (*PROMPT, 1, 2, 3), (1, *PROMPT[1:], 1, 2)]:
        assert memo.get(other) is None


def test_get_creates_no_nodes():
    memo = Memo(PROMPT)
    read(memo, (*PROMPT, 1))
    before = nodes(memo)
    for context in [(*PROMPT, 1, 2, 3), (*PROMPT, 2), PROMPT[:3], (1,), (*PROMPT[:-2], 5)]:
        memo.get(context)
    assert nodes(memo) == before


def test_the_last_tokens_of_a_prompt_are_nodes_and_the_others_its_trunk():
    memo = Memo(PROMPT)
    assert memo.trunk == PROMPT[:-4]
    assert [node.token for node in memo.head.path()][:4] == list(PROMPT[:-5:-1])
    assert Memo(PROMPT[:3]).trunk == ()


def test_commit_may_replace_the_last_prompt_token():
    memo = Memo(PROMPT)
    read(memo, PROMPT, (*PROMPT[:-1], 7, 8))
    root = memo.root
    removed = memo.commit((*PROMPT[:-1], 7, 8))
    assert memo.root is root
    assert [node.token for node in removed] == [PROMPT[-1]]
    assert memo.get((*PROMPT[:-1], 7, 8)) is not None
    assert memo.get(PROMPT) is None


def test_context_that_ends_in_the_trunk_resets_the_memo():
    memo = Memo(PROMPT)
    read(memo, (*PROMPT, 1))
    memo.kv = "slots"
    node = memo.node(PROMPT[:5])
    assert node.depth == 5
    assert memo.trunk == PROMPT[:1]
    assert memo.kv is None
    assert memo.ids == PROMPT
    assert memo.get((*PROMPT, 1)) is None
    assert [above.token for above in memo.head.path()][:9] == list(PROMPT[:0:-1])


def test_commit_may_replace_the_first_token():
    memo = Memo(PROMPT)
    read(memo, (1, 2, 3))
    assert memo.get((1, 2, 3)) == ("after", 1, 2, 3)
    memo.commit((1, 2, 3))
    assert memo.ids == (1, 2, 3)


def test_commit_keeps_continuations_and_removes_other_branches():
    memo = Memo(PROMPT)
    read(memo, (*PROMPT, 1), (*PROMPT, 1, 2), (*PROMPT, 1, 3), (*PROMPT, 4), (*PROMPT, 4, 5))
    removed = memo.commit((*PROMPT, 1))
    assert sorted(node.token for node in removed) == [4, 5]
    assert memo.get((*PROMPT, 1, 2)) is not None
    assert memo.get((*PROMPT, 1, 3)) is not None
    assert memo.get((*PROMPT, 4)) is None


def test_branch_is_removed_once():
    memo = Memo(PROMPT)
    read(memo, (*PROMPT[:-1], 5), (*PROMPT, 1), (*PROMPT, 2))
    first = memo.commit((*PROMPT, 1))
    second = memo.commit((*PROMPT, 1, 3))
    assert sorted(node.token for node in first) == [2, 5]
    assert second == []


def test_branch_above_the_head_is_removed_at_the_next_commit():
    memo = Memo(PROMPT)
    memo.commit((*PROMPT, 1, 2, 3))
    read(memo, (*PROMPT, 1, 9))
    removed = memo.commit((*PROMPT, 1, 2, 3, 4))
    assert [node.token for node in removed] == [9]


def test_commit_of_a_shorter_context_keeps_the_longer_one():
    memo = Memo(PROMPT)
    memo.commit((*PROMPT, 1, 2))
    read(memo, (*PROMPT, 1, 2), (*PROMPT, 1, 2, 3))
    assert memo.commit((*PROMPT, 1)) == []
    assert memo.get((*PROMPT, 1, 2, 3)) is not None
    assert [node.committed for node in memo.head.subtree()] == [True, False, False]


def test_only_the_newest_committed_tokens_keep_their_distribution():
    memo = Memo(PROMPT)
    context = PROMPT
    for token in range(6):
        context = (*context, token)
        read(memo, context)
        memo.commit(context)
    known = [length for length in range(1, len(context) + 1) if memo.get(context[:length])]
    assert known == [len(context) - 2, len(context) - 1, len(context)]


def test_restart_forgets_all_but_the_committed_tokens():
    memo = Memo(PROMPT)
    read(memo, (*PROMPT, 1), (*PROMPT, 2))
    memo.commit((*PROMPT, 1))
    memo.restart()
    assert memo.ids == (*PROMPT, 1)
    assert memo.get((*PROMPT, 1)) is None
    assert all(node.kv is None and node.distribution is None for node in nodes(memo))
    assert len(nodes(memo)) == 1 + len(memo.ids) - len(memo.trunk)


class Held:
    """Stands for a distribution, which holds a large table."""


def forgotten_by(action, *, committed=()):
    """Whether an action frees the distribution after a branch, without Python's collector of cycles."""
    memo = Memo(PROMPT)
    read(memo, PROMPT, (*PROMPT, 1), (*PROMPT, 1, 2), (*PROMPT, 1, 3))
    if committed:
        memo.commit((*PROMPT, *committed))
    held = Held()
    memo.node((*PROMPT, 1, 2)).distribution = held
    freed = weakref.ref(held)
    del held
    gc.disable()
    try:
        assert freed() is not None
        action(memo)
        return freed() is None
    finally:
        gc.enable()


def test_what_is_removed_is_freed_at_once():
    assert forgotten_by(lambda memo: memo.commit((*PROMPT, 4)))
    assert forgotten_by(lambda memo: memo.settle())
    assert forgotten_by(lambda memo: memo.settle(), committed=(1,))
    assert forgotten_by(lambda memo: memo.restart())
    assert forgotten_by(lambda memo: memo.node(PROMPT[:2]))  # resets the memo
    assert not forgotten_by(lambda memo: memo.commit((*PROMPT, 1)))


def test_nodes_to_read_are_below_the_last_node_that_was_read():
    memo = Memo(PROMPT)
    read(memo, PROMPT)
    assert [node.token for node in nodes_to_read([memo.node((*PROMPT, 1, 2))])] == [1, 2]
    assert nodes_to_read([memo.head]) == []


class Plain:
    """The reference, without a tree: contexts that the memo may have, and contexts that it must have."""

    def __init__(self, ids):
        self.ids, self.may, self.must = ids, set(), set()

    def read(self, context):
        self.may.add(context)
        self.must.add(context)

    def commit(self, ids):
        self.may = {context for context in self.may if context[: len(ids)] == ids or ids[: len(context)] == context}
        self.must = {context for context in self.may & self.must if len(context) > len(ids) - 3}
        self.ids = ids

    def forget(self):
        self.may.clear()
        self.must.clear()


def check(memo, plain, contexts):
    for context in contexts:
        known = memo.get(context)
        assert known in (None, ("after", *context))
        assert known is None or context in plain.may
        assert known is not None or context not in plain.must
    for depth, node in enumerate(reversed(list(memo.head.path())), start=len(memo.trunk)):
        assert (node.depth, node.committed) == (depth, True)
    assert memo.head.depth == len(memo.ids)
    assert sum(node.committed for node in nodes(memo)) == len(memo.ids) - len(memo.trunk) + 1


@pytest.mark.parametrize("seed", range(60))
def test_random_operations_agree_with_a_set_of_contexts(seed):
    draw = random.Random(seed)
    ids = tuple(draw.randrange(3) for _ in range(draw.randrange(1, 12)))
    memo, plain = Memo(ids), Plain(ids)

    def some_context():
        cut = len(plain.ids) - draw.choice([0, 0, 0, 1, 2, 3, 6])
        return plain.ids[: max(0, cut)] + tuple(draw.randrange(3) for _ in range(draw.randrange(1, 5)))

    for _ in range(40):
        context, root = some_context(), memo.root
        before = nodes(memo)
        if draw.random() < 0.6:
            read(memo, context)
            if memo.root is not root:
                plain.forget()
            plain.read(context)
        else:
            removed = memo.commit(context)
            if memo.root is not root:
                plain.forget()
            else:
                gone = set(before) - set(nodes(memo))
                assert len(removed) == len(gone)
                assert set(removed) == gone
            plain.commit(context)
            on_path = set(memo.head.path())
            assert set(nodes(memo)) == on_path | set(memo.head.subtree())  # no other branches
        check(memo, plain, [*plain.may, *(some_context() for _ in range(5))])
