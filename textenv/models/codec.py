"""Text from token ids and token ids from text: the one place for both, where parts are read after what precedes them.

What a token says depends on the tokens before it. Decoders strip the space in front of the first token (Llama 1 and 2),
join subwords (WordPiece), and spell a character in several tokens (byte-level BPE, byte fallback); normalizers put a
space in front of every text. So a completion is what it adds to the decoding of its prompt, the text of a token is what
it adds to the decoding of the tokens before it, and a completion is encoded as what continues its prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from textenv.types import IntArray, Prompt, TextEnvError

__all__ = ["TextCodec", "shared_length"]

_REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character, or not yet
_MIN_CONTEXT = 8  # tokens of a prompt that are decoded with a completion, where that is exact
_MAX_REMEMBERED = 2**16
_ANCHORS = ("\n", ".", "a", "0")


class _Front(NamedTuple):
    """What is decoded in front of a completion.

    Attributes:
        ids: The last tokens of the prompt.
        text: Their decoding, as far as the prompt's text has it.
        surplus: White space that the prompt's text ends with and its tokens do not.
    """

    ids: tuple[int, ...]
    text: str
    surplus: str


class TextCodec:
    """Decodes and encodes parts of texts, given what precedes them."""

    def __init__(self, tokenizer: Any, *, ends: Iterable[int] = ()) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: A tokenizer of transformers.
            ends: Token ids that end a text, which are no part of it, marked special or not.
        """
        self.tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._known = len(tokenizer)
        self._backend = _plain_backend(tokenizer)
        self._names: dict[int, str] = {}  # of tokens that are no part of the text; "" for all others
        self._plain: dict[int, str] = {}  # what tokens add behind a letter
        self._behind: dict[str, tuple[int, ...]] = {}  # token ids of texts that follow others
        self._fronts: dict[tuple[str, tuple[int, ...]], _Front] = {}
        self._letter = tuple(token for token in self._encode(["a"])[0] if not self._name(token))[-1:]

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """Return the text of token ids, less special tokens, those that end a text, and those the tokenizer lacks."""
        kept: list[int] = list(map(int, ids))
        if kept and (max(kept) >= self._known or not self._ends.isdisjoint(kept)):
            kept = [i for i in kept if i < self._known and i not in self._ends]
        if self._backend is not None:
            return str(self._backend.decode(kept, skip_special_tokens=True))
        return str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """Return token ids as a prompt; a character whose bytes are not all there is left to what follows."""
        return Prompt(self.decode(ids).rstrip(_REPLACEMENT), tuple(ids))

    def completion_text(self, prompt: Prompt, ids: Sequence[int]) -> str:
        """Return what a completion adds to its prompt: the decoding of all token ids, less the prompt's text.

        Where the decoding does not begin with the prompt's text (a chat template's special tokens, a normalizer that
        changes letters), it is what follows the decoding of the prompt's ids.

        Args:
            prompt: The prompt.
            ids: Token ids of the completion.
        """
        front = self._front(prompt)
        text = self.decode((*front.ids, *ids))
        return text[shared_length(front.text, text) :].removeprefix(front.surplus)

    def token_texts(self, ids: Sequence[int] | IntArray, prompt: Prompt | None = None) -> tuple[str, ...]:
        """Return the text that each token of a completion adds.

        Together they are ``completion_text``, but for special tokens, those that end a text and those that the
        tokenizer lacks, which are shown by name. Of several tokens that spell a character the last one has it.

        Args:
            ids: Token ids of the completion.
            prompt: What precedes them; None for nothing.
        """
        prompt = Prompt("", ()) if prompt is None else prompt
        tokens = list(map(int, ids))
        names = [self._name(token) for token in tokens]
        whole = self.completion_text(prompt, tokens)
        found = [self._plain_text(token) for token in tokens]  # what they add behind a letter, for most tokenizers
        if "".join(found) != whole:
            found = self._added_texts(prompt, tokens, names)
        if "".join(found) != whole:
            found = self._text_parts(prompt, tokens, whole)
        return tuple(name or text for name, text in zip(names, found, strict=True))

    def continuations(
        self,
        prompts: Sequence[str],
        prompt_ids: Sequence[tuple[int, ...]],
        completions: Sequence[str],
        whole_ids: Sequence[tuple[int, ...]],
    ) -> list[tuple[int, ...]]:
        """Return the token ids that continue prompts as a policy writes them.

        Prompt and completion then decode to what the tokenizer makes of the whole text, and no token spans the two.

        Args:
            prompts: ``n`` texts.
            prompt_ids: Their token ids.
            completions: ``n`` texts.
            whole_ids: Token ids of prompts and completions as one text.

        Raises:
            TextEnvError: No token ids continue a prompt so, since the tokenizer reads both as one word, say.
        """
        if not prompts:
            return []
        apart = self._encode(completions)
        found: list[tuple[int, ...]] = []
        for prompt, start, completion, whole, part in zip(
            prompts, prompt_ids, completions, whole_ids, apart, strict=True
        ):
            wanted = self.decode(whole)
            fits = self.decode((*start, *part)) == wanted
            found.append(part if fits else self._continuation(prompt, start, completion, whole, wanted))
        return found

    def encode_behind(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text that follows another, whose tokens stay as they are.

        Together with those before them they decode to both texts, as far as the tokenizer writes every text exactly.

        Args:
            text: Any.
        """
        ids = self._behind.get(text)
        if ids is None:
            if len(self._behind) >= _MAX_REMEMBERED:
                self._behind.clear()
            ids = self._behind[text] = self._encode_behind(text)
        return ids

    def _encode_behind(self, text: str) -> tuple[int, ...]:
        (apart,) = self._encode([text])
        if self._text_after(self._letter, apart) == text:
            return apart
        found = self._behind_anchors(text, _ANCHORS)
        exact = [ids for ids in found if self._text_after(self._letter, ids) == text]
        return (*exact, *found, apart)[0]

    def _continuation(
        self, prompt: str, start: tuple[int, ...], completion: str, whole: tuple[int, ...], wanted: str
    ) -> tuple[int, ...]:
        """Return the token ids that continue one prompt whose completion says something else when encoded apart."""
        candidates = [whole[len(start) :]] if whole[: len(start)] == start else []
        candidates += self._behind_anchors(completion, (prompt[-1:], *_ANCHORS))
        for ids in candidates:
            if self.decode((*start, *ids)) == wanted:
                return ids
        raise TextEnvError(
            f"The tokenizer has no tokens that continue the prompt {prompt[-80:]!r} with {completion[:80]!r}: it reads "
            "both as one word or character. Have the completion begin with a word or a space, or leave the pair out."
        )

    def _behind_anchors(self, text: str, anchors: Iterable[str]) -> list[tuple[int, ...]]:
        """Return the token ids of a text encoded behind other texts, which are left out again."""
        found = []
        for anchor in anchors:
            first, both = self._encode([anchor, anchor + text])
            if both[: len(first)] == first:
                found.append(both[len(first) :])
        return found

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the token ids of texts without those that the tokenizer puts around a text."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [tuple(ids) for ids in encoded]

    def _front(self, prompt: Prompt) -> _Front:
        key = (prompt.text, prompt.ids)
        front = self._fronts.get(key)
        if front is None:
            if len(self._fronts) >= _MAX_REMEMBERED:
                self._fronts.clear()
            front = self._fronts[key] = self._make_front(prompt)
        return front

    def _make_front(self, prompt: Prompt) -> _Front:
        whole = self.decode(prompt.ids)
        size = _MIN_CONTEXT
        # Fewer tokens suffice where they decode to the end of what all decode to.
        while size < len(prompt.ids) and not (whole.endswith(text := self.decode(prompt.ids[-size:])) and text.strip()):
            size *= 2
        if whole != prompt.text and whole.rstrip(_REPLACEMENT) == prompt.text:  # it ends within a character
            return _Front(prompt.ids, prompt.text, "")
        ids = prompt.ids[-size:]
        rest = prompt.text.removeprefix(whole)
        return _Front(ids, self.decode(ids), rest if rest.isspace() else "")

    def _name(self, token: int) -> str:
        """Return what to show of a token that is no part of the text; nothing for one that is."""
        name = self._names.get(token)
        if name is None:
            name = "" if token < self._known else f"<{token}>"
            if token < self._known and not self.decode((token,)):
                name = str(self.tokenizer.decode([token]))
            self._names[token] = name
        return name

    def _plain_text(self, token: int) -> str:
        """Return what a token adds behind a letter; nothing for one that is no part of the text."""
        text = self._plain.get(token)
        if text is None:
            text = self._plain[token] = "" if self._name(token) else self._text_after(self._letter, (token,))
        return text

    def _text_after(self, context: tuple[int, ...], ids: tuple[int, ...]) -> str:
        """Return what tokens add to the decoding of those before them, all of which are part of the text."""
        return self.decode((*context, *ids))[len(self.decode(context)) :]

    def _added_texts(self, prompt: Prompt, tokens: Sequence[int], names: Sequence[str]) -> list[str]:
        """Return what each token adds to the ones before it, as far as the last whole character."""
        context = tuple(token for token in self._front(prompt).ids if not self._name(token))
        pending: tuple[int, ...] = ()
        last = 0
        found: list[str] = []
        for place, (token, name) in enumerate(zip(tokens, names, strict=True)):
            if name:
                found.append("")
                continue
            pending, last = (*pending, token), place
            text = self._text_after(context, pending)
            if text.endswith(_REPLACEMENT):  # the rest of the character may follow
                text = ""
            else:
                context, pending = pending, ()
            found.append(text)
        if pending:
            found[last] = self._text_after(context, pending)
        return found

    def _text_parts(self, prompt: Prompt, tokens: Sequence[int], whole: str) -> list[str]:
        """Return the part of the completion's text that each token adds to the text of the tokens before it."""
        ends = [0]
        for place in range(1, len(tokens)):
            begun = self.completion_text(prompt, tokens[:place])
            ends.append(max(ends[-1], shared_length(begun, whole)))
        ends.append(len(whole))
        return [whole[begin:end] for begin, end in pairwise(ends)] if tokens else []


def _plain_backend(tokenizer: Any) -> Any:
    """Return the tokenizer of ``tokenizers`` that one of transformers decodes with; None where that adds something.

    What transformers does around it, looking at every token id in Python, takes most of the time of a decoding.
    """
    for name in ("decode", "_decode"):
        method = getattr(type(tokenizer), name, None)
        if not str(getattr(method, "__module__", "")).startswith("transformers.tokenization_utils"):
            return None  # a class that decodes in its own way
    return getattr(tokenizer, "backend_tokenizer", None)


def shared_length(first: str, second: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    if second.startswith(first):
        return len(first)
    return next(
        (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )
