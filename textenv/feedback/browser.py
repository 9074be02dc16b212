"""An annotator that is a program at the page that people use: it reads, presses keys and submits, in a browser."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from textenv.feedback.annotators import Judge, enrol
from textenv.feedback.store import FeedbackStore, Verdict

__all__ = ["annotate_page", "keys_of"]


def keys_of(ranks: Sequence[int | None], verdict: Verdict) -> list[str]:
    """Return the keys of the page of ``textenv label`` that say a judgement.

    Args:
        ranks: Of the items in the order in which they are shown, 0 being the best; None for those left below.
        verdict: As in ``FeedbackStore.judge``; ``ranked`` with at least one rank.
    """
    if verdict != "ranked":
        return [{"both_bad": "b", "cant_tell": "c"}[verdict]]
    ranked = sorted((rank, place) for place, rank in enumerate(ranks) if rank is not None)
    if len(ranked) == len(ranks) and ranked[0][0] == ranked[-1][0]:
        return ["t"]
    if len(ranks) == 2:
        return [str(ranked[0][1] + 1)]  # the other one is worse
    keys: list[str] = []
    before = None
    for rank, place in ranked:
        keys += ["="] * (rank == before) + [str(place + 1)]
        before = rank
    return keys


def annotate_page(
    page: Any, url: str, store: FeedbackStore, judge: Judge, name: str, *, limit: int | None = None, seed: int = 0
) -> int:
    """Have a program judge what the page of ``textenv label`` shows it, until there is nothing left.

    What ``textenv.feedback.annotators.annotate`` does in the store alone, the whole way through the page: to try out a
    project before people come, or the page itself.

    Args:
        page: Of a browser of Playwright's (``playwright.sync_api.Page``).
        url: Where the labeling page is served, with the owner's key (``?owner=…``): names of programs are reserved.
        store: What is served, which says what is asked: the page shows a number, its texts only as people read them.
        judge: The program.
        name: That it signs in with.
        limit: How many judgements at most; None for all that there are.
        seed: Seeds the program; its earlier judgements count too, as in ``annotate``.

    Returns:
        The number of judgements made.
    """
    _, done = enrol(store, judge, name)
    page.goto(url)
    if (field := page.get_by_label("Your name")).count():
        field.fill(name)
        with page.expect_navigation():
            page.keyboard.press("Enter")
    made = 0
    while page.locator("#judge").count() and (limit is None or made < limit):
        number, _, _ = page.locator("#judge input[name=assignment]").input_value().partition("-")
        assignment = store.assignment(int(number))
        for key in keys_of(*judge.judge(assignment, random.Random(f"{seed}/{name}/{done + made}"))):
            page.keyboard.press(key)
        with page.expect_navigation():
            page.keyboard.press("Enter")
        made += 1
    return made
