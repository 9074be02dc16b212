"""Held-out bits per character of the movie reviews: compressors, an n-gram model, the bundled model and its peers.

    python benchmarks/bits_per_character.py --peer /models/SmolLM2-135M

The definition, the same for all, is printed with the figures.
"""

from __future__ import annotations

import lzma
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from textenv.data.reviews import load_reviews
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import BUNDLED
from textenv.training.bits_per_character import bits_per_character

END = "\n"  # also what begins a snippet; no snippet holds one
CODE_POINTS = 0x110000
DEFINITION = (
    "The test split's snippets, each with its end, in bits divided by (characters + 1). The n-gram and language models "
    "code each snippet alone, from the token that begins a text to the one that ends it. xz codes all snippets as one "
    "file, a newline ending each; where it knows the training split, it is charged size(training + test) - "
    "size(training)."
)


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        model: The bundled model, or a folder in Hugging Face format.
        peer: Folders of other causal language models.
        order: Orders of the character n-gram models.
        limit: Only so many snippets, evenly spaced over the test split; for slow peers.
        batch_size: Snippets a forward pass.
        device: Where the language models run.
    """

    model: str = BUNDLED
    peer: tuple[str, ...] = ()
    order: tuple[int, ...] = (5,)
    limit: int | None = None
    batch_size: int = 64
    device: str = "cpu"


class CharacterNgram:
    r"""A character n-gram model with modified Kneser-Ney smoothing, interpolated (Chen & Goodman 1998, section 3).

    With ``h`` the context and ``h'`` the context without its first character:

    .. math:: p(c \mid h) = \frac{count(hc) - D(count(hc)) + p(c \mid h') \sum_x D(count(hx))}{\sum_x count(hx)}

    The discounts ``D`` are estimated for each context length. ``count`` is the number of occurrences for the longest
    contexts, and for shorter ones the number of different characters seen before ``hc``. Below the empty context lies
    the uniform distribution over the alphabet and one unknown character.

    Attributes:
        alphabet: The characters seen in training, ``END`` included.
    """

    def __init__(self, texts: Iterable[str], order: int = 5) -> None:
        """Count the sequences of ``order`` characters.

        Args:
            texts: What to learn from.
            order: Length of the longest sequence, at least 1.
        """
        self._padding = END * (order - 1)
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            for context, character in self._steps(text):
                counts[context][character] += 1
        self._levels = [counts]  # by length of the context
        while len(self._levels) < order:
            shorter: defaultdict[str, Counter[str]] = defaultdict(Counter)
            for context, followers in self._levels[0].items():
                shorter[context[1:]].update(followers.keys())
            self._levels.insert(0, shorter)
        self._discounts = [_discounts(level.values()) for level in self._levels]
        self.alphabet = frozenset(self._levels[0][""])

    def probability(self, character: str, context: str) -> float:
        """Return p(character | context); of a character that training never saw, that of the unknown one."""
        probability = 1 / (len(self.alphabet) + 1)
        for length, (level, discounts) in enumerate(zip(self._levels, self._discounts, strict=True)):
            if length > len(context) or (followers := level.get(context[len(context) - length :])) is None:
                break
            count = followers[character]
            withheld = sum(discounts[min(other, 3)] for other in followers.values())
            probability = (count - discounts[min(count, 3)] + withheld * probability) / followers.total()
        return probability

    def bits(self, text: str) -> float:
        """Return the bits of a text and its end. An unknown character costs its code point on top."""
        unknown = sum(character not in self.alphabet for character in text)
        known = sum(math.log2(self.probability(character, context)) for context, character in self._steps(text))
        return unknown * math.log2(CODE_POINTS) - known

    def _steps(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield each character of a text and its end, after its context."""
        padded = f"{self._padding}{text}{END}"
        for place in range(len(self._padding), len(padded)):
            yield padded[place - len(self._padding) : place], padded[place]


def _discounts(counters: Iterable[Counter[str]]) -> tuple[float, float, float, float]:
    """Return what is withheld from a count of 0, 1, 2, and 3 or more (Chen & Goodman 1998, equation 26)."""
    times = Counter(count for followers in counters for count in followers.values())
    if all(times[count] for count in (1, 2, 3, 4)):
        ratio = times[1] / (times[1] + 2 * times[2])
        one, two, three = (count - (count + 1) * ratio * times[count + 1] / times[count] for count in (1, 2, 3))
        if min(one, two, three) > 0:
            return 0.0, one, two, three
    return 0.0, 0.5, 1.0, 1.5  # too few counts for an estimate; KenLM's --discount_fallback


def xz_bytes(texts: Sequence[str]) -> int:
    """Return the size of the texts as one xz file, a newline after each; the dictionary of 64 MiB holds them all."""
    data = "".join(text + END for text in texts).encode()
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def language_model(name: str, texts: Sequence[str], config: Config) -> tuple[str, str, float]:
    """Return a row of the table: the model's name, what to know about it, and its bits per character."""
    lm = CausalLM.from_pretrained(name, device=config.device, dtype=torch.float32)
    bos, eos = lm.tokenizer.bos_token, lm.tokenizer.eos_token
    size = sum(parameter.numel() for parameter in lm.model.parameters()) / 1e6
    note = f"{size:.1f} M parameters; begins with {bos or eos}, ends with {eos}"
    return (
        Path(name).name,
        note,
        bits_per_character(lm.model, lm.tokenizer, texts, batch_size=config.batch_size, progress=True),
    )


def main(config: Config) -> None:
    train = [review.text for review in load_reviews("train")]
    test = [review.text for review in load_reviews("test")]
    if config.limit is not None and config.limit < len(test):
        test = [test[index * len(test) // config.limit] for index in range(config.limit)]
    symbols = sum(len(text) + 1 for text in test)
    rows = [
        ("xz -9e", "knows nothing", 8 * xz_bytes(test) / symbols),
        ("xz -9e", "knows the training split", 8 * (xz_bytes(train + test) - xz_bytes(train)) / symbols),
    ]
    for order in config.order:
        ngram = CharacterNgram(train, order)
        bits = sum(ngram.bits(text) for text in test)
        rows.append((f"character {order}-gram", "training split, modified Kneser-Ney", bits / symbols))
    rows += [language_model(name, test, config) for name in (config.model, *config.peer)]
    table = Table("coder", "", caption=f"{len(test)} snippets of the test split, {symbols:,} characters and ends")
    table.add_column("bits per character", justify="right")
    for coder, note, figure in rows:
        table.add_row(coder, note, f"{figure:.3f}")
    console = Console()
    console.print(DEFINITION, highlight=False)
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=f"Held-out bits per character of the movie reviews. {DEFINITION}"))
