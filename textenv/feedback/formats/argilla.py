"""Records of Argilla, a tool for labeling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textenv.data.values import as_annotator, as_mapping, as_mappings, as_prompt, as_text, as_whole_number, short
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

_UNDONE = ("draft", "discarded")
"""Of a response: it is no judgment."""


def read(row: Row) -> list[Ranking | TextEnvError]:
    """Read the rankings of a record of Argilla, one a user, https://docs.argilla.io.

    A record is what ``dataset.records.to_json`` of Argilla 2 writes: ``fields``, a mapping of names, and ``responses``,
    which maps a question to a list of ``{"value": [names of fields, the best first], "user_id": ...}``. Or what Argilla
    1 and the server's API have: ``responses`` is a list of ``{"values": {question: {"value": [{"value": name of a
    field, "rank": 1}, ...]}}, "user_id": ..., "status": ...}``, where equal ranks are ties. Drafts and discarded
    responses are no judgements, nor are suggestions. The values of the question have to be names of fields.
    """
    fields = as_mapping(row["fields"], "fields")
    given = [(name, answer, by) for name, answer, by in _answers(row["responses"]) if by.get("status") not in _UNDONE]
    answers: list[tuple[str, dict[str, int], Any]] = []  # question, ranks of the fields, user
    found = list[Ranking | TextEnvError]()
    for question, answer, response in given:
        try:
            ranks = _field_ranks(answer)
        except TextEnvError as error:
            found.append(_unreadable(response.get("user_id"), error))
            continue
        if ranks and all(name in fields for name in ranks):
            answers.append((question, ranks, response.get("user_id")))
    if given and not answers and not found:
        raise TextEnvError(f"no response ranks fields of the record ({sorted(fields)}) by their names.")
    if len(questions := sorted({question for question, *_ in answers})) > 1:
        raise TextEnvError(f"it ranks its fields in several questions, {questions}; export one of them.")
    if not answers:
        return found
    ranked = {name for _, ranks, _ in answers for name in ranks}
    options = [name for name in fields if name in ranked]
    prompt = as_prompt(fields[prompt_name(fields, options)])
    texts = tuple(as_text(fields[name], name) for name in options)
    for _, ranks, user in answers:
        try:
            found.append(Ranking(prompt, texts, tuple(ranks.get(name) for name in options), as_annotator(user)))
        except TextEnvError as error:
            found.append(_unreadable(user, error))
    return found


def _unreadable(user: Any, error: TextEnvError) -> TextEnvError:
    return TextEnvError(f"the answer of {short(user)}: {error}")


def _answers(responses: Any) -> list[tuple[str, Row, Row]]:
    """Return the question, the answer, and what says whose it is, of each answer in a record's responses."""
    if isinstance(responses, Mapping):  # Argilla 2
        held = [(name, each, each) for name, values in responses.items() for each in as_mappings(values, name)]
    else:
        users = as_mappings(responses, "responses")
        held = [(name, each, user) for user in users for name, each in as_mapping(user.get("values"), "values").items()]
    return [(name, as_mapping(answer, name), response) for name, answer, response in held]


def _field_ranks(answer: Row) -> dict[str, int]:
    """Return the rank of each field that an answer names, from 0 without gaps; nothing if it ranks none."""
    value = answer.get("value")
    if not isinstance(value, list):
        return {}
    if all(isinstance(item, Mapping) for item in value):
        names = [str(item.get("value")) for item in value]
        ranks = [as_whole_number(item.get("rank"), "rank", None) for item in value]
    else:
        names, ranks = [str(item) for item in value], list(range(len(value)))
    dense = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return {name: dense[rank] for name, rank in zip(names, ranks, strict=True)}


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
