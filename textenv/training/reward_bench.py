"""RewardBench (Lambert et al. 2024): how often a reward model prefers the better of two completions, by subject."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from textenv.data.records import read_records
from textenv.data.values import as_prompt, as_text
from textenv.training.reward_evaluation import Scorer
from textenv.types import Conversation, TextEnvError

__all__ = ["reward_bench"]

_SECTIONS = {
    "Chat": ["alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"],
    "Chat Hard": [
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ],
    "Safety": [
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ],
    "Reasoning": ["math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"],
}


def reward_bench(scorer: Scorer, path: Path) -> dict[str, float]:
    """Return the scores of RewardBench (Lambert et al. 2024) on a file of pairs, each a share from 0 to 1.

    A pair is right if the chosen completion scores higher; equal scores are wrong. A section is the mean over its
    pairs; in Reasoning, mathematics weighs as much as all the code. The score is the mean of the sections there are.
    Subsets of other names are a section of their own together, "Other".

    Args:
        scorer: Gives the scores.
        path: Records with ``prompt`` (a text or messages) and the texts ``chosen``, ``rejected`` and ``subset``.

    Returns:
        Accuracy of each subset and section by name, and ``"score"``.

    Raises:
        TextEnvError: The file cannot be read, holds nothing, or a record is something else.
    """
    prompts: list[str | Conversation] = []
    texts: dict[str, list[str]] = {"chosen": [], "rejected": [], "subset": []}
    for where, row in read_records(path):
        try:
            prompts.append(as_prompt(row.get("prompt")))
            for name, cells in texts.items():
                cells.append(as_text(row.get(name), name))
        except TextEnvError as error:
            raise TextEnvError(
                f"{where}: {error} A pair has a 'prompt' and the texts 'chosen', 'rejected' and 'subset'."
            ) from error
    chosen, rejected = (scorer(prompts, texts[name]) for name in ("chosen", "rejected"))
    right: dict[str, list[bool]] = defaultdict(list)
    for subset, one, other in zip(texts["subset"], chosen, rejected, strict=True):
        right[subset].append(bool(one > other))
    results = {name: float(np.mean(each)) for name, each in right.items()}
    code = sum(len(right[name]) for name in _SECTIONS["Reasoning"][1:] if name in right)
    sections = {section: [name for name in names if name in right] for section, names in _SECTIONS.items()}
    sections["Other"] = [name for name in right if not any(name in names for names in _SECTIONS.values())]
    scores = {}
    for section, names in sections.items():
        weights = [code if name == "math-prm" and code else len(right[name]) for name in names]
        if names:
            scores[section] = float(np.average([results[name] for name in names], weights=weights))
    return {**results, **scores, "score": float(np.mean(list(scores.values())))}
