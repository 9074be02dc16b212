"""Records of Argilla, a tool for labeling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textenv.data.values import as_annotator, as_mapping, as_mappings, as_prompt, as_text, as_whole_number
from textenv.feedback.formats.shared import (
    Format,
    Row,
    plain_prompt,
    prompt_name,
    refuse_margin,
    same_completions,
    whole_or_pairs,
)
from textenv.types import Ranking, TextEnvError

__all__ = ["FORMAT"]


def read(row: Row) -> list[Ranking]:
    """Read the rankings of a record of Argilla, one a user, https://docs.argilla.io.

    A record is what ``dataset.records.to_json`` of Argilla 2 writes: ``fields``, a mapping of names, and ``responses``,
    which maps a question to a list of ``{"value": [names of fields, the best first], "user_id": ...}``. Or what Argilla
    1 and the server's API have: ``responses`` is a list of ``{"values": {question: {"value": [{"value": name of a
    field, "rank": 1}, ...]}}, "user_id": ..., "status": ...}``, where equal ranks are ties. Drafts and discarded
    responses are no judgements, nor are suggestions. The values of the question have to be names of fields.
    """
    fields, responses = as_mapping(row["fields"], "fields"), row["responses"]
    answers: list[tuple[str, list[str], list[int], Any]] = []  # question, names, their ranks, user
    if isinstance(responses, Mapping):
        held = [(name, each, each) for name, values in responses.items() for each in as_mappings(values, name)]
    else:
        users = as_mappings(responses, "responses")
        held = [(name, each, user) for user in users for name, each in as_mapping(user.get("values"), "values").items()]
    given = [(name, as_mapping(answer, name), response) for name, answer, response in held]
    for question, holder, response in given:
        value = holder.get("value")
        if response.get("status") in ("draft", "discarded") or not isinstance(value, list) or not value:
            continue
        if all(isinstance(item, Mapping) for item in value):
            names = [str(item.get("value")) for item in value]
            ranks = [as_whole_number(item.get("rank"), "rank", None) for item in value]
        else:
            names, ranks = [str(item) for item in value], list(range(len(value)))
        if all(name in fields for name in names):
            answers.append((question, names, ranks, response.get("user_id")))
    if given and not answers and all(item[2].get("status") not in ("draft", "discarded") for item in given):
        raise TextEnvError(f"no response ranks fields of the record ({sorted(fields)}) by their names.")
    questions = sorted({question for question, *_ in answers})
    if len(questions) > 1:
        raise TextEnvError(f"it ranks its fields in several questions, {questions}; export one of them.")
    ranked = {name for _, names, _, _ in answers for name in names}
    options = [name for name in fields if name in ranked]
    rankings = []
    for _, names, ranks, user in answers:
        dense = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
        places = {name: dense[rank] for name, rank in zip(names, ranks, strict=True)}
        texts = tuple(as_text(fields[name], name) for name in options)
        prompt = as_prompt(fields[prompt_name(fields, options)])
        rankings.append(Ranking(prompt, texts, tuple(places.get(name) for name in options), as_annotator(user)))
    return rankings


def write(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write what ``dataset.records.from_json`` of Argilla 2 reads, for a question on its fields response-1, ....

    Consecutive rankings of the same completions are responses to one record. A ranking without ties is written whole;
    one with completions without a rank is written as pairs. Argilla requires a user's UUID as the annotator.
    """
    records: list[dict[str, Any]] = []
    for same in same_completions(whole_or_pairs(rankings, "argilla")):
        names = [f"response-{place}" for place in range(1, len(same[0].completions) + 1)]
        responses = []
        for ranking in same:
            refuse_margin(ranking, "argilla")
            order = sorted(range(len(names)), key=lambda place, ranks=ranking.ranks: ranks[place] or 0)  # type: ignore[misc]
            responses.append({"value": [names[place] for place in order], "user_id": ranking.annotator})
        records.append(
            {
                "id": str(len(records)),
                "fields": {
                    "prompt": plain_prompt(same[0].prompt),
                    **dict(zip(names, same[0].completions, strict=True)),
                },
                "metadata": {},
                "suggestions": {},
                "responses": {"ranking": responses},
                "vectors": {},
            }
        )
    return records


FORMAT = Format(("fields", "responses"), read, write, table=False)
