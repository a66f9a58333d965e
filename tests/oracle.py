"""A plain reference implementation of the decoding rule: no KV cache, no batch, float64, one token at a time.

Every distribution comes from a forward pass over the whole context (results are cached per context; the pass that
scores a text gives the distributions after all of its tokens). With a grammar, each token is checked byte by byte.
Candidates are compared by probabilities, in decimals that don't underflow. The library must give the same text and the
same rounds; the oracle returns them in the library's data types, so that they can be compared.

Words of scripts without spaces and the source of a grammar come from the library: the oracle can't check these.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import torch
from llguidance import LLMatcher, LLTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from adafuse_core.rounds import Candidate, Draft, Round, Score, Span
from adafuse_core.text.words import WhitespaceWords

CAP = 24  # maximum tokens of one word
MAX_PARTIAL = 16  # tokens without a whole character that `next_tokens` extends
MAX_CACHED = 8000  # distributions per model
WHITESPACE = {*"\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000", *map(chr, range(0x2000, 0x200B))}
INCOMPLETE = "\ufffd"  # decoders write this for a character whose last bytes are missing


def word_ends(text, *, final):
    """Ends of the complete words; a word includes whitespace before it, and after it up to the last newline."""
    if not all(map(has_spaces, text)):
        return WhitespaceWords().ends(text, final=final)
    ends, at = [], skip(text, 0, whitespace=True)
    while at < len(text):
        end = skip(text, at, whitespace=False)
        at = skip(text, end, whitespace=True)
        end += 1 + max(text[end:at].rfind("\n"), text[end:at].rfind("\r"))
        if final or at < len(text):
            ends.append(end)
    return ends


def has_spaces(character):
    """Whether the character belongs to a script with spaces, or to no script."""
    code = ord(character)
    return (
        code < 0x2EA or 0x300 <= code < 0xE00 or 0x2000 <= code < 0x2E80 or 0x1F300 <= code < 0x1FB00 or code == 0xFFFD
    )


def skip(text, at, *, whitespace):
    """The index after a run of whitespace, or of other characters, at `at`."""
    return next((index for index in range(at, len(text)) if (text[index] in WHITESPACE) != whitespace), len(text))


class Bytes:
    """A vocabulary of all 256 bytes, as the grammar engine expects it."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    tokens = (*(bytes([value]) for value in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text):
        raise NotImplementedError


class OracleGrammar:
    """The texts that a grammar allows, checked from the beginning of the answer."""

    def __init__(self, source):
        self.start = LLMatcher(LLTokenizer(Bytes(), slices=[]), source, log_level=0)
        assert not self.start.is_error()

    def after(self, text: bytes):
        """The engine's state after a text; None if the text violates the grammar."""
        state = self.start.deep_copy()
        return state if state.try_consume_tokens(list(text)) == len(text) else None

    def forced(self, text: bytes):
        """The text that must follow, and whether the answer ends after it; None if there is a choice."""
        more = self.after(text).compute_ff_bytes().decode("utf-8", "ignore")
        ends = self.after(text + more.encode()).is_stopped()
        return (more, ends) if more or ends else None

    def random_text(self, rng, length, start=""):
        """A random text of about `length` bytes that the grammar allows, in whole characters."""
        state, text = self.after(start.encode()), start.encode()
        while len(text) < length and not state.is_stopped():
            bits = int.from_bytes(state.compute_bitmask(), "little")
            allowed = [byte for byte in range(256) if bits >> byte & 1]
            step = state.compute_ff_bytes() or bytes(rng.choices(allowed)) if allowed else b""
            if not step:
                break
            state.consume_tokens(list(step))
            text += step
        return text.decode("utf-8", "ignore")


def token_bytes(tokenizer):
    """Bytes of every token, from its string in the vocabulary; empty for control tokens."""
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    found = []
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if index in special:
            found.append(b"")
        elif byte_level:  # added tokens are often stored as plain text
            found.append(bytes(map(letters.get, token)) if set(token) <= set(letters) else token.encode())
        elif len(token) == 6 and token.startswith("<0x"):
            found.append(bytes.fromhex(token[3:5]))
        else:
            found.append(token.replace("▁", " ").encode())
    return found


