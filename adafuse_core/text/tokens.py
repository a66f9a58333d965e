"""Text to token ids and back, exactly, with one tokenizer.

Differences from `tokenizer.encode` and `tokenizer.decode`:

- An answer is encoded together with the end of the prompt: tokens may straddle the boundary, and some tokenizers
  treat the start of a text in a special way.
- Only templates produce control tokens (`</s>`, `<|im_end|>`). The same characters in a message or an answer are
  encoded as plain text.
- Decoding takes the preceding tokens into account and marks incomplete characters.
- The cost of encoding one more word does not depend on the length of the answer.
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

INCOMPLETE = "\ufffd"  # decoders write this for a character whose last bytes are missing
MAX_UTF8_BYTES = 4  # of one character, so at most as many tokens
_CONTEXT = 8  # preceding tokens that decoding takes into account
_CACHED = 32  # encoded answers per section, decoded contexts per codec
_SECRET = secrets.token_hex(8)  # per process, so that no prompt can contain the three markers below
_SECTION = f"\uf8ffsection-{_SECRET}\uf8ff"  # an added token: the text after it is not at the start of a text
_TEXT_OPEN = f"\uf8fftext-{_SECRET}\uf8ff"
_TEXT_CLOSE = f"\uf8ffcontrol-{_SECRET}\uf8ff"


class Codec:
    """Encodes and decodes texts with one tokenizer.

    Args:
        tokenizer: A fast transformers tokenizer. It is copied, never changed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = _copy(tokenizer.backend_tokenizer)
        self._plain = _copy(tokenizer.backend_tokenizer)
        self._plain.encode_special_tokens = True  # encodes control tokens as plain text
        added = tokenizer.added_tokens_decoder
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        contents = sorted((token.content for token in added.values() if token.special), key=len, reverse=True)
        self._control = regex.compile("|".join(map(regex.escape, contents)) if contents else r"(?!)")
        self._prefix_space = self._tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith("▁")
        # Whether every section gets a prefix space, even if it starts with a space already.
        bare, spaced = (
            self._tokenizer.encode(_SECTION + text, add_special_tokens=False).tokens for text in ("a", " a")
        )
        self._prefix_space_always = bare[1].startswith("▁") and bare != spaced
        self._cuts = safe_cuts(tokenizer.backend_tokenizer)
        self._decoding_context = lru_cache(_CACHED)(self._find_decoding_context)

    def encode_prompt(self, text: str) -> tuple[Ids, Section]:
        """Encode a plain prompt, with the tokenizer's own first tokens (BOS), and find the section of its answer.

        Control tokens in the prompt are honoured, so that a prompt can bring its own template.
        """
        body = self._tokenizer.encode(text, add_special_tokens=False)
        whole = self._tokenizer.encode(text, add_special_tokens=True).ids
        at = next((i for i in range(len(whole)) if whole[i : i + len(body.ids)] == body.ids), 0)
        first = whole[:at] if body.ids[:at] != whole[:at] else []  # the prompt may bring these tokens itself
        ids = (*first, *body.ids)
        return ids, self._section(ids, text, body, after_text=False, chat=False)

    def encode_rendered(self, rendered: str, *, continues: bool = False) -> tuple[Ids, Section]:
        """Encode a rendered chat template, without added tokens, and find the section of its answer.

        Args:
            rendered: Template output. Control tokens marked by `mark_control_tokens` are encoded as plain text.
            continues: Whether the answer continues the text at the end, so that no prefix space stands between them.
        """
        ids: list[int] = []
        for index, piece in enumerate(regex.split(f"{_TEXT_OPEN}(.*?){_TEXT_CLOSE}", rendered, flags=regex.S)):
            tokenizer = self._plain if index % 2 else self._tokenizer
            text = piece if index == 0 else _SECTION + piece
            encoding = tokenizer.encode(text, add_special_tokens=False)
            ids += encoding.ids[index > 0 :]
        text = piece if index == 0 else _SECTION + piece
        return tuple(ids), self._section(tuple(ids), text, encoding, after_text=index > 0, chat=not continues)

    def mark_control_tokens(self, value: Any) -> Any:
        """Mark the control tokens in all strings of a JSON-like value; see `encode_rendered`."""
        if isinstance(value, str):
            return self._control.sub(lambda match: f"{_TEXT_OPEN}{match.group()}{_TEXT_CLOSE}", value)
        if isinstance(value, dict):
            mark = self.mark_control_tokens
            return {mark(key): mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark_control_tokens(item) for item in value]
        return value

    def decode(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Text of `ids` after the ids `before`. Control tokens have no text."""
        visible = [index for index in ids if index not in self.special_ids]
        context, start = self._decoding_context(tuple(before[1 - _CONTEXT - MAX_UTF8_BYTES :]))
        text = self._tokenizer.decode([*context, *visible], skip_special_tokens=False)
        return text[len(start) :] if text.startswith(start) else self._tokenizer.decode(visible)

    def _find_decoding_context(self, before: Ids) -> tuple[Ids, str]:
        """The last ids before those to decode, and their text.

        Prefers a context that doesn't start inside a character: the one with the fewest incomplete characters, as the
        text itself can contain some.
        """
        found: list[tuple[int, Ids, str]] = []
        for width in range(_CONTEXT, _CONTEXT + MAX_UTF8_BYTES):
            text = self._tokenizer.decode(before[-width:], skip_special_tokens=False)
            found.append((text.count(INCOMPLETE), before[-width:], text))
            if INCOMPLETE not in text:
                break
        _, context, text = min(found, key=lambda each: each[0])
        return context, text

    def count(self, text: str) -> int:
        """Number of tokens of a plain text."""
        return len(self._plain.encode(text, add_special_tokens=False).ids)

    def lossless(self, text: str) -> bool:
        """Whether decoding the ids of a text gives back the same text."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        return str(self._tokenizer.decode(ids, skip_special_tokens=False)) == text

    def _section(self, ids: Ids, text: str, encoding: Any, *, after_text: bool, chat: bool) -> Section:
        """The section of the answer to `text`: it starts after the last control token."""
        starts = [
            end for index, (_, end) in zip(encoding.ids, encoding.offsets, strict=True) if index in self.special_ids
        ]
        opening = text[starts[-1] :] if starts else text.removeprefix(_SECTION)
        at_start = not starts and not after_text
        tail = self._encode_section(opening, at_start)
        if ids[len(ids) - len(tail) :] != tail:  # ids depend on earlier sections: encode the answer without the prompt
            opening, at_start, tail = "", False, ()
        lead = " " if chat and self._prefix_space and not opening[-1:].isspace() else ""
        return Section(self, ids, opening, at_start, lead, len(ids) - len(tail))

    def _encode_section(self, text: str, at_start: bool) -> Ids:
        if at_start:
            return tuple(self._plain.encode(text, add_special_tokens=False).ids)
        return tuple(self._plain.encode(_SECTION + text, add_special_tokens=False).ids[1:])

    def _encode_tail(self, text: str) -> Ids:
        """Ids of the part of a section after a safe cut."""
        added = self._prefix_space_always and text.startswith(" ")  # the tokenizer adds this space itself
        return self._encode_section(text[added:], at_start=False)


class Section:
    """The end of a prompt, after its last control token, and the answer that grows there.

    Args:
        codec: The tokenizer.
        ids: Ids of the whole prompt.
        opening: Text of the prompt's part of the section.
        at_start: Whether the section is at the start of the text.
        lead: A space between prompt and answer that isn't part of the answer: SentencePiece tokenizers add it
            before the first word.
        ids_before: Number of ids before the section.
    """

    def __init__(self, codec: Codec, ids: Ids, opening: str, at_start: bool, lead: str, ids_before: int) -> None:
        self._codec = codec
        self._opening = opening
        self.lead = lead
        adds_lead = codec._prefix_space_always and not opening  # the tokenizer adds the lead itself
        self._before_answer = opening if adds_lead else opening + lead
        before = ids[:ids_before]
        self._encoder = IncrementalEncoder(
            lambda text: before + codec._encode_section(text, at_start), codec._encode_tail, codec._cuts
        )
        self._empty = self._committed = EncodedText(opening, ids)
        self._encoded = {"": self._empty}  # by answer, the least recently used first

    def encode(self, answer: str) -> Ids:
        """Ids of prompt and answer as the tokenizer encodes them."""
        return self._encode(answer).ids

    def decode(self, before: Sequence[int], ids: Sequence[int], *, starts_answer: bool) -> str:
        """Text of `ids` after the ids `before`, without the lead if `ids` start the answer."""
        text = self._codec.decode(before, ids)
        return text.removeprefix(self.lead) if starts_answer else text

    def extend(self, current: Ids, answer: str, addition: str) -> tuple[Ids, Ids]:
        """Encode `addition` after `answer`.

        Args:
            current: The ids in use for prompt and answer. They differ from the tokenizer's own where the model
                generated other tokens for the same text.
            answer: The committed text.
            addition: New text.

        Returns:
            `(context, ids)`: the ids of answer and addition, split at the first id that differs from the ids of the
            answer alone. Usually `context` is `current`. It is shorter if a token straddles the end of the answer, or
            if the tokenizer would encode the end of the answer in other tokens.
        """
        old = self._committed = self._encode(answer)
        new = self._encode(answer + addition)
        shared = new.shared_with(old)
        replaced, ids = old.ids[shared:], new.ids_from(shared)
        if not replaced:  # the addition only appends tokens
            return current, ids
        if shared == 0:  # the very first token changes, and no token before it could predict it
            return ids[:1], ids[1:]
        if current[-len(replaced) :] == replaced:
            return current[: -len(replaced)], ids
        return new.ids[:shared], ids  # the model generated other tokens: use the tokenizer's

    def _encode(self, answer: str) -> EncodedText:
        encoded = self._encoded.pop(answer, None)
        if encoded is None:
            text = self._before_answer + answer if answer else self._opening
            base = self._committed if text.startswith(self._committed.text) else self._empty
            encoded = self._encoder.grow(base, text)
            if len(self._encoded) >= _CACHED:
                del self._encoded[next(iter(self._encoded))]
        self._encoded[answer] = encoded
        return encoded


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    copy = _sharing_copy(tokenizer)
    if _added(copy) != _added(tokenizer):  # such as ids with gaps
        copy = Tokenizer.from_str(tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
    copy.add_tokens([AddedToken(_SECTION, normalized=False, special=False)])
    return copy


def _sharing_copy(tokenizer: Tokenizer) -> Tokenizer:
    """A copy with own added tokens that shares the vocabulary: a copy of a large one takes seconds."""
    copy = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(tokenizer, part)) is not None:
            setattr(copy, part, value)
    copy.add_tokens([token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    return copy


def _added(tokenizer: Tokenizer) -> dict[int, str]:
    return {index: repr(token) for index, token in tokenizer.get_added_tokens_decoder().items()}
