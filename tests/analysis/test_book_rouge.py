"""ROUGE of extracts: equal to that of rouge-score, and as good as the best choice of sentences where one suffices."""

from __future__ import annotations

import pytest

from textenv.analysis.book_demonstrations import demonstrate
from textenv.analysis.book_rouge import extractive_oracle, overlap, rouge_of
from textenv.data.book_tasks import BookTask
from textenv.data.book_tree import TreeSettings
from textenv.models.loading import load_tokenizer
from textenv.models.task_tokens import TaskTokens

SENTENCES = ["The sea was calm. ", "A red ship sank near the port. ", "Nobody cared. ", "The cook was saved. "]
REFERENCE = "A ship sank near the port, and the cook was saved."


def whole(text: str) -> str:
    return text


def test_overlap_is_that_of_rouge_score() -> None:
    texts = ["A ship sank.", "the cook the cook was saved", "", "zebra", REFERENCE]
    found = rouge_of(texts, [REFERENCE] * len(texts))
    assert [overlap(text, REFERENCE) for text in texts] == pytest.approx(
        [one + two for one, two in zip(found["ROUGE-1"], found["ROUGE-2"], strict=True)], abs=1e-6
    )
    # "A ship sank.": 3 of 3 words are among the 11 of the reference, 2 of 2 pairs among its 10.
    assert overlap(texts[0], REFERENCE) == pytest.approx(2 * 3 / (3 + 11) + 2 * 2 / (2 + 10))
    assert [values[-1] for values in found.values()] == [1.0] * 3


def test_the_oracle_takes_what_the_reference_says() -> None:
    assert extractive_oracle(SENTENCES, REFERENCE, whole) == "A red ship sank near the port. The cook was saved."
    assert extractive_oracle(SENTENCES[::-1], REFERENCE, whole) == "The cook was saved. A red ship sank near the port."
    assert extractive_oracle(SENTENCES, "zebra", whole) == ""
    assert extractive_oracle([], REFERENCE, whole) == ""


@pytest.mark.parametrize("reference", [REFERENCE, "the calm sea", "nobody was saved near the sea", "cook"])
def test_where_one_sentence_fits_it_is_the_best(reference: str) -> None:
    def first_words(text: str) -> str:
        return " ".join(text.split()[:7])

    found = extractive_oracle(SENTENCES, reference, first_words)
    assert overlap(found, reference) >= max(overlap(first_words(each), reference) for each in SENTENCES)
    assert len(found.split()) <= 7


def test_demonstrations_of_a_tree() -> None:
    tokens = TaskTokens(load_tokenizer("bundled"), chat=False)
    sizes = TreeSettings(30, (16, 20, 24), (4, 3), 200, tokens.frame)
    book = "".join(SENTENCES) + "The king slept well. It rained for days. Birds sang. The queen left the town. " * 4
    found = demonstrate(book, REFERENCE, sizes, tokens)
    leaves = [each for each in found if not each.node.height]
    assert "".join(book[each.node.first : each.node.end] for each in leaves) == book
    assert leaves[0].task.earlier == []
    assert "ship sank" in " ".join(each.summary for each in leaves)
    assert all(tokens.count([each.summary])[0] <= sizes.limit(each.node.height) for each in found)
    assert REFERENCE.startswith(found[-1].summary)
    assert found[-1].node.height >= 2
    assert not any("----" in each.summary for each in found)
    by_place = {(each.node.height, each.node.index): each.summary for each in found}
    for each in found[len(leaves) :]:
        below = [by_place[each.node.height - 1, place] for place in range(each.node.first, each.node.end)]
        assert each.task.text == "\n----\n".join(below)
    first = next(each.node.end for each in found if each.node.height == 1)
    assert demonstrate(book, REFERENCE, sizes, tokens, "first leaves") == leaves[:first]


def test_of_a_single_passage_the_demonstration_is_the_reference() -> None:
    tokens = TaskTokens(load_tokenizer("bundled"), chat=False)
    (only,) = demonstrate("A ship sank.", "A wreck.", TreeSettings.of_window(512, tokens.frame), tokens)
    assert (only.task, only.summary) == (BookTask([], "A ship sank."), "A wreck.")
