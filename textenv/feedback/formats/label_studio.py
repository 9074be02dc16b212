"""Tasks of Label Studio, a tool for labeling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textenv.data.values import as_annotator, as_mapping, as_mappings, as_prompt, as_text, short
from textenv.feedback.formats.shared import (
    Format,
    Row,
    plain_prompt,
    prompt_name,
    refuse_margin,
    same_completions,
    untied_pairs,
)
from textenv.types import Ranking, TextEnvError

__all__ = ["FORMAT"]


def read(row: Row) -> list[Ranking | TextEnvError]:
    """Read the annotations of a task of Label Studio, https://labelstud.io/guide/task_format, each by itself.

    Results of type ``pairwise`` (https://labelstud.io/tags/pairwise) select ``left`` or ``right``, the two tags named
    in ``to_name``. Which of the task's ``data`` they show is in the project's configuration, not in the export, so the
    tags need the names of the data, or the data need names such as ``answer1`` and ``answer2``. Results of type
    ``ranker`` (https://labelstud.io/tags/ranker) list the ids of the items of a list, the best first, or have them
    in one bucket, next to ``_`` with those that were left unranked; an item's text is its ``body``, or else its
    ``title``. ``completed_by`` is the annotator. Cancelled annotations were skipped and are not judgements, nor are
    predictions.
    """
    data, found = as_mapping(row["data"], "data"), list[Ranking | TextEnvError]()
    for annotation in as_mappings(row["annotations"], "annotations"):
        if annotation.get("was_cancelled"):
            continue
        try:
            found.append(_annotated(data, annotation))
        except TextEnvError as error:
            found.append(TextEnvError(f"annotation {short(annotation.get('id'))}: {error}"))
    return found


def _annotated(data: Row, annotation: Row) -> Ranking:
    """Return the ranking in an annotation of a task with these data."""
    given = as_mappings(annotation.get("result"), "result")
    results = [result for result in given if result.get("type") in ("pairwise", "ranker")]
    if len(results) != 1:
        raise TextEnvError(f"it has {len(results)} pairwise or ranker results; expected one.")
    value = as_mapping(results[0].get("value"), "value")
    if results[0]["type"] == "pairwise":
        names = _two_sides(data, str(results[0].get("to_name", "")))
        selected = value.get("selected")
        if selected not in ("left", "right"):
            raise TextEnvError(f"selected={short(selected)}; expected 'left' or 'right'.")
        texts = tuple(as_text(data[name], name) for name in names)
        ranks: tuple[int | None, ...] = (0, 1) if selected == "left" else (1, 0)
    else:
        key, items = _ranked_items(data)
        names, order = [key], _ranked_ids(value.get("ranker"))
        ids = [str(item.get("id")) for item in items]
        if not set(order) <= set(ids) or len(set(order)) < len(order):
            raise TextEnvError(f"the ranker has {order}; expected ids of the items, each once: {ids}.")
        texts = tuple(
            as_text(item.get("title") if item.get("body") is None else item["body"], "body") for item in items
        )
        ranks = tuple(order.index(name) if name in order else None for name in ids)
    by = annotation.get("completed_by")
    annotator = as_annotator((by.get("email") or by.get("id")) if isinstance(by, Mapping) else by)
    return Ranking(as_prompt(data[prompt_name(data, names)]), texts, ranks, annotator)


def write(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write tasks with annotations: for a ``Pairwise`` tag on answer1 and answer2, or a ``Ranker`` on the list items.

    A project has one configuration: if all rankings order all their completions, and some have more than two, all are
    for the ranker; else all are pairs. An annotator whose name is a number is a user's id, any other an e-mail address.
    """
    rankings = list(rankings)
    whole = all(None not in r.ranks and len(set(r.ranks)) == len(r.ranks) for r in rankings)
    ranker = whole and any(len(ranking.ranks) > 2 for ranking in rankings)
    tasks: list[dict[str, Any]] = []
    for same in same_completions(rankings if ranker else untied_pairs(rankings, "label_studio")):
        texts = same[0].completions
        data: dict[str, Any] = {"prompt": plain_prompt(same[0].prompt)}
        if ranker:
            data["items"] = [{"id": str(i), "title": f"Answer {i + 1}", "body": text} for i, text in enumerate(texts)]
        else:
            data |= {"answer1": texts[0], "answer2": texts[1]}
        annotations = []
        for ranking in same:
            refuse_margin(ranking, "label_studio")
            if ranker:
                order = sorted(range(len(texts)), key=lambda place, ranks=ranking.ranks: ranks[place] or 0)  # type: ignore[misc]
                result = {"from_name": "rank", "to_name": "items", "type": "ranker"}
                value: dict[str, Any] = {"ranker": [str(place) for place in order]}
            else:
                result = {"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise"}
                value = {"selected": "left" if ranking.ranks[0] == 0 else "right"}
            by: Any = {"email": ranking.annotator}
            if ranking.annotator.isdecimal() and str(int(ranking.annotator)) == ranking.annotator:
                by = int(ranking.annotator)
            annotation = {"was_cancelled": False, "ground_truth": False, "result": [{**result, "value": value}]}
            annotations.append({"completed_by": by, **annotation} if ranking.annotator else annotation)
        tasks.append({"id": len(tasks) + 1, "data": data, "annotations": annotations, "predictions": []})
    return tasks


def _two_sides(data: Row, to_name: str) -> list[str]:
    named = [name.strip() for name in to_name.split(",")]
    if len(named) == 2 and all(name in data for name in named):
        return named
    ends = (("1", "2"), ("a", "b"), ("A", "B"), ("left", "right"))
    found = [
        [name, name.removesuffix(one) + other]
        for one, other in ends
        for name in data
        if name.endswith(one) and name.removesuffix(one) + other in data
    ]
    if len(found) != 1:
        raise TextEnvError(
            f"the tags {named} are not among the task's data {sorted(data)}, and it is not plain which two were "
            "compared; rename these to answer1 and answer2."
        )
    return found[0]


def _ranked_items(data: Row) -> tuple[str, list[Mapping[str, Any]]]:
    found = [
        (name, value)
        for name, value in data.items()
        if isinstance(value, list) and value and all(isinstance(item, Mapping) and "id" in item for item in value)
    ]
    if len(found) != 1:
        raise TextEnvError(f"the task's data {sorted(data)} have {len(found)} lists of items with an id; expected one.")
    return found[0]


def _ranked_ids(ranker: Any) -> list[str]:
    if isinstance(ranker, Mapping):
        buckets = {name: ids for name, ids in ranker.items() if name != "_" and ids}
        if len(buckets) != 1:
            raise TextEnvError(
                f"the ranker has the buckets {sorted(buckets)}; nobody says how these rank. Expected one."
            )
        (ranker,) = buckets.values()
    if not isinstance(ranker, list) or not ranker:
        raise TextEnvError(f"ranker={short(ranker)}; expected a list of ids of items.")
    return [str(each) for each in ranker]


FORMAT = Format(("data", "annotations"), read, write, table=False)
