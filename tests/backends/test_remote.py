"""Remote sessions: a local backend behind a channel of threads and pickled messages gives what it gives itself."""

from __future__ import annotations

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Waiting
from dataclasses import replace

import pytest

from adafuse_core import Ensemble, Grammar
from adafuse_core.backends.base import TopTokens
from adafuse_core.backends.remote import host as remote_host
from adafuse_core.backends.remote.host import Host
from adafuse_core.backends.remote.messages import PackedIds, PackedMasks, ScoreCall
from adafuse_core.backends.remote.session import RemoteBackend, RemoteSession
from adafuse_core.backends.remote.words import Ahead, Certainty, token_kinds, until_words
from adafuse_core.engine.tree import TreeStore
from adafuse_core.errors import CancelledError, ContextOverflowError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.loader import load_member
from tests.agreement import EXACT, apart, decisions, numbers
from tests.backends.contract import BackendContract


class Pipe:
    """A channel to a host in this process. Messages are pickled, and calls run on threads of their own."""

    def __init__(self, host):
        self.host = host
        self.threads = ThreadPoolExecutor(16)
        self.calls = []

    def ask(self, method, call, check):
        self.calls.append(method)
        running = self.threads.submit(self.answered, method, pickle.dumps(call))
        while True:
            try:
                return pickle.loads(running.result(timeout=0.02))
            except Waiting:
                try:
                    check()
                except BaseException:
                    self.tell("cancel", call.call)
                    raise

    def tell(self, method, *arguments):
        self.calls.append(method)
        self.answered(method, pickle.dumps(arguments[0]))

    def answered(self, method, message):
        target = self.host if hasattr(self.host, method) else self.host.backend
        return pickle.dumps(getattr(target, method)(pickle.loads(message)))

    def close(self):
        self.threads.shutdown()
        self.host.backend.close()


def behind_a_pipe(config):
    """The member of a config, with its backend behind a channel."""
    member = load_member(config)
    abilities = member.backend.abilities()
    host = Host(member.backend, token_kinds(member.prompt_reader.tokenizer, abilities.vocab_size))
    member.backend = RemoteBackend(Pipe(host), abilities)
    return member


class TestRemote(BackendContract):
    steps_ahead = 40

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls):
        return MemberConfig(model="small:birch", dtype="float64", device="cpu")

    @pytest.fixture(scope="class")
    @classmethod
    def member(cls, config):
        member = behind_a_pipe(config)
        yield member
        member.close()


MODELS = ("aspen", "birch")
QUESTION = [{"role": "user", "content": "What is the capital of Peru?"}]
RULES = {
    "beam": {"strategy": "beam", "branches": 2},
    "adafuse": {"strategy": "adafuse", "max_words": 3, "look_ahead": 2},
    "union": {"strategy": "token_union", "union": "full", "top_tokens": 4},
    "rerank": {"strategy": "rerank"},
}


