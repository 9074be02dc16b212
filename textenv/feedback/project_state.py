"""What the labeling page says of the project: judgements, agreement, and the strengths of the policies."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from typing import Any

from textenv.feedback.agreement import Agreement, Share, measure_agreement, measure_annotators
from textenv.feedback.bradley_terry import policy_strengths
from textenv.feedback.store import FeedbackStore

__all__ = ["LiveAgreement", "blind_state", "project_state"]

_WIDTH = 256  # pixels of the picture of an interval, with a margin for the dot
_MARGIN = 8


class LiveAgreement:
    """The annotators' agreement, computed again only after a new judgement, and for a tenth of the time at most."""

    def __init__(self, store: FeedbackStore) -> None:
        """Keep the store."""
        self._store = store
        self._lock = threading.Lock()
        self._revision = -1
        self._not_before = 0.0
        self._text = ""

    def text(self) -> str:
        """Return Krippendorff's alpha in words."""
        with self._lock:
            began = time.monotonic()
            revision = self._store.revision()
            if revision != self._revision and began >= self._not_before:
                self._text = _agreement_text(measure_agreement(self._store, resamples=0))
                self._revision = revision
                now = time.monotonic()
                self._not_before = now + 10 * (now - began)
            return self._text


def _agreement_text(agreement: Agreement) -> str:
    if agreement.alpha is None:
        return "Agreement not known yet"
    pairs = "1 pair" if agreement.pairs == 1 else f"{agreement.pairs:,} pairs"
    return f"Agreement α = {agreement.alpha:.2f} on {pairs}"


def blind_state(store: FeedbackStore) -> dict[str, Any]:
    """Return what annotators may see of the state of the project: how many judgements there are, and their speed.

    Whatever depends on who wrote an item, on the right answer of a gold item or on which items are repeated is left
    out: an annotator could judge, look at how the figure moved, and undo the judgement.
    """
    progress = store.progress()
    names = ("name", "count", "seconds", "demonstrations")
    return {
        "tiles": [
            ("judgements", f"{progress.done:,}"),
            ("wanted", f"{progress.wanted:,}"),
            ("being made now", f"{progress.open:,}"),
            ("demonstrations", f"{len(store.demonstrations()):,}"),
        ],
        "annotators": [{name: row[name] for name in names} for row in _annotators(store)],
    }


def project_state(store: FeedbackStore) -> dict[str, Any]:
    """Return what the state page shows to the owner of the project (``web/state.html``)."""
    agreement = measure_agreement(store)
    progress = store.progress()
    judgements = store.judgements()
    verdicts = [judgement.verdict for judgement in judgements]
    alpha, note = "–", "Agreement is known once two annotators have judged the same pair, not all in the same way."
    if agreement.alpha is not None:
        alpha = f"{agreement.alpha:.2f}"
        low, high = agreement.interval or (agreement.alpha, agreement.alpha)
        note = (
            f"Alpha is 1 for full agreement and 0 for agreement by chance; its 95 % interval is {low:.2f} to "
            f"{high:.2f}, on {agreement.pairs:,} pairs that two annotators or more have judged. Of two opinions on a "
            f"pair, {_percent(agreement.raw)} are equal."
        )
    return {
        "tiles": [
            ("judgements", f"{progress.done:,}"),
            ("wanted", f"{progress.wanted:,}"),
            ("being made now", f"{progress.open:,}"),
            ("demonstrations", f"{len(store.demonstrations()):,}"),
            ("Krippendorff's alpha", alpha),
            ("same when asked again", _percent(agreement.own)),
            ("right on gold items", _percent(agreement.gold)),
            ("both or all bad", f"{verdicts.count('both_bad'):,}"),
            ("can't tell", f"{verdicts.count('cant_tell'):,}"),
        ],
        "agreement_note": note,
        **_strengths(store),
        "annotators": _annotators(store),
    }


def _strengths(store: FeedbackStore) -> dict[str, Any]:
    found = policy_strengths(store)
    ends = [0.0, *(end for _, strength in found for end in strength.interval)]
    low, high = min(ends), max(ends)

    def across(value: float) -> float:
        return round(_MARGIN + (_WIDTH - 2 * _MARGIN) * (value - low) / ((high - low) or 1.0), 1)

    return {
        "zero": across(0.0),
        "strengths": [
            {
                "name": name,
                "count": strength.comparisons,
                "score": strength.strength,
                "low": strength.interval[0],
                "high": strength.interval[1],
                "left": across(strength.interval[0]),
                "middle": across(strength.strength),
                "right": across(strength.interval[1]),
            }
            for name, strength in found
        ],
    }


def _annotators(store: FeedbackStore) -> list[dict[str, Any]]:
    agreement = measure_annotators(store)
    judgements = store.judgements()
    written = Counter(each.annotator for each in store.demonstrations())
    rows = []
    for annotator in store.annotators():
        mine = [judgement for judgement in judgements if judgement.annotator == annotator.id]
        seconds = [judgement.seconds for judgement in mine if judgement.seconds is not None]
        measured = agreement[annotator.id]
        rows.append(
            {
                "name": annotator.name,
                "count": len(mine),
                "seconds": f"{statistics.median(seconds):.1f}" if seconds else "–",
                "demonstrations": f"{written[annotator.id]:,}",
                "own": _counted(measured.own),
                "others": _counted(measured.others),
                "gold": _counted(measured.gold),
            }
        )
    return rows


def _percent(share: Share) -> str:
    return "–" if share.value is None else f"{share.value:.0%}"


def _counted(share: Share) -> str:
    return "–" if share.value is None else f"{share.hits:,} of {share.count:,}"
