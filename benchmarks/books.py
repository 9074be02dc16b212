"""ROUGE of whole papers summarized through their trees, against the abstracts: before and after cloning, and PPO.

    python -m benchmarks.books --papers 20 --demonstrations 60
    python -m benchmarks.books --words 1000 --curricula "first leaves" "first subtree" "full tree"

PPO trains the clone in ``textenv/Book-v0`` on the papers of the other splits, each node paid by its ROUGE-L against the
abstract, with as many tokens whichever nodes of a tree it is asked for.

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
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from textenv.agents.ppo import PPO, PPOConfig
from textenv.analysis.book_demonstrations import demonstrate
from textenv.analysis.book_rouge import extractive_oracle, rouge_of
from textenv.analysis.book_sources import sentences_of
from textenv.analysis.book_summary import Reader, root_summaries
from textenv.data.book_tasks import as_summary
from textenv.data.book_texts import ACLSUM, BookSplit, BookText, load_books
from textenv.data.book_tree import Curriculum, TreeSettings, cut_leaves, plan_tree
from textenv.data.records import write_records
from textenv.env.registry import make_envs
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
        curricula: Nodes that PPO trains the clone on, each a policy of its own; by default no PPO.
        total_steps: Tokens of PPO.
        num_envs: Texts that it summarizes side by side.
        kl_coef: Price of the KL.
        seed: Seeds which texts are taken, the fine-tuning and PPO.
    """

    books: str = ACLSUM
    model: str = BUNDLED
    papers: int = 20
    demonstrations: int = 60
    words: int | None = None
    window: int = 384
    leaf_tokens: int = 128
    epochs: int = 3
    curricula: tuple[Curriculum, ...] = ()
    total_steps: int = 30_000
    num_envs: int = 16
    kl_coef: float = 0.02
    seed: int = 0


def main(config: Config) -> None:
    """Print the table."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        _main(config, Path(folder))
    print(f"{time.monotonic() - began:.0f} s")


def _main(config: Config, folder: Path) -> None:
    reader = _reader(config.model)
    sizes = TreeSettings.of_window(config.window, reader.tokens.frame, config.leaf_tokens)
    papers = _some(config, "heldout", config.papers)
    limits = [sizes.limit(plan_tree(_leaves(paper, reader, sizes), sizes)[-1].height) for paper in papers]
    pairs, texts = list(zip(papers, limits, strict=True)), [paper.text for paper in papers]
    clone = _cloned(config, reader, sizes, folder)
    sides = {
        "lead": [as_summary(_first_words(paper.text, limit), limit, reader.tokens) for paper, limit in pairs],
        f"{config.model}, as it is": root_summaries(texts, reader, sizes),
        f"{config.model}, after cloning": root_summaries(texts, _reader(clone), sizes),
        **{
            f"and PPO, {curriculum}": root_summaries(texts, _trained(config, clone, curriculum, folder), sizes)
            for curriculum in config.curricula
        },
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


def _cloned(config: Config, reader: Reader, sizes: TreeSettings, folder: Path) -> Path:
    """Return the folder of the model fine-tuned on demonstrations of nodes."""
    rows = [
        each.record()
        for book in _some(config, "train", config.demonstrations)
        for each in demonstrate(book.text, book.columns["reference"], sizes, reader.tokens)
        if each.summary
    ]
    print(f"{len(rows):,} demonstrations of nodes")
    file = folder / "nodes.jsonl"
    write_records(file, rows)
    made = SftConfig(
        model=config.model,
        files=(file,),
        out=folder / "clone",
        epochs=config.epochs,
        max_tokens=config.window,
        seed=config.seed,
    )
    return Path(sft(made))


def _trained(config: Config, clone: Path, curriculum: Curriculum, folder: Path) -> Reader:
    """Return the clone trained with PPO on some nodes of the trees of the training split."""
    file = folder / "texts.jsonl"
    books = _some(config, "train", sys.maxsize)
    write_records(file, [{"text": book.text, "reference": book.columns["reference"]} for book in books])
    envs = make_envs(
        "textenv/Book-v0",
        config.num_envs,
        model=str(clone),
        books=str(file),
        split="all",
        curriculum=curriculum,
        reward={"name": "rouge"},
        window=config.window,
        leaf_tokens=config.leaf_tokens,
        kl_coef=config.kl_coef,
    )
    agent = PPO(envs, PPOConfig(seed=config.seed))

    def tell(steps: int, metrics: Mapping[str, float]) -> None:
        paid, kl = (metrics[f"objective/{name}"] / metrics["rollout/turns"] for name in ("world", "kl"))
        print(f"{curriculum}: {steps:,} tokens, {paid:.3f} paid and {kl:.2f} nats a node", flush=True)

    agent.learn(config.total_steps, progress=tell)
    envs.close()
    return Reader(agent.policy.lm, chat=False)


def _reader(model: str | Path) -> Reader:
    return Reader(CausalLM.from_pretrained(str(model)), chat=False)


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
