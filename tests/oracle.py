"""The decoding rule, written as plainly as it can be: no cache, no batch, float64, one token at a time.

Every distribution comes from a fresh forward pass over the whole context (equal contexts are looked up; the pass that
scores a text gives the distributions after all of its tokens). With a grammar, each token is tried out byte by byte.
The product must give the very same text.
"""

from __future__ import annotations

import math

import torch
from llguidance import LLMatcher, LLTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from adafuse_core.text.words import WhitespaceWords

Candidate = tuple[str, bool]  # text, and whether the answer ends after it
CAP = 24  # most tokens of one word


class Bytes:
    """All 256 bytes as tokens, in the form that the grammar engine reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    tokens = (*(bytes([value]) for value in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text):
        raise NotImplementedError


class OracleGrammar:
    """What may follow a text, by trying it out from the beginning of the answer."""

    def __init__(self, source):
        self.start = LLMatcher(LLTokenizer(Bytes(), slices=[]), source, log_level=0)
        assert not self.start.is_error()

    def after(self, text: bytes):
        """The engine's state after a text; None if it breaks the grammar."""
        state = self.start.deep_copy()
        return state if state.try_consume_tokens(list(text)) == len(text) else None

    def forced(self, text: bytes):
        """What every answer goes on with after a text, and whether it ends there; None if there is a choice."""
        more = self.after(text).compute_ff_bytes().decode("utf-8", "ignore")
        ends = self.after(text + more.encode()).is_stopped()
        return (more, ends) if more or ends else None

    def walk(self, draw, length, start=""):
        """A text of so many random bytes that the grammar allows, and of those that must follow; whole characters."""
        state, text = self.after(start.encode()), start.encode()
        while len(text) < length and not state.is_stopped():
            bits = int.from_bytes(state.compute_bitmask(), "little")
            allowed = [byte for byte in range(256) if bits >> byte & 1]
            step = state.compute_ff_bytes() or bytes(draw.choices(allowed)) if allowed else b""
            if not step:
                break
            state.consume_tokens(list(step))
            text += step
        return text.decode("utf-8", "ignore")


def token_bytes(tokenizer):
    """Bytes of every token, from how vocabularies write them; empty for control tokens."""
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    found = []
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if index in special:
            found.append(b"")
        elif byte_level:  # words that were added to the vocabulary are often written as they are
            found.append(bytes(map(letters.get, token)) if set(token) <= set(letters) else token.encode())
        elif len(token) == 6 and token.startswith("<0x"):
            found.append(bytes.fromhex(token[3:5]))
        else:
            found.append(token.replace("▁", " ").encode())
    return found


