"""ROUGE of whole papers summarized through their trees, against the abstracts, before and after cloning.

    python benchmarks/books.py --papers 20 --demonstrations 60

The papers are those of the test split of ``aclsum``, the demonstrations of nodes are made of those of its other splits
(``textenv.analysis.book_demonstrations``). No side has more tokens than the root may have. Wu et al. 2021
(arXiv:2109.10862) report ROUGE-1/2/L of 43.2/10.6/17.1 for books of BookSum, with 175B parameters, and 46.6/9.2/18.3
for an extractive oracle.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from textenv.analysis.book_demonstrations import demonstrate
from textenv.analysis.book_rouge import extractive_oracle, rouge_of
from textenv.analysis.book_sources import sentences_of
from textenv.analysis.book_summary import Reader, root_summaries
from textenv.data.book_tasks import as_summary
from textenv.data.book_texts import ACLSUM, BookSplit, BookText, load_books
from textenv.data.book_tree import TreeSettings, cut_leaves, plan_tree
from textenv.data.records import write_records
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import BUNDLED
from textenv.rollouts.runs import mean_and_error
from textenv.training.configs import SftConfig
from textenv.training.sft import sft


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        books: ``"aclsum"``, ``"few"``, or a file of records with ``text`` and ``reference``.
        model: What summarizes, and is cloned into: the bundled model, a folder or an id.
        papers: Held-out texts to summarize, at most.
        demonstrations: Texts of the training split whose nodes are demonstrated, at most.
        words: Words of a text that count as the text, at most; None for all.
        window: Tokens that the model reads at once.
        leaf_tokens: Tokens of a passage.
        epochs: Passes of the fine-tuning over the demonstrations.
        seed: Seeds which texts are taken, and the fine-tuning.
    """

    books: str = ACLSUM
    model: str = BUNDLED
    papers: int = 20
    demonstrations: int = 60
    words: int | None = None
    window: int = 384
    leaf_tokens: int = 128
    epochs: int = 3
    seed: int = 0


def main(config: Config) -> None:
    """Print the table."""
    began = time.monotonic()
    reader = Reader(CausalLM.from_pretrained(config.model), chat=False)
    sizes = TreeSettings.of_window(config.window, reader.tokens.frame, config.leaf_tokens)
    papers = _some(config, "heldout", config.papers)
    limits = [sizes.limit(plan_tree(_leaves(paper, reader, sizes), sizes)[-1].height) for paper in papers]
    pairs, texts = list(zip(papers, limits, strict=True)), [paper.text for paper in papers]
    sides = {
        "lead": [as_summary(_first_words(paper.text, limit), limit, reader.tokens) for paper, limit in pairs],
        f"{config.model}, as it is": root_summaries(texts, reader, sizes),
        f"{config.model}, after cloning": root_summaries(texts, _cloned(config, reader, sizes), sizes),
        "extractive oracle": [
            extractive_oracle(
                sentences_of(paper.text),
                paper.columns["reference"],
                functools.partial(as_summary, limit=limit, tokens=reader.tokens),
            )
            for paper, limit in pairs
        ],
    }
    Console().print(_table(sides, papers, max(limits)))
    print(f"{time.monotonic() - began:.0f} s")


def _leaves(paper: BookText, reader: Reader, sizes: TreeSettings) -> list[tuple[int, int]]:
    return cut_leaves(paper.text, reader.tokens.count, sizes.leaf_tokens)


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


def _some(config: Config, split: BookSplit, count: int) -> list[BookText]:
    """Return some texts of a split, as far as they count."""
    books = load_books([config.books], split)
    drawn = random.Random(config.seed).sample(books, min(count, len(books)))
    return [
        book if config.words is None else dataclasses.replace(book, text=_first_words(book.text, config.words))
        for book in drawn
    ]


def _cloned(config: Config, reader: Reader, sizes: TreeSettings) -> Reader:
    """Return the model fine-tuned on demonstrations of nodes."""
    rows = [
        each.record()
        for book in _some(config, "train", config.demonstrations)
        for each in demonstrate(book.text, book.columns["reference"], sizes, reader.tokens)
        if each.summary
    ]
    print(f"{len(rows):,} demonstrations of nodes")
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "nodes.jsonl"), Path(folder, "model")
        write_records(file, rows)
        made = SftConfig(
            model=config.model,
            files=(file,),
            out=out,
            epochs=config.epochs,
            max_tokens=config.window,
            seed=config.seed,
        )
        return Reader(CausalLM.from_pretrained(sft(made)), chat=False)


def _table(sides: dict[str, list[str]], papers: Sequence[BookText], limit: int) -> Table:
    title = f"Root ROUGE against the summaries by people: {len(papers)} texts, at most {limit} tokens"
    references = [paper.columns["reference"] for paper in papers]
    table = Table(title=title)
    table.add_column("")
    for heading in ("ROUGE-1", "ROUGE-2", "ROUGE-L", "words"):
        table.add_column(heading, justify="right")
    for side, summaries in sides.items():
        found = {name: [100 * each for each in values] for name, values in rouge_of(summaries, references).items()}
        found["words"] = [float(len(summary.split())) for summary in summaries]
        table.add_row(side, *(_cell(values) for values in found.values()))
    return table


def _cell(values: Sequence[float]) -> str:
    found = mean_and_error(values)
    mean, error = (math.nan if each is None else each for each in (found["mean"], found["stderr"]))
    return f"{mean:.1f} ± {error:.1f}"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
