"""Tasks that compare two answers to a question, each with its quotes: ``textenv browse compare``."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from textenv.data.records import read_records
from textenv.data.values import as_text
from textenv.feedback.sampling import open_policy
from textenv.feedback.store import FeedbackStore
from textenv.types import TextEnvError
from textenv.worlds.browser import Quote, answering_prompt, question_in, quoted_answer

__all__ = ["Answers", "Pair", "add_comparisons", "pair_answers", "read_answers", "sample_answers"]

Pair: TypeAlias = tuple[tuple[str, str], tuple[str, str]]
"""Two answers, of each the name of whose it is, and the completion."""


class Answers(NamedTuple):
    """Answers of one who browses.

    Attributes:
        name: Of the policy or the people, in the store.
        source: Where they are from: a folder, id or file.
        found: Of each answer a prompt, the question, and a completion, the references and the answer.
    """

    name: str
    source: str
    found: Sequence[tuple[str, str]]


def read_answers(path: Path) -> list[tuple[str, str]]:
    """Return the answers in a file that ``textenv browse demonstrate`` or ``textenv browse record`` has written.

    Returns:
        Prompt and completion of each, as ``quoted_answer`` returns them.

    Raises:
        TextEnvError: The file cannot be read, or a record in it is no turn of the browser.
    """
    found = []
    for where, row in read_records(path, what="turns"):
        try:
            read, written = as_text(row.get("prompt"), "prompt"), as_text(row.get("completion"), "completion")
            if question_in(read) is None:
                found.append(quoted_answer(read, written))
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error
    return found


def sample_answers(
    folder: str, *, questions: int, samples: int = 1, seed: int = 0, **settings: Any
) -> list[tuple[str, str]]:
    """Let a policy answer questions in ``textenv/Browse-v0``.

    Args:
        folder: As in ``textenv.feedback.sampling.sample_completions``.
        questions: Number of questions, drawn with replacement; the same for each policy that is given the same seed.
        samples: Episodes of each.
        seed: Seeds the questions and the tokens.
        **settings: Those of ``textenv/Browse-v0``, such as ``web`` and ``split``.

    Returns:
        Prompt and completion of each answer, as ``quoted_answer`` returns them. Of episodes without one there are none.

    Raises:
        TextEnvError: The folder holds no model, or there are no questions.
    """
    import torch  # noqa: PLC0415 (slow to load, and the help needs this module)

    from textenv.rollouts.collect import sample_episodes  # noqa: PLC0415

    seeds = [seed + number for number in range(questions) for _ in range(samples)]
    envs, policy = open_policy(folder, "textenv/Browse-v0", len(seeds), **settings)
    generator = torch.Generator(policy.lm.device).manual_seed(seed)
    told = [episode.start.columns for episode in sample_episodes(envs, policy, generator, seeds)]
    envs.close()
    return [
        quoted_answer(answering_prompt(each["question"], [Quote(**quote) for quote in each["quotes"]]), each["answer"])
        for each in told
        if each["answer"]
    ]


def pair_answers(answers: Sequence[Answers], seed: int = 0) -> dict[str, Pair]:
    """Return two different answers to each question that has two, by its prompt.

    They are of two sources where those differ, and else of one.

    Args:
        answers: Answers by source.
        seed: Seeds which two.

    Raises:
        TextEnvError: No question has two, or a source has no answers.
    """
    for name, source, found in answers:
        if not found:
            raise TextEnvError(f"{name} ({source}) has not answered any question; expected at least one answer.")
    by_question: dict[str, dict[tuple[str, str], None]] = {}  # a set in order, so that equal answers of one are one
    for name, _, found in answers:
        for prompt, completion in found:
            by_question.setdefault(prompt, {})[name, completion] = None
    rng, chosen = random.Random(seed), dict[str, Pair]()
    for prompt, pool in by_question.items():
        pairs = [pair for pair in itertools.combinations(pool, 2) if pair[0][1] != pair[1][1]]
        if pairs := [pair for pair in pairs if pair[0][0] != pair[1][0]] or pairs:
            chosen[prompt] = rng.choice(pairs)
    if not chosen:
        names = ", ".join(each.name for each in answers)
        raise TextEnvError(
            f"No question has two different answers, of {len(by_question)} that {names} answered; expected answers to "
            "the same questions."
        )
    return chosen


def add_comparisons(
    store: FeedbackStore, answers: Sequence[Answers], pairs: Mapping[str, Pair], *, judgements: int = 1
) -> int:
    """Ask for comparisons of two answers, but for those that the store asks for already.

    Args:
        store: Where the tasks are added.
        answers: Where answers are from; each source is a policy of the store.
        pairs: What ``pair_answers`` has chosen of them.
        judgements: From how many annotators a judgement of each task is wanted.

    Returns:
        How many were added.
    """
    with store.transaction():
        texts = {item.id: item.text for item in store.completions()}
        asked = {(task.prompt, frozenset(texts[item] for item in task.items)) for task in store.tasks() if task.prompt}
        numbers = {prompt: store.add_prompt(prompt) for prompt in pairs}
        new = {
            prompt: pair
            for prompt, pair in pairs.items()
            if (numbers[prompt], frozenset(completion for _, completion in pair)) not in asked
        }
        policies = {name: store.add_policy(name, folder=source) for name, source, _ in answers} if new else {}
        for prompt, pair in new.items():
            number = numbers[prompt]
            items = [store.add_completion(number, completion, policy=policies[name]) for name, completion in pair]
            store.add_task(items, judgements=judgements)
    return len(new)