def end_ids(folder, tokenizer):
    """All end tokens: those of the model's files, and the one that the template writes after an answer."""
    found = {tokenizer.eos_token_id}
    for name in ("config.json", "generation_config.json"):
        path = Path(folder) / name
        declared = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        found |= set(declared) if isinstance(declared, list) else {declared}
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
        after = tokenizer.apply_chat_template(turns, tokenize=False).split("two")[-1].lstrip()
        special = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        found |= {index for content, index in special.items() if after.startswith(content)}
    return found - {None}


class OracleTokens:
    """A member's token ids and texts, without its model."""

    def __init__(self, tokenizer, end_ids):
        self.tokenizer = tokenizer
        self.ends = end_ids
        self.special = {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        self.texts = {}
        self.bytes = token_bytes(self.tokenizer)

    def start(self, prompt, tools=None, grammar=None):
        self.grammar = grammar
        self.conditional, self.drafted_ids = {}, {}  # masked distributions by ids; ids by drafted span
        chat = not isinstance(prompt, str)
        self.prompt = prompt
        if chat:
            self.prompt = self.tokenizer.apply_chat_template(
                prompt, tools=tools, tokenize=False, add_generation_prompt=True
            )
        self.bos = self.tokenizer(self.prompt, add_special_tokens=not chat)["input_ids"]
        bare = self.tokenizer(self.prompt, add_special_tokens=False)["input_ids"]
        self.bos = self.bos[: len(self.bos) - len(bare)]
        marks_spaces = (
            self.tokenizer.convert_ids_to_tokens(self.tokenizer("a", add_special_tokens=False)["input_ids"])[0][0]
            == "▁"
        )
        self.lead = " " if chat and marks_spaces and not self.prompt[-1].isspace() else ""
        self.text = ""
        self.ids = self.encode("")
        self.prompt_ids = self.ids
        self.prompt_length = len(self.ids)

    def encode(self, text):
        return (
            self.bos
            + self.tokenizer(self.prompt + (self.lead + text if text else ""), add_special_tokens=False)["input_ids"]
        )

    def decode(self, ids, after=None):
        """Text of ids after the committed ids, or after other ids."""
        after = self.ids if after is None else after
        visible = [i for i in ids if i not in self.special]
        before, whole = self.plain(after), self.plain(after + visible)
        # An invalid byte can change the text of the committed ids; it is then decoded alone.
        text = whole[len(before) :] if whole.startswith(before) else self.plain(visible)
        return text if self.text else text.removeprefix(self.lead)

    def plain(self, ids):
        if tuple(ids) not in self.texts:
            self.texts[tuple(ids)] = self.tokenizer.decode(ids)
        return self.texts[tuple(ids)]

    def answer_bytes(self, ids) -> bytes | None:
        """The bytes of the answer in these ids; None if the ids don't continue the prompt."""
        if self.text and ids[: len(self.ids)] == self.ids:
            return self.text.encode() + b"".join(self.bytes[i] for i in ids[len(self.ids) :])
        before, whole = (b"".join(self.bytes[i] or b"\xff%d" % i for i in each) for each in (self.prompt_ids, ids))
        return whole[len(before) :].removeprefix(self.lead.encode()) if whole.startswith(before) else None

    def allowed(self, ids):
        """The mask of the next token; None if the ids don't continue an answer that the grammar allows."""
        written = self.answer_bytes(ids)
        state = None if written is None else self.grammar.after(written)
        if state is None:
            return None
        flags = [bool(token) and state.validate_tokens(list(token)) == len(token) for token in self.bytes]
        if self.lead and ids == self.prompt_ids:  # the tokenizer's own space at the start isn't part of the answer
            for index, token in enumerate(self.bytes):
                if token.startswith(b" "):
                    flags[index] = state.validate_tokens(list(token[1:])) == len(token) - 1
        for index in self.ends:
            flags[index] = bool(state.is_accepting())
        return torch.tensor(flags)


@lru_cache(8)
def loaded(path):
    """Model, tokenizer, and a cache of distributions."""
    options = {"dtype": torch.float64, "experts_implementation": "eager"}  # other implementations don't support float64
    return AutoModelForCausalLM.from_pretrained(path, **options).eval(), AutoTokenizer.from_pretrained(path), {}


class OracleMember(OracleTokens):
    """One member: drafts, scores and commits.

    Args:
        path: Folder of the model.
        cap: Maximum tokens of one word.
        name: The member's name in rounds.
        weight: Weight of its vote.
    """

    unlikely_ends = True  # whether an end that is not the likeliest next token is a branch

    def __init__(self, path, cap=CAP, *, name="", weight=1.0):
        self.model, tokenizer, self.memo = loaded(path)
        super().__init__(tokenizer, end_ids(path, tokenizer))
        self.cap, self.name, self.weight = cap, name, weight

    def logprobs(self, ids, back=0):
        """Log-probabilities after `ids`; also caches those after its prefixes that are up to `back` tokens shorter."""
        lengths = range(len(ids) - back, len(ids) + 1)
        if any(tuple(ids[:length]) not in self.memo for length in lengths):
            if len(self.memo) > MAX_CACHED:
                self.memo.clear()
            with torch.no_grad():
                rows = torch.log_softmax(self.model(torch.tensor([ids])).logits[0, -len(lengths) :], -1)
            self.memo.update((tuple(ids[:length]), row) for length, row in zip(lengths, rows, strict=True))
        return self.memo[tuple(ids)]

    def distribution(self, ids):
        """Log-probabilities of the next token, under the grammar's mask if there is one."""
        values = self.logprobs(ids)
        if self.grammar is None:
            return values
        if tuple(ids) not in self.conditional:
            flags = self.allowed(ids)
            if flags is not None:
                masked = torch.ones(len(values), dtype=torch.bool)
                masked[: len(flags)] = ~flags
                values = values.masked_fill(masked, -math.inf)
                values = values - torch.logsumexp(values, 0)
            self.conditional[tuple(ids)] = values
        return self.conditional[tuple(ids)]

    def logprob(self, ids, token):
        """Log-probability of one token; a masked token is scored without the grammar."""
        value = self.distribution(ids)[token].item()
        return value if value > -math.inf else self.logprobs(ids)[token].item()

    def likeliest(self, ids, count):
        values, index = torch.sort(self.distribution(ids), descending=True, stable=True)
        count = min(count, int((values > -math.inf).sum()))
        return index[:count].tolist(), values[:count].tolist()

    def draft(self, tau, max_words, branches, max_tokens=math.inf, stop=(), floor=0.0, ahead=0, commit=1) -> Draft:
        """The member's draft: words while it is confident, then one word for each of the likeliest first tokens.

        With `ahead`, each proposal is also continued to that many words, of which `commit` may be proposed.
        """
        run, over, margins = [], None, []
        while not over and (max_words is None or len(margins) < max_words):
            tokens, values = self.likeliest(self.ids + run, max(2, branches))
            margins.append(math.exp(values[0]) - math.exp(values[1]) if len(values) > 1 else 1.0)
            uncertain = margins[-1] < tau
            likely = [t for t, v in zip(tokens, values, strict=True) if math.exp(v) >= floor * math.exp(values[0])]
            starts = likely[:branches] if uncertain else tokens[:1]
            if not self.unlikely_ends:
                starts = starts[:1] + [t for t in starts[1:] if not self.is_end(run, t, stop)]
            variants = [self.word(run, token, max_tokens, stop) for token in starts]
            if uncertain:
                break
            run, over = variants[0]
            if not over and len(margins) != max_words and (len(run) >= max_tokens or self.completes(run, stop)):
                variants = [(self.complete(run), "limit")]
                break
        variants = [(ids, over) for ids, over in variants if ids is not None]
        longer = [self.continued(*variant, len(margins), ahead, max_tokens, stop) for variant in variants if ahead]
        if ahead:
            variants = [self.continued(*each, len(margins), min(commit, ahead), max_tokens, stop) for each in variants]
        spans = tuple(self.propose(ids, ends=over == "end") for ids, over in variants)
        texts = tuple(Span(text=self.until_stop(ids, stop), ends=over == "end") for ids, over in longer)
        return Draft(member=self.name, spans=spans, margins=tuple(margins), ahead=texts)

    def continued(self, ids, over, words, target, max_tokens, stop):
        """A proposal of some words, continued to `target` words."""
        while not over and words < target and not self.completes(ids, stop):
            ids, over = self.word(ids, self.likeliest(self.ids + ids, 1)[0][0], max_tokens, stop)
            words += 1
        return ids, over

    def until_stop(self, ids, stop):
        """Text of the ids up to the end of the first stop string."""
        text, before = self.decode(ids), len(self.text)
        for end in range(before + 1, before + len(text) + 1):
            if any((self.text + text)[:end].endswith(string) for string in stop):
                return text[: end - before]
        return text

    def word(self, run, first, max_tokens, stop):
        """`run` and the greedy word that starts with token `first`; and why the draft is over: "end", "limit" or None.

        At a limit inside a word, the draft ends with the last complete character; its ids are None if there is none.
        If there is no visible text by then, the answer ends.
        """
        if first in self.ends:
            return run, "end"
        out = [*run, first]
        while True:
            if (end := self.word_end(run, out, final=False)) is not None:
                return out[:end], None
            size, text = len(out) - len(run), self.decode(out)[len(self.decode(run)) :]
            if text and size >= self.cap and (not text.endswith(INCOMPLETE) or size >= self.cap + 3):
                return out, None
            if len(out) >= max_tokens or self.completes(out, stop):
                return (self.complete(out), "limit") if self.decode(out) else (out, "end")
            token = self.likeliest(self.ids + out, 1)[0][0]
            if token in self.ends:
                end = self.word_end(run, out, final=True)
                return (out, "end") if end is None else (out[:end], None)
            out.append(token)

    def is_end(self, run, token, stop):
        """Whether this token ends the answer or completes a stop string."""
        return token in self.ends or self.completes([*run, token], stop)

    def completes(self, out, stop):
        """Whether the last token of `out` completes a stop string, which may have started in the committed text."""
        before = len((self.text + self.decode(out[:-1])).rstrip(INCOMPLETE))
        text = self.text + self.decode(out).rstrip(INCOMPLETE)
        return any(text.find(string, max(0, before + 1 - len(string))) >= 0 for string in stop)

    def complete(self, out):
        """The longest prefix that ends with a complete character; None if there is none."""
        lengths = range(len(out), 0, -1)
        return next((out[:length] for length in lengths if not self.decode(out[:length]).endswith(INCOMPLETE)), None)

    def word_end(self, run, out, final):
        """The first token boundary after `run` that is also a word boundary."""
        start, whole = len(self.decode(run)), self.decode(out)
        ends = word_ends(whole[start:] if final else whole[start:].rstrip(INCOMPLETE), final=final)
        for length in range(len(run) + 1, len(out) + 1):
            text = self.decode(out[:length])
            last = final and length == len(out)
            on_word = len(text) - start in ends or (last and ends)
            if on_word and (last or not text.endswith(INCOMPLETE)) and whole.startswith(text):
                return length
        return None

    def propose(self, ids, *, ends) -> Span:
        span = Span(text=self.decode(ids), ends=ends)
        self.drafted_ids.setdefault(span, self.ids + ids)
        return span

    def after_committing(self, text):
        """A copy of the member that has committed `text`."""
        twin = copy.copy(self)
        twin.commit(Span(text=text))
        return twin

    def draft_after(self, text, *plan) -> Draft:
        """The member's draft after an uncommitted text."""
        twin = self.after_committing(text)
        draft = twin.draft(*plan)
        spans = [replace(span, text=text + span.text) for span in draft.spans]
        for whole, span in zip(spans, draft.spans, strict=True):
            self.drafted_ids.setdefault(whole, twin.drafted_ids[span])
        return replace(draft, spans=tuple(spans))

    def next_tokens(self, count=None):
        """Log-probability of each next text; see `Prefix.next_tokens`."""
        found, partial = {}, 0
        for token, value in zip(*self.likeliest(self.ids, count or len(self.logprobs(self.ids))), strict=True):
            if token in self.ends:
                found.setdefault(Span(text="", ends=True), {})[token,] = value
                continue
            ids = [token]
            partial += self.unfinished(ids)
            while self.unfinished(ids) and partial <= MAX_PARTIAL and len(ids) < 4:
                (token,), (more,) = self.likeliest(self.ids + ids, 1)
                if token in self.ends:
                    break
                ids, value = [*ids, token], value + more
            if not self.unfinished(ids):
                found.setdefault(Span(text=self.decode(ids)), {})[tuple(ids)] = value
        for span, ways in found.items():
            if not span.ends:
                self.drafted_ids.setdefault(span, self.ids + list(max(ways, key=ways.get)))
        return {span: math.log(sum(map(math.exp, ways.values()))) for span, ways in found.items()}

    def unfinished(self, ids):
        """Whether ids have no text, or end inside a character."""
        text = self.decode(ids)
        return not text or text.endswith(INCOMPLETE)

    def prompt_nll(self, size):
        """NLL per byte of the last prompt tokens that hold at least `size` bytes."""
        ids = self.prompt_ids
        for start in range(len(ids) - 1, 0, -1):
            length = len(self.decode(ids[start:], after=ids[:start]).encode())
            if length >= size or start == 1:
                break
        values = [self.logprobs(ids[:at])[ids[at]].item() for at in range(start, len(ids))]
        return -sum(values) / max(1, length)

    def encode_after(self, text):
        """Context and ids of `text` after the committed text, split at the first id that differs."""
        old, new = self.encode(self.text), self.encode(self.text + text)
        same = 0
        while same < min(len(old), len(new)) and old[same] == new[same]:
            same += 1
        replaced = old[same:]
        if same == 0 and replaced:  # no token before the first one could predict it
            return new[:1], new[1:]
        if self.ids[len(self.ids) - len(replaced) :] == replaced:
            return self.ids[: len(self.ids) - len(replaced)], new[same:]
        return new[:same], new[same:]

    def score(self, span) -> Score:
        context, ids = self.encode_after(span.text)
        self.logprobs(context + ids, back=len(ids))
        logprobs = [self.logprob(context + ids[:i], token) for i, token in enumerate(ids)]
        if span.ends:
            logprobs.append(torch.logsumexp(self.distribution(context + ids)[sorted(self.ends)], 0).item())
        ends = word_ends(span.text, final=True)
        size, words = self.byte_length(context, ids, span.text) + span.ends, len(ends) + span.ends
        marks = [self.tokens_up_to(context, ids, len(span.text) - end) for end in ends[:-1]]
        marks += [len(ids)] * bool(ends) + [len(logprobs)] * span.ends
        return Score(member=self.name, logprobs=tuple(logprobs), words=words, bytes=size, word_ends=tuple(marks))

    def tokens_up_to(self, context, ids, rest):
        """Number of ids up to the one with the last character before the `rest` last ones."""
        texts = [self.decode(ids[:length], after=context).rstrip(INCOMPLETE) for length in range(len(ids) + 1)]
        return next(length for length, text in enumerate(texts) if len(text) >= len(texts[-1]) - rest)

    def byte_length(self, context, ids, text):
        """Bytes of the ids, which end with `text`; a character of which they only hold the end counts as a whole."""
        size = sum(len(self.bytes[i]) for i in ids)
        if context == self.prompt_ids and ids:  # the space before the answer is the tokenizer's own
            size -= len(self.lead)
        written = (self.prompt + self.lead + self.text + text).encode()
        while size and written[-size] & 0xC0 == 0x80:
            size += 1
        return size

    def ids_of(self, span):
        """Context and ids of a span, as this member drafted it, or else as its tokenizer encodes it."""
        if span not in self.drafted_ids:
            return self.encode_after(span.text)
        ids = self.drafted_ids[span]
        pairs = enumerate(zip(self.ids, ids, strict=False))
        same = next((at for at, (old, new) in pairs if old != new), len(self.ids))
        return ids[:same], ids[same:]

    def commit(self, span):
        context, ids = self.ids_of(span)
        self.ids = context + ids
        self.text += span.text
        self.drafted_ids = {}

    def truncate(self, span, budget):
        """The part of a span within a token budget, None for all of it; and whether the budget is spent."""
        context, ids = self.ids_of(span)
        room = self.prompt_length + budget - len(context)
        if len(ids) <= room:
            return None, len(ids) == room
        overlap = self.decode(self.ids[len(context) :], after=context)
        texts = [self.decode(ids[:length], after=context) for length in range(room, 0, -1)]
        fitting = [text[len(overlap) :] for text in texts if text.startswith(overlap)]
        return Span(text=next((text for text in fitting if span.text.startswith(text)), "")), True


def value(score, scoring):
    """The negative log-likelihood of a score, per unit of `scoring`."""
    if scoring == "first_word":
        return word_nll(score, 0)
    units = {
        "token": len(score.logprobs),
        "word": score.words,
        "sqrt_word": max(1, score.words) ** 0.5,
        "byte": score.bytes,
        "sum": 1,
    }
    return -sum(score.logprobs) / max(1, units[scoring])


def word_nll(score, at):
    """The negative log-likelihood of one word."""
    ends = score.word_ends or (len(score.logprobs),)
    return -sum(score.logprobs[ends[at - 1] if at else 0 : ends[at]])


def fused(values, weights, pool, exponent=None):
    """The members' values as one: the NLL of a mean of their probabilities, or the median."""
    if pool == "median":
        shares = [Fraction(str(weight)) for weight in weights]
        voters = list(zip(values, shares, strict=True))
        low = min(here for here in values if 2 * sum(share for other, share in voters if other <= here) >= sum(shares))
        high = max(here for here in values if 2 * sum(share for other, share in voters if other >= here) >= sum(shares))
        return (low + high) / 2
    if pool == "max":
        return min(values)
    if exponent == 0:
        pool = "geometric"
    shares = [Decimal(weight) / Decimal(sum(weights)) for weight in weights]
    voters = [(Decimal(-each).exp(), share) for each, share in zip(values, shares, strict=True)]
    if pool == "geometric":
        return -float(math.prod(p**share for p, share in voters).ln())
    power = Decimal({"linear": 1, "power": exponent}[pool])
    return -float((sum(share * p**power for p, share in voters) ** (1 / power)).ln())


@dataclass(frozen=True, kw_only=True)
class OracleAnswer:
    """An answer of the oracle.

    Args:
        text: Text before the stop string.
        reason: "stop" or "length".
        stop: The stop string that ended the answer.
        rounds: All rounds.
    """

    text: str
    reason: str
    stop: str | None
    rounds: tuple[Round, ...]

    @property
    def full_text(self):
        """All committed text."""
        return "".join(played.span.text for played in self.rounds)


class OracleEnsemble:
    """Members and the options of the rule, which are those of `EnsembleConfig`."""

    def __init__(
        self,
        members,
        *,
        tau,
        max_words,
        branches,
        branch_floor=0.0,
        look_ahead=0,
        commit_words=1,
        anchor=None,
        anchor_margin=0.0,
        weighting="static",
        scoring="token",
        pool="geometric",
        pool_exponent=None,
        pool_over="span",
    ):
        self.members, self.ahead = members, {"floor": branch_floor, "ahead": look_ahead, "commit": commit_words}
        self.anchor, self.margin, self.weighting = anchor, anchor_margin, weighting
        self.plan = (tau, max_words, branches)
        self.scoring, self.pool, self.pool_over = scoring, (pool, pool_exponent), pool_over

    def answer(
        self,
        prompt,
        *,
        max_new_tokens,
        tools=None,
        grammar=None,
        stop=(),
        temperature=0.0,
        seed=None,
        logprobs=False,
        leave=None,
    ) -> OracleAnswer:
        """The answer, cut at `max_new_tokens` tokens of the first member; not cut with a grammar.

        `leave` tells by name before which round members leave.
        """
        self.grammar = grammar and OracleGrammar(grammar.source())
        rng, rounds = random.Random(seed), []
        self.rounds, self.stop = rounds, stop if self.ahead["ahead"] else ()
        for member in self.members:
            member.start(prompt, tools, self.grammar)
            member.prompt_share = math.exp(-6 * member.prompt_nll(512)) if self.weighting == "prompt" else 1.0
        while True:
            self.members = [each for each in self.members if (leave or {}).get(each.name, math.inf) > len(rounds)]
            first = self.members[0]
            played = self.chosen(self.proposed(), temperature, rng)
            cut, spent = (None, False) if grammar else first.truncate(played.span, max_new_tokens)
            played = replace(played, cut=cut)
            if logprobs and not played.span_scores:
                lone = len(played.candidates) == 1 and cut is None
                played = self.scored(played) if lone else replace(played, committed_scores=self.scores(played.span))
            rounds.append(played)
            for member in self.members:
                member.commit(played.span)
            if (hit := first_stop(first.text, stop)) is not None:
                return OracleAnswer(text=hit[0], reason="stop", stop=hit[1], rounds=tuple(rounds))
            if played.span.ends or spent:
                reason = "stop" if played.span.ends else "length"
                return OracleAnswer(text=first.text, reason=reason, stop=None, rounds=tuple(rounds))

    def proposed(self) -> Round:
        """A round with candidates: the text that the grammar forces, or the members' drafts without duplicates."""
        if forced := self.forced():
            return forced
        drafts = tuple(member.draft(*self.plan, stop=self.stop, **self.ahead) for member in self.members)
        named = [
            (draft.member, each)
            for draft in drafts
            for each in zip(draft.spans, draft.ahead or itertools.repeat(None), strict=False)
        ]
        if len({span for _, (span, _) in named}) == 1:
            named = [(member, (span, None)) for member, (span, _) in named]
        pool = (
            Candidate(
                span=span,
                ahead=ahead,
                proposers=tuple(dict.fromkeys(name for name, each in named if each == (span, ahead))),
            )
            for span, ahead in dict.fromkeys(each for _, each in named)
        )
        return Round(drafts=drafts, candidates=tuple(pool))

    def forced(self) -> Round | None:
        """A round with the text that the grammar forces."""
        if forced := self.grammar and self.grammar.forced(self.members[0].text.encode()):
            return Round(drafts=(), candidates=(Candidate(span=Span(text=forced[0], ends=forced[1]), proposers=()),))
        return None

    def chosen(self, played, temperature, rng) -> Round:
        """The round with scores and choice; a lone candidate isn't scored."""
        if len(played.candidates) == 1:
            return played
        played = self.scored(played)
        best = min(played.fused)
        if temperature == 0:
            return replace(played, chosen=self.unless_anchored(played, played.fused.index(best)))
        weights = [math.exp((best - each) / temperature) for each in played.fused]
        return replace(played, chosen=rng.choices(range(len(weights)), weights)[0])

    def unless_anchored(self, played, best):
        """The anchor's own candidate, unless the best one is better by more than the margin."""
        spans = [draft.spans[0] for draft in played.drafts if draft.member == self.anchor]
        for index, candidate in enumerate(played.candidates):
            if candidate.span in spans and played.fused[index] <= played.fused[best] + self.margin:
                return index
        return best

    def scored(self, played) -> Round:
        scores = tuple(self.scores(candidate.scored) for candidate in played.candidates)
        values = tuple(tuple(value(score, self.scoring) for score in row) for row in scores)
        return replace(played, scores=scores, values=values, fused=tuple(self.fuse_row(row) for row in scores))

    def fuse_row(self, row, scoring=None):
        """The fused value of a candidate, from its scores by all members."""
        scoring = scoring or self.scoring
        if self.pool_over == "span":
            return self.fuse([value(score, scoring) for score in row])
        words = [self.fuse([word_nll(score, at) for score in row]) for at in range(max(1, row[0].words))]
        if scoring == "first_word":
            return words[0]
        return sum(words) / {"word": len(words), "sqrt_word": len(words) ** 0.5, "sum": 1}[scoring]

    def scores(self, span):
        return tuple(member.score(span) for member in self.members)

    def fuse(self, values):
        return fused(values, [member.weight * self.share(at) for at, member in enumerate(self.members)], *self.pool)

    def share(self, member):
        """Factor of a member's weight: by Laplace's rule, the share of the decided rounds in which its favourite was
        chosen, or one over its mean NLL per word of what was chosen.
        """
        if self.weighting == "static":
            return 1.0
        if self.weighting == "prompt":
            return self.members[member].prompt_share
        decided = [played for played in self.rounds if len(played.candidates) > 1]
        if self.weighting == "nll":
            chosen = [each.scores[each.chosen][member] for each in decided]
            counts = [max(1, score.words) for score in chosen]
            nlls = [min(-sum(score.logprobs), 50 * words) for score, words in zip(chosen, counts, strict=True)]
            return (sum(counts) + 1) / (sum(nlls) + 1)
        best = [min(range(len(each.values)), key=lambda at: each.values[at][member]) for each in decided]
        agreed = sum(each.candidates[at].span == each.winner.span for each, at in zip(decided, best, strict=True))
        return (agreed + 1) / (len(decided) + 2)

    def score(self, prompt, spans):
        """Scores and fused value of each continuation of a prompt."""
        for member in self.members:
            member.start(prompt)
        rows = [self.scores(span) for span in spans]
        return [(row, self.fuse_row(row)) for row in rows]


def first_stop(text, stop):
    """The text before the first completed stop string (the longest of several), and the string; None without one."""
    for end in range(1, len(text) + 1):
        if hits := [string for string in stop if text[:end].endswith(string)]:
            hit = max(hits, key=len)
            return text[: end - len(hit)], hit
    return None


def oracle_text(members, prompt, *, tools=None, grammar=None, tau, max_words, branches, max_new_tokens):
    """The whole text of an answer."""
    ensemble = OracleEnsemble(members, tau=tau, max_words=max_words, branches=branches)
    return ensemble.answer(prompt, max_new_tokens=max_new_tokens, tools=tools, grammar=grammar).full_text