def config_of(model):
    return MemberConfig(model=f"small:{model}", name=model, dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def ensembles():
    """Makes an ensemble of local members, and one whose members are behind channels, by the same rule."""
    local = [load_member(config_of(model)) for model in MODELS]
    remote = [behind_a_pipe(config_of(model)) for model in MODELS]
    mixed = [local[0], remote[1]]
    yield lambda **rule: [Ensemble(members=members, **rule) for members in (local, remote, mixed)]
    for member in (*local, *remote):
        member.close()


def check_equal(answer, expected):
    """Equal texts, decisions and numbers."""
    assert (answer.text, answer.reason, answer.stop) == (expected.text, expected.reason, expected.stop)
    assert [decisions(played) for played in answer.rounds] == [decisions(played) for played in expected.rounds]
    for got, wanted in zip(answer.rounds, expected.rounds, strict=True):
        assert apart(numbers(got), numbers(wanted)) <= EXACT


@pytest.mark.parametrize("rule", RULES)
def test_ensembles_of_remote_members_answer_as_local_ones(ensembles, rule):
    tokens = 2 if rule == "union" else 6
    local, *others = (each.generate(QUESTION, max_new_tokens=tokens) for each in ensembles(**RULES[rule]))
    assert local.text.startswith("The")
    for answer in others:
        check_equal(answer, local)


def test_grammars_hold_for_remote_members(ensembles):
    grammar = Grammar.regex(r"[A-Z][a-z]{1,5}, [a-z ]{2,9}!|[0-9]{2}")
    local, remote, _ = (each.generate(QUESTION, max_new_tokens=12, grammar=grammar) for each in ensembles(branches=2))
    assert local.text
    check_equal(remote, local)


def test_a_round_takes_few_calls_and_reads_few_tokens_in_vain(ensembles):
    local, remote, _ = ensembles(strategy="beam")
    calls = [member.backend._channel.calls for member in remote.members]
    expected = local.generate(QUESTION, max_new_tokens=24)
    for each in calls:
        each.clear()
    answer = remote.generate(QUESTION, max_new_tokens=24)
    for name in MODELS:
        assert answer.usage.read_tokens[name] <= 1.3 * expected.usage.read_tokens[name]
    for each in calls:
        assert len(each) <= 2 * len(answer.rounds)
        assert each.count("end") == 1


def test_a_host_needs_hardly_more_passes_than_a_local_member(ensembles, monkeypatch):
    """Branches of one context are drafted in the passes that another one takes for its first step."""
    passes, run = [], TreeStore._run
    monkeypatch.setattr(TreeStore, "_run", lambda self, *arguments: passes.append(self) or run(self, *arguments))
    counts = []
    for ensemble in ensembles(strategy="beam")[:2]:
        for prompt in ("The tower and", "Once upon a time there", "It was a dark"):
            ensemble.generate(prompt, max_new_tokens=24)
        counts.append(len(passes))
        passes.clear()
    assert counts[0] >= 100
    assert counts[1] <= 1.15 * counts[0]


class Forgetful(Pipe):
    """A channel whose host loses all sessions after every third call."""

    def ask(self, method, call, check):
        if len(self.calls) % 3 == 2:
            self.host = Host(self.host.backend, self.host._kinds)
        return super().ask(method, call, check)


def test_a_host_that_loses_its_sessions_gives_the_same_answer(ensembles):
    local, remote, _ = ensembles(branches=2)
    lossy = [copy.copy(member) for member in remote.members]
    for member in lossy:
        member.backend = RemoteBackend(Forgetful(member.backend._channel.host), member.abilities)
    expected = local.generate(QUESTION, max_new_tokens=12)
    answer = Ensemble(members=lossy, branches=2).generate(QUESTION, max_new_tokens=12)
    check_equal(answer, expected)
    assert all(sum(each.backend._channel.calls.count(name) for name in ("draft", "score")) > 6 for each in lossy)


@pytest.fixture
def pipe(ensembles):
    """A channel to a host without sessions."""
    host = ensembles()[1].members[0].backend._channel.host
    host.backend.forget()
    return Pipe(Host(host.backend, host._kinds))


def session_of(pipe, ids, check=lambda: None, **options):
    return RemoteSession(
        pipe, ids, {"window": None, "lookup": False, "namespace": "", "masked": False} | options, check, None
    )


def test_a_repeated_call_has_the_same_reply(pipe):
    session = session_of(pipe, (3, 5, 7))
    call = session._call(
        ScoreCall,
        **{name: PackedIds.of([(3, 5)]) for name in ("contexts", "guesses")},
        continuations=PackedIds.of([(8, 9)]),
        masks=PackedMasks.of({}, ()),
    )
    first, again = (pipe.ask("score", call, lambda: None) for _ in range(2))
    assert first.logprobs.tolist() == again.logprobs.tolist()
    assert (first.opened, again.opened) == (True, False)


def test_a_call_that_was_cancelled_before_it_arrived_does_not_run(pipe):
    session = session_of(pipe, (3, 5, 7))
    call = session._call(
        ScoreCall,
        contexts=PackedIds.of([(3, 5)]),
        continuations=PackedIds.of([(8, 9)]),
        masks=PackedMasks.of({}, ()),
        guesses=PackedIds.of([]),
    )
    pipe.host.cancel(call.call)
    with pytest.raises(CancelledError):
        pipe.host.score(call)
    assert pipe.host.score(replace(call, call="another")).logprobs is not None


def test_a_session_that_is_closed_during_a_call_ends_with_the_call(pipe, monkeypatch):
    session, ended = session_of(pipe, (3, 5, 7)), []
    closing = pipe.host.backend.open((3,), window=None, lookup=False, raise_if_cancelled=lambda: None)
    kind = type(closing)
    drafted, closed = kind.draft, kind.close

    def draft(self, *arguments):
        session.close()
        assert not ended  # while the session is in use
        return drafted(self, *arguments)

    monkeypatch.setattr(kind, "draft", draft)
    monkeypatch.setattr(kind, "close", lambda self: ended.append(self) or closed(self))
    assert session.draft([(3, 5, 7)], 2, 1, lambda *_: True)
    assert len(ended) == 1
    assert not pipe.host._sessions


def test_a_host_keeps_a_bounded_number_of_sessions(pipe, monkeypatch):
    monkeypatch.setattr(remote_host, "MOST_SESSIONS", 3)
    sessions = [session_of(pipe, (3, token)) for token in range(5, 11)]
    first = [session.score([(3,)], [(7, 8)]) for session in sessions]
    assert len(pipe.host._sessions) == 3
    assert [session.score([(3,)], [(7, 8)]) for session in sessions] == first
    for session in sessions:
        session.close()
    assert not pipe.host._sessions


def test_a_host_closes_sessions_of_processes_that_are_gone(pipe, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(remote_host.time, "monotonic", lambda: now[0])
    gone, other = session_of(pipe, (3, 5)), session_of(pipe, (3, 9))
    first = gone.score([(3, 5)], [(7, 8)])
    now[0] += remote_host.IDLE_SECONDS - 1
    other.score([(3, 9)], [(7, 8)])
    assert len(pipe.host._sessions) == 2
    now[0] += 2
    other.score([(3, 9)], [(7, 8)])
    assert len(pipe.host._sessions) == 1
    assert gone.score([(3, 5)], [(7, 8)]) == first  # if it was not gone
    assert len(pipe.host._sessions) == 2


def test_a_prompt_that_can_never_fit_is_refused_without_a_call(pipe):
    backend = RemoteBackend(pipe, replace(pipe.host.backend.abilities(), max_context=5))
    pipe.calls.clear()
    options = {"window": None, "lookup": False, "raise_if_cancelled": lambda: None}
    with pytest.raises(ContextOverflowError, match="5"):
        backend.open((1, 2, 3, 4, 5), **options)
    assert backend.open((1, 2, 3, 4), **options)
    assert not pipe.calls


# --- how far the host drafts ahead ---


def drafted(kinds, words, *, inside):
    """How many steps a row of tokens of these kinds has."""
    until, steps = until_words(bytes(range(4)), words, [inside]), []
    for kind in kinds:
        steps.append(TopTokens((kind,), (0.0,)))
        if until(0, steps):
            break
    return len(steps)


@pytest.mark.parametrize(
    ("kinds", "words", "inside", "expected"),
    [
        ([1, 0, 0, 1, 0], 1, False, 4),  # the first token after the word shows that it has ended
        ([1, 0, 0, 1, 0], 1, True, 1),
        ([0, 0, 1, 1, 0], 1, True, 3),
        ([1, 0, 1, 0, 1, 1], 2, False, 5),
        ([1, 0, 2, 0, 1], 1, False, 4),  # the first token of the next line
        ([1, 0, 2, 2, 0], 1, False, 5),
        ([1, 0, 2, 1], 1, False, 4),
        ([1, 1], 1, False, 2),
        ([3, 0, 0], 1, False, 1),  # nothing follows an end token
        ([0, 3, 0], 4, True, 2),
        ([0] * 9, 1, True, 9),
    ],
)
def test_rows_end_where_words_probably_end(kinds, words, inside, expected):
    assert drafted(kinds, words, inside=inside) == expected


def test_kinds_of_tokens(ensembles):
    for member in ensembles()[0].members:
        tokenizer = member.prompt_reader.tokenizer
        kinds = token_kinds(tokenizer, len(tokenizer) + 3)
        ids = tokenizer("The old\ntower", add_special_tokens=False)["input_ids"]
        found = {tokenizer.decode([token]): kinds[token] for token in ids}
        assert {text: kind for text, kind in found.items() if text in (" old", "\n")} == {" old": 1, "\n": 2}
        blanks = [token for name, token in tokenizer.get_vocab().items() if name in ("Ġ", "▁")]
        assert [kinds[token] for token in blanks] == [2]  # the word ends before the token that follows
        assert {kinds[token] for token in [*tokenizer.all_special_ids, len(tokenizer)]} == {3}


def test_the_bound_of_steps_follows_the_length_of_words():
    ahead = Ahead()
    assert ahead.steps(1) == 8
    ahead.learn(computed=8, used=2, words=1)
    assert (ahead.steps(1), ahead.steps(3)) == (2, 6)
    ahead.learn(computed=2, used=2, words=1)
    assert ahead.steps(1) == 4
    ahead.learn(computed=3, used=2, words=1)  # the token after the word is no waste
    assert ahead.steps(1) == 4


def test_a_pass_waits_for_a_session_not_for_the_thread_of_its_last_call(pipe):
    session = session_of(pipe, (3, 5, 7))
    for token in (8, 9):
        session.score([(3, 5, 7)], [(token, 6)])
        assert {*pipe.host.backend._batcher.turns._expected} == {session._name}
    session.close()
    assert not pipe.host.backend._batcher.turns._expected


# --- when the host branches ---


@pytest.mark.parametrize(
    ("learned", "expected"),
    [
        ([], 0.7),
        ([(0.2, True), (0.9, False)], 0.7),  # what they would be taken for anyway
        ([(0.5, False), (0.6, False)], 0.5),
        ([(0.85, True)], pytest.approx(0.85)),
        ([(0.6, True), (0.65, False)], 0.65),
    ],
)
def test_the_bound_of_certainty_follows_the_drafts_of_the_caller(learned, expected):
    certainty = Certainty()
    for value, ended in learned:
        step = TopTokens((5, 6), (math.log((1 + value) / 2), math.log((1 - value) / 2)))
        assert step.margin == pytest.approx(value)
        certainty.learn(step, ended=ended)
    assert certainty.bound == pytest.approx(expected)
    assert TopTokens((5,), (0.0,)).margin == 1