class OracleTokens:
    """What a member's ids mean, without its model."""

    def __init__(self, tokenizer, end_ids):
        self.tokenizer = tokenizer
        self.ends = end_ids
        self.special = {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        self.texts = {}
        self.bytes = token_bytes(self.tokenizer)

    def start(self, prompt, tools=None, grammar=None):
        self.grammar = grammar
        self.given, self.own = {}, {}
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
        self.opening = self.ids
        self.begin = len(self.ids)

    def encode(self, text):
        return (
            self.bos
            + self.tokenizer(self.prompt + (self.lead + text if text else ""), add_special_tokens=False)["input_ids"]
        )

    def decode(self, ids, after=None):
        """Text of ids after the committed ones, or after others."""
        after = self.ids if after is None else after
        visible = [i for i in ids if i not in self.special]
        before, whole = self.plain(after), self.plain(after + visible)
        # A stray byte may spoil the characters before it; those are committed, so it is shown alone.
        text = whole[len(before) :] if whole.startswith(before) else self.plain(visible)
        return text if self.text else text.removeprefix(self.lead)

    def plain(self, ids):
        if tuple(ids) not in self.texts:
            self.texts[tuple(ids)] = self.tokenizer.decode(ids)
        return self.texts[tuple(ids)]

    def answer(self, ids) -> bytes | None:
        """What is written of the answer; None if the ids are not at a place of it."""
        if self.text and ids[: len(self.ids)] == self.ids:
            return self.text.encode() + b"".join(self.bytes[i] for i in ids[len(self.ids) :])
        before, whole = (b"".join(self.bytes[i] or b"\xff%d" % i for i in each) for each in (self.opening, ids))
        return whole[len(before) :].removeprefix(self.lead.encode()) if whole.startswith(before) else None

    def allowed(self, ids):
        """One flag for each token that may follow; None if the ids are not at a place of the answer."""
        written = self.answer(ids)
        state = None if written is None else self.grammar.after(written)
        if state is None:
            return None
        flags = [bool(token) and state.validate_tokens(list(token)) == len(token) for token in self.bytes]
        if self.lead and ids == self.opening:  # a blank at the very start is the tokenizer's own, and the text follows
            for index, token in enumerate(self.bytes):
                if token.startswith(b" "):
                    flags[index] = state.validate_tokens(list(token[1:])) == len(token) - 1
        for index in self.ends:
            flags[index] = bool(state.is_accepting())
        return torch.tensor(flags)


class OracleMember(OracleTokens):
    def __init__(self, path, end_ids, cap=CAP):
        super().__init__(AutoTokenizer.from_pretrained(path), end_ids)
        options = {"dtype": torch.float64, "experts_implementation": "eager"}  # other experts know no float64
        self.model = AutoModelForCausalLM.from_pretrained(path, **options).eval()
        self.cap = cap
        self.memo = {}

    def logprobs(self, ids, back=0):
        """After `ids`; and, for later, after each of its beginnings that is shorter by up to `back` tokens."""
        lengths = range(len(ids) - back, len(ids) + 1)
        if any(tuple(ids[:length]) not in self.memo for length in lengths):
            with torch.no_grad():
                rows = torch.log_softmax(self.model(torch.tensor([ids])).logits[0, -len(lengths) :], -1)
            self.memo.update((tuple(ids[:length]), row) for length, row in zip(lengths, rows, strict=True))
        return self.memo[tuple(ids)]

    def distribution(self, ids):
        """Log-probabilities of what may follow, on condition that it may; all of them without a grammar."""
        values = self.logprobs(ids)
        if self.grammar is None:
            return values
        if tuple(ids) not in self.given:
            flags = self.allowed(ids)
            if flags is not None:
                barred = torch.ones(len(values), dtype=torch.bool)
                barred[: len(flags)] = ~flags
                values = values.masked_fill(barred, -math.inf)
                values = values - torch.logsumexp(values, 0)
            self.given[tuple(ids)] = values
        return self.given[tuple(ids)]

    def logprob(self, ids, token):
        """Of one token; a barred one counts as without the grammar."""
        value = self.distribution(ids)[token].item()
        return value if value > -math.inf else self.logprobs(ids)[token].item()

    def likeliest(self, ids, count):
        values, index = torch.sort(self.distribution(ids), descending=True, stable=True)
        count = min(count, int((values > -math.inf).sum()))
        return index[:count].tolist(), values[:count].tolist()

    def draft(self, tau, max_words, branches) -> list[Candidate]:
        run = []
        self.own = {}
        for _ in range(max_words):
            tokens, values = self.likeliest(self.ids + run, max(2, branches))
            if len(values) > 1 and math.exp(values[0]) - math.exp(values[1]) < tau:
                return [self.propose(*self.word(run, token)) for token in tokens[:branches]]
            run, ended = self.word(run, tokens[0])
            if ended:
                return [self.propose(run, True)]
        return [self.propose(run, False)]

    def word(self, run, first):
        """`run` and the greedy word that begins with token `first`; and whether the answer ends there."""
        if first in self.ends:
            return run, True
        out = [*run, first]
        while True:
            if (end := self.word_end(run, out, final=False)) is not None:
                return out[:end], False
            size, text = len(out) - len(run), self.decode(out)[len(self.decode(run)) :]
            if text and size >= self.cap and (not text.endswith("\ufffd") or size >= self.cap + 3):
                return out, False
            token = self.likeliest(self.ids + out, 1)[0][0]
            if token in self.ends:
                end = self.word_end(run, out, final=True)
                return (out, True) if end is None else (out[:end], False)
            out.append(token)

    def word_end(self, run, out, final):
        """The first token boundary after `run` that is a word boundary too."""
        start, whole = len(self.decode(run)), self.decode(out)
        ends = WhitespaceWords().ends(whole[start:] if final else whole[start:].rstrip("\ufffd"), final=final)
        for length in range(len(run) + 1, len(out) + 1):
            text = self.decode(out[:length])
            last = final and length == len(out)
            on_word = len(text) - start in ends or (last and ends)
            if on_word and (last or not text.endswith("\ufffd")) and whole.startswith(text):
                return length
        return None

    def propose(self, ids, ended) -> Candidate:
        candidate = (self.decode(ids), ended)
        self.own.setdefault(candidate, ids)
        return candidate

    def place(self, text):
        """Context and ids of `text` after the committed text: from the first id that differs."""
        old, new = self.encode(self.text), self.encode(self.text + text)
        same = 0
        while same < min(len(old), len(new)) and old[same] == new[same]:
            same += 1
        dropped = old[same:]
        if same == 0 and dropped:  # nothing stands before the first token to predict it
            return new[:1], new[1:]
        if self.ids[len(self.ids) - len(dropped) :] == dropped:
            return self.ids[: len(self.ids) - len(dropped)], new[same:]
        return new[:same], new[same:]

    def score(self, candidate: Candidate):
        text, ended = candidate
        context, ids = self.place(text)
        self.logprobs(context + ids, back=len(ids))
        values = [self.logprob(context + ids[:i], token) for i, token in enumerate(ids)]
        if ended:
            values.append(torch.logsumexp(self.distribution(context + ids)[sorted(self.ends)], 0).item())
        return -sum(values) / len(values) if values else 0.0

    def written(self, candidate: Candidate):
        """Context and ids of a candidate: as this member drafted it, or as its tokenizer writes it."""
        return (self.ids, self.own[candidate]) if candidate in self.own else self.place(candidate[0])

    def commit(self, candidate: Candidate):
        context, ids = self.written(candidate)
        self.ids = context + ids
        self.text += candidate[0]
        self.own = {}

    def cut(self, candidate: Candidate, budget):
        """The longest beginning of the candidate that keeps the whole answer within the budget; None if it fits."""
        context, ids = self.written(candidate)
        room = self.begin + budget - len(context)
        if len(ids) < room or (len(ids) == room and candidate[1]):
            return None
        seam = self.decode(self.ids[len(context) :], after=context)
        texts = [self.decode(ids[:length], after=context) for length in range(min(room, len(ids)), 0, -1)]
        fitting = [text[len(seam) :] for text in texts if text.startswith(seam)]
        return next((text for text in fitting if candidate[0].startswith(text)), "")


def oracle_text(members, prompt, *, tools=None, grammar=None, tau, max_words, branches, max_new_tokens):
    """The answer by the rule, cut where the first member has written `max_new_tokens`. With a grammar it is not cut."""
    grammar = grammar and OracleGrammar(grammar.source())
    for member in members:
        member.start(prompt, tools, grammar)
    first = members[0]
    while True:
        forced = grammar and grammar.forced(first.text.encode())
        if forced:
            pool = [forced]
        else:
            pool = list(dict.fromkeys(c for member in members for c in member.draft(tau, max_words, branches)))
        best = pool[0]
        if len(pool) > 1:
            fused = [sum(member.score(c) for member in members) / len(members) for c in pool]
            best = pool[fused.index(min(fused))]
        if (last := first.cut(best, max_new_tokens)) is not None:
            return first.text + last
        for member in members:
            member.commit(best)
        if best[1]:
            return first.text
