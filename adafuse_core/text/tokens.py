"""Text to token ids and back, exactly, with one tokenizer.

What makes this more than `tokenizer.encode`:

- An answer is encoded *in the place where it stands*: together with the end of the prompt, because
  tokens may straddle the seam and some tokenizers treat the start of a text in a special way.
- Control tokens (`</s>`, `<|im_end|>`) are made by templates only. The same characters in a
  message or in an answer are plain text.
- Decoding uses the tokens before as left context, and knows when a character is still incomplete.
- An answer grows; what it costs to encode one more word does not depend on how long it is already.

No model is needed here, and no member is known.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import regex
from tokenizers import AddedToken, Tokenizer

from adafuse_core.text.cuts import safe_cuts
from adafuse_core.text.ids import Ids
from adafuse_core.text.incremental import EncodedText, IncrementalEncoder

INCOMPLETE = "\ufffd"  # what decoders write for a character whose last bytes are still to come
LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most as many tokens
_WINDOW = 8  # tokens of left context for decoding
_RECENT = 32  # answers whose ids a section keeps, and left contexts whose text a codec keeps
_SECRET = secrets.token_hex(8)  # drawn once per process and never changed: no prompt can contain the marks below
_SECTION = f"\uf8ffsection-{_SECRET}\uf8ff"
_TEXT_OPEN = f"\uf8fftext-{_SECRET}\uf8ff"
_TEXT_CLOSE = f"\uf8ffcontrol-{_SECRET}\uf8ff"


class Codec:
    """One tokenizer's way between text and ids.

    Args:
        tokenizer: A fast transformers tokenizer. It is copied, never changed.
    """

    def __init__(self, tokenizer: Any) -> None:
        state = tokenizer.backend_tokenizer.to_str()
        self._parsing = _copy(state)
        self._plain = _copy(state)
        self._plain.encode_special_tokens = True  # control tokens in text stay text
        added = tokenizer.added_tokens_decoder
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        contents = sorted((token.content for token in added.values() if token.special), key=len, reverse=True)
        self._control = regex.compile("|".join(map(regex.escape, contents)) if contents else r"(?!)")
        self._dummy_blank = self._parsing.encode("a", add_special_tokens=False).tokens[0].startswith("▁")
        # Whether every section gets such a blank, even one that begins with a blank.
        bare, blank = (self._parsing.encode(_SECTION + text, add_special_tokens=False).tokens for text in ("a", " a"))
        self._dummy_everywhere = bare[1].startswith("▁") and bare != blank
        self._cuts = safe_cuts(tokenizer.backend_tokenizer)
        self._left = lru_cache(_RECENT)(self._decode_left)

    def encode_prompt(self, text: str) -> tuple[Ids, Section]:
        """Ids of a plain prompt with the tokenizer's own opening tokens, and where its answer stands.

        Control tokens written in the prompt are honoured: this is the way to bring one's own template.
        """
        body = self._parsing.encode(text, add_special_tokens=False)
        whole = self._parsing.encode(text, add_special_tokens=True).ids
        at = next((i for i in range(len(whole)) if whole[i : i + len(body.ids)] == body.ids), 0)
        opening = whole[:at] if body.ids[:at] != whole[:at] else []  # the prompt may bring its own
        ids = (*opening, *body.ids)
        return ids, self._section(ids, text, body, after_text=False, chat=False)

    def encode_rendered(self, rendered: str, *, continues: bool = False) -> tuple[Ids, Section]:
        """Ids of a rendered chat template (nothing is added), and where its answer stands.

        Args:
            rendered: Template output; what `as_text` marked is encoded as plain text.
            continues: Whether the answer goes on with the text at the end, so that no blank belongs between them.
        """
        ids: list[int] = []
        for index, piece in enumerate(regex.split(f"{_TEXT_OPEN}(.*?){_TEXT_CLOSE}", rendered, flags=regex.S)):
            tokenizer = self._plain if index % 2 else self._parsing
            encoding = tokenizer.encode(piece if index == 0 else _SECTION + piece, add_special_tokens=False)
            ids += encoding.ids[index > 0 :]
        text = piece if index == 0 else _SECTION + piece
        return tuple(ids), self._section(tuple(ids), text, encoding, after_text=index > 0, chat=not continues)

    def as_text(self, value: Any) -> Any:
        """Mark the control tokens in all strings of a JSON-like value: `encode_rendered` encodes them as plain text."""
        if isinstance(value, str):
            return self._control.sub(lambda match: f"{_TEXT_OPEN}{match.group()}{_TEXT_CLOSE}", value)
        if isinstance(value, dict):
            return {self.as_text(key): self.as_text(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.as_text(item) for item in value]
        return value

    def decode(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Text of `ids` standing after the ids `before`. Control tokens have no text."""
        visible = [index for index in ids if index not in self.special_ids]
        window, base = self._left(tuple(before[-_WINDOW - LONGEST_CHARACTER + 1 :]))
        text = self._parsing.decode([*window, *visible], skip_special_tokens=False)
        return text[len(base) :] if text.startswith(base) else self._parsing.decode(visible)

    def _decode_left(self, before: Ids) -> tuple[Ids, str]:
        """Left context for decoding, and its text. If possible, it does not begin inside a character of bytes.

        That shows by the fewest broken characters; there may be some, as the text itself can have them.
        """
        found: list[tuple[int, Ids, str]] = []
        for width in range(_WINDOW, _WINDOW + LONGEST_CHARACTER):
            text = self._parsing.decode(before[-width:], skip_special_tokens=False)
            found.append((text.count(INCOMPLETE), before[-width:], text))
            if INCOMPLETE not in text:
                break
        _, window, base = min(found, key=lambda each: each[0])
        return window, base

    def count(self, text: str) -> int:
        """Number of tokens of a plain text."""
        return len(self._plain.encode(text, add_special_tokens=False).ids)

    def lossless(self, text: str) -> bool:
        """Whether a text survives encoding and decoding to the byte."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        return str(self._parsing.decode(ids, skip_special_tokens=False)) == text

    def _section(self, ids: Ids, text: str, encoding: Any, *, after_text: bool, chat: bool) -> Section:
        """Where an answer to `text` stands: in the section after its last control token."""
        starts = [
            end for index, (_, end) in zip(encoding.ids, encoding.offsets, strict=True) if index in self.special_ids
        ]
        opening = text[starts[-1] :] if starts else text.removeprefix(_SECTION)
        at_start = not starts and not after_text
        tail = self._encode_section(opening, at_start)
        if ids[len(ids) - len(tail) :] != tail:  # this tokenizer looks across sections: encode answers alone
            opening, at_start, tail = "", False, ()
        lead = " " if chat and self._dummy_blank and not opening[-1:].isspace() else ""
        return Section(self, ids, opening, at_start, lead, len(ids) - len(tail))

    def _encode_section(self, text: str, at_start: bool) -> Ids:
        if at_start:
            return tuple(self._plain.encode(text, add_special_tokens=False).ids)
        return tuple(self._plain.encode(_SECTION + text, add_special_tokens=False).ids[1:])

    def _encode_inside(self, text: str) -> Ids:
        """Ids of the end of a section that was cut at a safe place."""
        own = self._dummy_everywhere and text.startswith(" ")  # the tokenizer adds this blank itself
        return self._encode_section(text[own:], at_start=False)


class Section:
    """The end of a prompt after its last control token, in which the answer grows.

    Args:
        codec: The tokenizer.
        ids: Of the whole prompt.
        opening: Text of the section.
        at_start: Whether it is the very start of the text.
        lead: A blank that belongs between opening and answer and is no part of the answer:
            tokenizers of the SentencePiece kind put it before the first word.
        head: Number of ids before the section.
    """

    def __init__(self, codec: Codec, ids: Ids, opening: str, at_start: bool, lead: str, head: int) -> None:
        self._codec = codec
        self._opening = opening
        self.lead = lead
        own = codec._dummy_everywhere and not opening  # the tokenizer writes the lead itself
        self._start = opening if own else opening + lead
        before = ids[:head]
        self._encoder = IncrementalEncoder(
            lambda text: before + codec._encode_section(text, at_start), codec._encode_inside, codec._cuts
        )
        self._empty = self._base = EncodedText(opening, ids)  # the base is the answer that grows now
        self._recent = {"": self._empty}  # answers, the least recently used first

    def encode(self, answer: str) -> Ids:
        """Ids of prompt and answer, as the tokenizer writes them."""
        return self._write(answer).ids

    def decode(self, kept: Sequence[int], ids: Sequence[int], *, opens: bool) -> str:
        """Text of `ids` after the kept ids; where they open the answer the lead is not theirs."""
        text = self._codec.decode(kept, ids)
        return text.removeprefix(self.lead) if opens else text

    def extend(self, kept: Ids, answer: str, addition: str) -> tuple[Ids, Ids]:
        """Where and how `addition` is written after `answer`.

        Args:
            kept: The ids in use for prompt and answer. They may differ from the tokenizer's own
                where the model wrote them itself.
            answer: The committed text.
            addition: New text.

        Returns:
            `(context, ids)`: the ids of answer plus addition, split at the first one that differs
            from those of the answer alone. Usually `context` is `kept`; where a token straddles
            the seam, or `kept` ends unlike the tokenizer would end it, it is shorter.
        """
        old = self._base = self._write(answer)
        new = self._write(answer + addition)
        shared = new.shared_with(old)
        replaced, ids = old.ids[shared:], new.ids_from(shared)
        if not replaced:  # the addition only adds tokens
            return kept, ids
        if shared == 0:  # it changes the very first token, and no token stands before that to predict it
            return ids[:1], ids[1:]
        if kept[-len(replaced) :] == replaced:
            return kept[: -len(replaced)], ids
        return new.ids[:shared], ids  # the model wrote other tokens: continue the tokenizer's

    def _write(self, answer: str) -> EncodedText:
        written = self._recent.pop(answer, None)
        if written is None:
            text = self._start + answer if answer else self._opening
            written = self._encoder.grow(self._base if text.startswith(self._base.text) else self._empty, text)
            if len(self._recent) >= _RECENT:
                del self._recent[next(iter(self._recent))]
        self._recent[answer] = written
        return written


def _copy(state: str) -> Tokenizer:
    copy = Tokenizer.from_str(state)
    copy.no_padding()
    copy.no_truncation()
    copy.add_tokens([AddedToken(_SECTION, normalized=False, special=False)])
    return copy
