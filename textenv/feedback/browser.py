"""A program as an annotator on the labeling page: it presses keys and submits in a browser, as people do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from textenv.feedback.annotators import Judge, enroll
from textenv.feedback.store import FeedbackStore, Verdict

__all__ = ["annotate_page", "keys_of"]


def keys_of(ranks: Sequence[int | None], verdict: Verdict) -> list[str]:
    """Return the keys that enter a judgement on the page of ``textenv label``.

    Args:
        ranks: Ranks of the items in the order in which they are shown, 0 being the best; None for those without one.
        verdict: As in ``FeedbackStore.judge``; with ``"ranked"``, at least one item has a rank.
    """
    if verdict != "ranked":
        return [{"both_bad": "b", "cant_tell": "c"}[verdict]]
    ranked = sorted((rank, place) for place, rank in enumerate(ranks) if rank is not None)
    if len(ranked) == len(ranks) and ranked[0][0] == ranked[-1][0]:
        return ["t"]
    if len(ranks) == 2:
        return [str(ranked[0][1] + 1)]  # the page ranks the other one below it
    keys: list[str] = []
    before = None
    for rank, place in ranked:
        keys += ["="] * (rank == before) + [str(place + 1)]
        before = rank
    return keys


def annotate_page(
    page: Any, url: str, store: FeedbackStore, judge: Judge, name: str, *, limit: int | None = None, seed: int = 0
) -> int:
    """Let a program judge what the page of ``textenv label`` shows, until there is nothing left.

    ``textenv.feedback.annotators.annotate`` does the same in the store alone. This goes through the page, to try out a
    project before people use it, or to test the page.

    Args:
        page: A page of Playwright's browser (``playwright.sync_api.Page``).
        url: Where the labeling page is served, with the owner's key (``?owner=…``): names of programs are reserved.
        store: The store that is served. The assignment is read from it, by the number on the page.
        judge: The program.
        name: The name that it signs in with.
        limit: The most judgements to make; None for all that there are.
        seed: Seeds the program, together with the number of its earlier judgements, as in ``annotate``.

    Returns:
        The number of judgements made. It stops where the page asks for an answer, which programs do not write.
    """
    _, done = enroll(store, judge, name)
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
