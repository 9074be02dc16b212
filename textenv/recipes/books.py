"""Recursively summarizing books with human feedback (Wu et al. 2021, arXiv:2109.10862), on papers with abstracts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textenv.data.book_tasks import STOP
from textenv.data.book_texts import ACLSUM, FEW, BookText, load_books
from textenv.data.book_tree import TreeSettings
from textenv.data.records import read_records, write_records
from textenv.recipes.base import Data, Recipe, Settings

if TYPE_CHECKING:
    from textenv.data.book_tasks import TokenCounter
    from textenv.models.policy import TextPolicy

__all__ = ["Books"]

_WINDOW, _LEAF = 384, 128  # tokens of the bundled model
_DEMONSTRATED, _MEASURED = 40, 4  # papers
_DEMONSTRATIONS, _PROMPTS, _HELD_OUT = 2000, 1200, 256


class Books(Recipe):
    """Nodes of the trees of papers: clone demonstrations, rank samples, train a reward model and, against it, a policy.

    Cloned are nodes of all heights. What is ranked and trained with PPO are the first leaves of each text, the first
    stage of the paper's curriculum, as prompts that are one turn each: ``textenv rlhf`` ranks completions of prompts,
    which no world answers. The whole tree as an environment is ``textenv/Book-v0``. As in the paper one model
    summarizes at all heights, three summaries are ranked at a time, and the KL has the weight 0.02.

    Nobody has summarized the nodes of these texts, and no summaries of novels by people were to be had. The
    demonstrations are extracts that know the abstract (``textenv.analysis.book_demonstrations``), and what ranks is
    ROUGE-L of a node's summary against the abstract of the whole, a program that is not human; ``--gold None`` asks
    people instead.
    """

    settings: ClassVar[Settings] = Settings(
        {
            "env": "textenv/Text-v0",
            "gold": '{"name": "rouge"}',
            "rounds": 1,
            "labels": 400,
            "samples": 3,
            "sft_epochs": 1,
            "reward_epochs": 1,
            "eval_episodes": _HELD_OUT,
            "total_steps": 30_000,
            "num_envs": 32,
        },
        {"max_new_tokens": 28, "stop": STOP, "kl_coef": 0.02},
        {"epochs": 2},
    )
    quick: ClassVar[Settings] = Settings(
        {"labels": 4, "samples": 2, "eval_episodes": 4, "total_steps": 64, "num_envs": 4},
        {"max_new_tokens": 8},
        {"epochs": 1},
    )

    def prepare(self, folder: Path, *, quick: bool, seed: int) -> Data:
        """Write demonstrations of nodes, first leaves to train on, and held-out first leaves and texts.

        Raises:
            TextEnvError: The papers are not in the cache, and cannot be fetched.
        """
        source, rng = FEW if quick else ACLSUM, random.Random(seed)
        train, held_out = (_shuffled(load_books([source], split), rng) for split in ("train", "heldout"))
        sizes, tokens = _sizes()
        nodes = [row for book in train[:_DEMONSTRATED] for row in _rows(book, sizes, tokens, first_leaves=False)]
        leaves, others = (
            [row for book in books for row in _rows(book, sizes, tokens, first_leaves=True)]
            for books in (train, held_out)
        )
        paths = [folder / f"{name}.jsonl" for name in ("demonstrations", "prompts", "held-out-prompts")]
        write_records(paths[0], _shuffled(nodes, rng)[:_DEMONSTRATIONS])
        asked = [{name: row[name] for name in row if name != "completion"} for row in _shuffled(leaves, rng)]
        write_records(paths[1], asked[:_PROMPTS])
        write_records(paths[2], _shuffled(others, rng)[:_HELD_OUT])
        texts = [{"text": book.text, "reference": book.columns["reference"]} for book in held_out[:_MEASURED]]
        data = Data((paths[0],), paths[1], paths[2])
        write_records(_held_out_texts(data), texts)
        return data

    def measure(self, policy: TextPolicy, data: Data, *, seed: int) -> Mapping[str, Sequence[float]]:
        """Return ROUGE of the roots of held-out texts, summarized through their trees at temperature 0."""
        from textenv.analysis.book_rouge import rouge_of  # noqa: PLC0415 (what takes long to load)
        from textenv.analysis.book_summary import Reader, root_summaries  # noqa: PLC0415

        texts = [row for _, row in read_records(_held_out_texts(data))]
        lm: Any = policy.lm
        reader, (sizes, _) = Reader(lm, chat=False), _sizes()
        roots = root_summaries([row["text"] for row in texts], reader, sizes)
        found = rouge_of(roots, [row["reference"] for row in texts])
        return {f"root {name}": values for name, values in found.items()}


def _held_out_texts(data: Data) -> Path:
    assert data.eval_prompts is not None
    return data.eval_prompts.parent / "held-out-texts.jsonl"


def _shuffled(items: Sequence[Any], rng: random.Random) -> list[Any]:
    return rng.sample(items, len(items))


def _sizes() -> tuple[TreeSettings, TokenCounter]:
    """Return the sizes of trees, and what counts their tokens: always with the bundled model's tokenizer."""
    from textenv.models.loading import BUNDLED, load_tokenizer  # noqa: PLC0415 (what takes long to load)
    from textenv.models.task_tokens import TaskTokens  # noqa: PLC0415

    tokens = TaskTokens(load_tokenizer(BUNDLED), chat=False)
    return TreeSettings.of_window(_WINDOW, tokens.frame, _LEAF), tokens


def _rows(book: BookText, sizes: TreeSettings, tokens: TokenCounter, *, first_leaves: bool) -> list[Mapping[str, str]]:
    """Return demonstrations of a text's nodes, with the columns ``text`` and ``reference`` for rewards."""
    from textenv.analysis.book_demonstrations import demonstrate  # noqa: PLC0415

    reference = book.columns["reference"]
    found = demonstrate(book.text, reference, sizes, tokens, "first leaves" if first_leaves else "full tree")
    return [{**each.record(), "text": each.task.text, "reference": reference} for each in found if each.summary]
