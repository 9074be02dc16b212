"""Comparisons and rankings in the files that others read and write: TRL, OpenAI, Ziegler, the arena, Argilla and so on.

Each format is a pair of functions around ``textenv.types.Ranking``, entered in ``FORMATS``. What a format cannot hold
as it is becomes all pairs whose order is known, which mean the same; where pairs cannot hold it either (a tie in a
format without ties), writing is refused, unless the caller names what to leave out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from textenv.files import write_atomically
from textenv.models.codec import shared_length
from textenv.prompts import read_conversation
from textenv.types import Conversation, Ranking, TextEnvError

__all__ = ["FORMATS", "Droppable", "Format", "read_rankings", "read_records", "write_rankings"]

Row: TypeAlias = Mapping[str, Any]
Droppable: TypeAlias = Literal["ties", "margins", "annotators"]

_DROPPABLE = ("ties", "margins", "annotators")
_KINDS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Format:
    """How rankings stand in a file.

    Attributes:
        keys: What every record has; a file is recognised by them.
        read: Takes a record; returns the rankings in it.
        write: Takes all rankings; returns the records.
        cells: In CSV, the columns that hold JSON (numbers, lists); the others hold texts. None: not for CSV.
        table: Whether all records have the same columns, as parquet needs them.
    """

    keys: tuple[str, ...]
    read: Callable[[Row], list[Ranking]]
    write: Callable[[Sequence[Ranking]], list[dict[str, Any]]]
    cells: tuple[str, ...] | None = None
    table: bool = True


def read_rankings(
    path: str | Path,
    format: str = "auto",
    *,
    decode: Callable[[list[int]], str] | None = None,
    refused: Callable[[TextEnvError], None] | None = None,
) -> list[Ranking]:
    """Read the comparisons and rankings of a file.

    Args:
        path: A ``.jsonl``, ``.json`` (a list, or an object a line), ``.csv`` or ``.parquet`` file.
        format: One of ``FORMATS``, or ``"auto"`` for the one whose keys the first record has.
        decode: Makes a text of token ids, for Ziegler's published labels; they are GPT-2's, padded with 50259. A sample
            is decoded with its query.
        refused: Called with the reason for each record that cannot be read, and reading goes on; by default the first
            such record ends it.

    Raises:
        TextEnvError: There is no such file or format, the format cannot be told, or a record is no ranking; the message
            says which record and what is wrong with it.
    """
    path = Path(path)
    chosen = None if format == "auto" else _known(format)
    rankings: list[Ranking] = []
    for where, row in read_records(path):
        if chosen is None:
            chosen = FORMATS[_recognised(row, where)]
        try:
            given = _cells(row, chosen.cells or ()) if path.suffix.lower() == ".csv" else row
            missing = [key for key in chosen.keys if key not in given]
            if missing:
                raise TextEnvError(f"{missing} missing; it has {sorted(map(str, given))}.")
            rankings += chosen.read(_decoded(given, decode) if decode and chosen is FORMATS["ziegler"] else given)
        except TextEnvError as error:
            located = TextEnvError(f"{where}: {error}")
            if refused is None:
                raise located from error
            refused(located)
    return rankings


def write_rankings(
    path: str | Path, rankings: Iterable[Ranking], format: str = "native", *, drop: Collection[Droppable] = ()
) -> int:
    """Write comparisons and rankings to a file, which is whole or absent.

    Args:
        path: The file; its suffix, ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``, says of what kind.
        rankings: At least one.
        format: One of ``FORMATS``.
        drop: What may be left out where there is any: ``"ties"`` (the tied pairs; the others of the ranking stay),
            ``"margins"``, ``"annotators"``.

    Returns:
        The number of records.

    Raises:
        TextEnvError: There is no such format or kind of file, or it cannot hold a ranking; nothing was written then.
    """
    path, chosen = Path(path), _known(format)
    kind = path.suffix.lower()
    kinds = [k for k in _KINDS if (k != ".csv" or chosen.cells is not None) and (k != ".parquet" or chosen.table)]
    if kind not in kinds:
        raise TextEnvError(f"{path}: format {format!r} is written to files of kind {', '.join(kinds)}.")
    unknown = sorted(set(drop) - set(_DROPPABLE))
    if unknown:
        raise TextEnvError(f"drop={unknown}: expected some of {list(_DROPPABLE)}.")
    kept = [part for ranking in rankings for part in _without(ranking, drop)]
    if not kept:
        raise TextEnvError(f"{path}: no rankings to write.")
    rows = chosen.write(kept)
    try:
        write_atomically(path, _serialised(rows, kind, chosen.cells or ()))
    except UnicodeEncodeError as error:
        raise TextEnvError(f"{path}: a text holds half of a surrogate pair, which is no Unicode ({error}).") from error
    except TextEnvError:
        raise
    except (OSError, TypeError, ValueError) as error:
        raise TextEnvError(f"{path}: cannot be written ({error}).") from error
    return len(rows)


def read_records(path: str | Path) -> Iterator[tuple[str, Row]]:
    """Yield where each record of a file stands, such as ``"x.jsonl, line 3"``, and the record; cells of CSV are texts.

    Args:
        path: A ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file.

    Raises:
        TextEnvError: The file cannot be read, is empty, or something in it is no record.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise TextEnvError(f"{path}: expected a file of kind {', '.join(_KINDS)}.")
    try:
        data = path.read_bytes()
        text = "" if kind == ".parquet" else data.decode("utf-8-sig")  # spreadsheets write a byte-order mark
    except UnicodeDecodeError as error:
        raise TextEnvError(f"{path}: not UTF-8 ({error}); convert it, e.g. with iconv.") from error
    except OSError as error:
        raise TextEnvError(f"{path}: cannot be read ({error}).") from error
    number = 0
    for number, (where, row) in enumerate(_unserialised(path, kind, data, text), start=1):  # noqa: B007
        if not isinstance(row, Mapping):
            raise TextEnvError(f"{path}, {where}: {_short(row)}; expected an object with keys.")
        yield f"{path}, {where}", row
    if not number:
        raise TextEnvError(f"{path}: no records in it; expected at least one.")


# The native format


def _read_native(row: Row) -> list[Ranking]:
    """Read the fields of ``Ranking``: prompt, completions, ranks, annotator, margin; the last two may be missing."""
    completions, ranks = row["completions"], row["ranks"]
    if not isinstance(completions, list) or not isinstance(ranks, list):
        raise TextEnvError(f"completions={_short(completions)}, ranks={_short(ranks)}; expected two lists.")
    if not all(rank is None or (isinstance(rank, int) and not isinstance(rank, bool)) for rank in ranks):
        raise TextEnvError(f"ranks={ranks}; expected whole numbers from 0, which is the best, or null.")
    texts = tuple(_text(text, f"completions[{place}]") for place, text in enumerate(completions))
    return [Ranking(_prompt(row["prompt"]), texts, tuple(ranks), **_extras(row))]


def _write_native(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": _plain(ranking.prompt),
            "completions": list(ranking.completions),
            "ranks": list(ranking.ranks),
            "annotator": ranking.annotator,
            "margin": ranking.margin,
        }
        for ranking in rankings
    ]


# TRL, and the same with scores


def _read_trl(row: Row) -> list[Ranking]:
    """Read TRL's preference type, https://huggingface.co/docs/trl/dataset_formats.

    ``chosen`` and ``rejected`` are texts (standard) or lists of messages (conversational), and answer ``prompt``. With
    an implicit prompt they begin with it instead: it is the messages that both begin with, or the text, cut at the last
    turn of Anthropic's hh-rlhf ("Assistant:") or else where a word ends. As in TRL, a ``prompt`` that is a text beside
    lists of messages only repeats what they begin with. ``margin`` is what ``RewardTrainer`` takes off the difference
    of the rewards; ``annotator`` is our own column, which TRL ignores.
    """
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            cut = _common_text(chosen, rejected)
            return [Ranking(chosen[:cut], (chosen[cut:], rejected[cut:]), (0, 1), **_extras(row))]
        return [Ranking(_prompt(prompt), (chosen, rejected), (0, 1), **_extras(row))]
    best, worst = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if prompt is not None and not isinstance(prompt, str):
        shared = _messages(prompt, "prompt")
    else:
        shared, best, worst = _common_messages(best, worst)
        if prompt is not None and all(message["content"] != prompt for message in shared):
            raise TextEnvError(f"the messages do not begin with the prompt {_short(prompt)}.")
    return [Ranking(shared, (_answer(best), _answer(worst)), (0, 1), **_extras(row))]


def _write_trl(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write chosen and rejected with an explicit prompt, in the form of the prompts, and margins if all have one.

    ``RewardTrainer`` reads the column ``margin`` of every row if there is one, and cannot read null.
    """
    pairs = list(_untied(rankings, "trl"))
    if len({isinstance(pair.prompt, str) for pair in pairs}) > 1:
        raise TextEnvError("Some prompts are texts and some conversations: TRL reads one or the other; use two files.")
    if len({pair.margin is None for pair in pairs}) > 1:
        raise TextEnvError("Some rankings have a margin and some have not: TRL needs all or none; drop 'margins'.")
    return _without_empty([_chosen_rejected(pair) for pair in pairs])


def _read_scores(row: Row) -> list[Ranking]:
    """Read TRL's preference type with scores, as UltraFeedback has it and as StackExchange's votes are often kept.

    Columns ``prompt``, ``chosen``, ``rejected``, ``score_chosen``, ``score_rejected``, as in
    https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized and trl-lib/ultrafeedback_binarized. The
    margin is the difference of the scores; equal scores are a tie.
    """
    margin = _number(row["score_chosen"], "score_chosen") - _number(row["score_rejected"], "score_rejected")
    if margin < 0:
        raise TextEnvError(
            f"score_chosen={row['score_chosen']} is below score_rejected={row['score_rejected']}: which is better?"
        )
    (ranking,) = _read_trl({key: value for key, value in row.items() if key != "margin"})
    return [replace(ranking, ranks=(0, 0 if margin == 0 else 1), margin=margin)]


def _write_scores(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write the margin as the score of the chosen, the rejected having 0; a tie has 0 and 0."""
    rows = []
    for ranking in rankings:
        for pair in _pairs(ranking):
            tied = pair.ranks[0] == pair.ranks[1]
            if (pair.margin not in (None, 0.0)) if tied else (pair.margin is None or pair.margin <= 0):
                expected = "a tie has none" if tied else "the scores differ by it, so expected one above 0"
                raise _cannot(pair, "scores", f"its margin is {pair.margin}; {expected}", "Use the format 'trl'.")
            row = _chosen_rejected(pair)
            rows.append(row | {"score_chosen": row.pop("margin") or 0.0, "score_rejected": 0.0})
    return _without_empty(rows)


def _chosen_rejected(pair: Ranking) -> dict[str, Any]:
    best, worst = pair.completions if pair.ranks[0] == 0 else pair.completions[::-1]
    wrapped = not isinstance(pair.prompt, str)
    return {
        "prompt": _plain(pair.prompt),
        "chosen": [{"role": "assistant", "content": best}] if wrapped else best,
        "rejected": [{"role": "assistant", "content": worst}] if wrapped else worst,
        "margin": pair.margin,
        "annotator": pair.annotator,
    }


def _read_shp(row: Row) -> list[Ranking]:
    """Read the Stanford Human Preferences, https://huggingface.co/datasets/stanfordnlp/SHP.

    ``history`` is the prompt; ``labels`` is 1 if ``human_ref_A`` is preferred to ``human_ref_B`` and 0 if not. The
    margin is the difference of ``score_A`` and ``score_B``, in votes, if they are there.
    """
    label, margin = row["labels"], None
    if label not in (0, 1) or isinstance(label, bool):
        raise TextEnvError(f"labels={_short(label)}; expected 1 (A is preferred) or 0 (B is).")
    if row.get("score_A") is not None or row.get("score_B") is not None:
        margin = _number(row.get("score_A"), "score_A") - _number(row.get("score_B"), "score_B")
        margin = margin if label == 1 else -margin
        if margin < 0:
            raise TextEnvError(f"labels={label} prefers the one with the lower score; which is better?")
    texts = _text(row["human_ref_A"], "human_ref_A"), _text(row["human_ref_B"], "human_ref_B")
    ranks = (0, 1) if label == 1 else (1, 0)
    return [Ranking(_text(row["history"], "history"), texts, ranks, _extras(row)["annotator"], margin)]


def _write_shp(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    rows = []
    for pair in _untied(rankings, "shp"):
        if pair.margin is not None and pair.margin < 0:
            raise _cannot(pair, "shp", f"its margin is {pair.margin}; expected one of 0 or more", "Drop 'margins'.")
        label = int(pair.ranks[0] == 0)
        rows.append(
            {
                "history": _only_text(pair, "shp"),
                "human_ref_A": pair.completions[0],
                "human_ref_B": pair.completions[1],
                "labels": label,
                "score_A": None if pair.margin is None else pair.margin * label,
                "score_B": None if pair.margin is None else pair.margin * (1 - label),
                "annotator": pair.annotator,
            }
        )
    return _without_empty(rows)


# OpenAI


_TLDR = re.compile(r"SUBREDDIT: r/(.*?)\n\nTITLE: (.*?)\n\nPOST: (.*)\n\nTL;DR:", re.DOTALL)


def _read_openai(row: Row) -> list[Ranking]:
    """Read a comparison of Stiennon et al. (2020), https://github.com/openai/summarize-from-feedback.

    ``info`` becomes the prompt that they trained with: of Reddit's ``subreddit``, ``title`` and ``post``, or of a news
    ``article``; a ``post`` alone is the prompt itself. ``choice`` is the number of the better one of two ``summaries``,
    whose texts go on from the prompt. ``worker`` is the annotator. ``extra`` may have a ``margin``, which is ours;
    their ``confidence`` is no difference of scores and is left alone.
    """
    info, extra = _object(row["info"], "info"), _object(row.get("extra"), "extra")
    summaries = _objects(row["summaries"], "summaries")
    if len(summaries) != 2:
        raise TextEnvError(f"summaries has {len(summaries)} objects; expected two.")
    choice = _place(row["choice"], "choice", 2)
    if info.get("article") is not None:
        prompt = f"Article:\n\n{_text(info['article'], 'article')}\n\nTL;DR:"
    elif info.get("title") is not None and info.get("subreddit") is not None:
        parts = {key: _text(info.get(key), key) for key in ("subreddit", "title", "post")}
        prompt = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:".format(**parts)
    else:
        prompt = _text(info.get("post"), "post")
    texts = tuple(_text(summary.get("text"), "text") for summary in summaries)
    return [Ranking(prompt, texts, (choice, 1 - choice), _name(row.get("worker")), _margin(extra.get("margin")))]


def _write_openai(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    rows = []
    for pair in _untied(rankings, "openai"):
        prompt = _only_text(pair, "openai")
        found = _TLDR.fullmatch(prompt)
        info: dict[str, str] = {"post": prompt}
        if found:
            info = dict(zip(("subreddit", "title", "post"), found.groups(), strict=True))
        rows.append(
            {
                "info": {"id": hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16], **info},
                "summaries": [{"text": text, "policy": None, "note": None} for text in pair.completions],
                "choice": 0 if pair.ranks[0] == 0 else 1,
                "worker": pair.annotator,
                "batch": "textenv",
                "split": "train",
                "extra": {"margin": pair.margin},
            }
        )
    return rows


def _read_ziegler(row: Row) -> list[Ranking]:
    """Read a best-of-K of Ziegler et al. (2019), ``PickBest`` in https://github.com/openai/lm-human-preferences.

    ``best`` is the number of the best of ``sample0``, ``sample1``, ... (four in their labels), which go on from
    ``query``. Of the others nothing is known: they have no rank, unless there are only two. Their files hold token ids.
    ``annotator`` and ``margin`` are our own.
    """
    names = list(itertools.takewhile(lambda name: name in row, (f"sample{place}" for place in itertools.count())))
    if any(isinstance(row[name], list) for name in ("query", *names)):
        raise TextEnvError(
            "query and samples are token ids, GPT-2's in the published labels. Name the tokenizer that made them: "
            "decode=... here, --tokenizer on the command line."
        )
    if len(names) < 2:
        raise TextEnvError(f"it has {names}; expected two samples or more.")
    best, last = _place(row["best"], "best", len(names)), 1 if len(names) == 2 else None
    texts = tuple(_text(row[name], name) for name in names)
    ranks = tuple(0 if place == best else last for place in range(len(names)))
    return [Ranking(_text(row["query"], "query"), texts, ranks, **_extras(row))]


def _write_ziegler(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write each as it is if all are a choice of the best of K, with one K; else all their pairs, the best of two."""
    bests = all(sorted(r.ranks, key=str) == [0] + [None] * (len(r.ranks) - 1) for r in rankings)
    whole = bests and len({len(ranking.ranks) for ranking in rankings}) == 1
    rows = []
    for ranking in rankings if whole else _untied(rankings, "ziegler"):
        samples = {f"sample{place}": text for place, text in enumerate(ranking.completions)}
        row = {"query": _only_text(ranking, "ziegler"), **samples, "best": ranking.ranks.index(0)}
        rows.append(row | {"margin": ranking.margin, "annotator": ranking.annotator})
    return _without_empty(rows)


# The arena


_WINNERS: Mapping[str, tuple[int, int]] = {
    "model_a": (0, 1),
    "model_b": (1, 0),
    "tie": (0, 0),
    "tie (bothbad)": (0, 0),
    "both_bad": (0, 0),  # in the releases of 2025
}


def _read_arena(row: Row) -> list[Ranking]:
    """Read a battle of https://huggingface.co/datasets/lmsys/chatbot_arena_conversations and its like.

    ``conversation_a`` and ``conversation_b`` are lists of messages, the same but for the last, an answer of the
    assistant; ``winner`` is ``model_a``, ``model_b``, ``tie`` or ``tie (bothbad)``; ``judge`` is the annotator. Both
    bad is read as a tie: it says no more of their order. Battles whose conversations part earlier are refused, for a
    ranking compares answers to one prompt. ``margin`` is our own.
    """
    winner = row["winner"]
    if not isinstance(winner, str) or winner not in _WINNERS:
        raise TextEnvError(f"winner={_short(winner)}; expected one of {list(_WINNERS)}.")
    sides = [_messages(_joined_parts(row[f"conversation_{side}"]), f"conversation_{side}") for side in "ab"]
    shared, first, second = _common_messages(*sides)
    return [
        Ranking(
            shared,
            (_answer(first), _answer(second)),
            _WINNERS[winner],
            _name(row.get("judge")),
            _margin(row.get("margin")),
        )
    ]


def _write_arena(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    rows = []
    for ranking in rankings:
        for pair in _pairs(ranking):
            if isinstance(pair.prompt, str):
                raise _cannot(pair, "arena", "its prompt is a text, and battles are conversations", "Use 'trl'.")
            prompt = _plain(pair.prompt)
            sides = [[*prompt, {"role": "assistant", "content": text}] for text in pair.completions]
            identity = json.dumps(prompt, sort_keys=True).encode()
            rows.append(
                {
                    "question_id": hashlib.sha256(identity).hexdigest()[:32],
                    "model_a": None,
                    "model_b": None,
                    "winner": next(name for name, ranks in _WINNERS.items() if ranks == pair.ranks),
                    "judge": pair.annotator,
                    "conversation_a": sides[0],
                    "conversation_b": sides[1],
                    "turn": sum(message["role"] == "user" for message in prompt),
                    "margin": pair.margin,
                }
            )
    return _without_empty(rows)


def _joined_parts(messages: Any) -> Any:
    """Return messages whose contents are lists of parts, as in the releases of 2025, with their texts joined."""
    if not isinstance(messages, list):
        return messages
    plain = []
    for message in messages:
        parts = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(parts, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in parts):
            plain.append({**message, "content": "".join(part["text"] for part in parts)})
        else:
            plain.append(message)
    return plain


# Tools for labelling


def _read_argilla(row: Row) -> list[Ranking]:
    """Read the rankings of a record of Argilla, one a user, https://docs.argilla.io.

    A record is what ``dataset.records.to_json`` of Argilla 2 writes: ``fields``, a mapping of names, and ``responses``,
    which maps a question to a list of ``{"value": [names of fields, the best first], "user_id": ...}``. Or what Argilla
    1 and the server's API have: ``responses`` is a list of ``{"values": {question: {"value": [{"value": name of a
    field, "rank": 1}, ...]}}, "user_id": ..., "status": ...}``, where equal ranks are ties. Drafts and discarded
    responses are no judgements, nor are suggestions. The values of the question have to be names of fields.
    """
    fields, responses = _object(row["fields"], "fields"), row["responses"]
    answers: list[tuple[str, list[str], list[int], Any]] = []  # question, names, their ranks, user
    if isinstance(responses, Mapping):
        held = [(name, each, each) for name, values in responses.items() for each in _objects(values, name)]
    else:
        users = _objects(responses, "responses")
        held = [(name, each, user) for user in users for name, each in _object(user.get("values"), "values").items()]
    given = [(name, _object(answer, name), response) for name, answer, response in held]
    for question, holder, response in given:
        value = holder.get("value")
        if response.get("status") in ("draft", "discarded") or not isinstance(value, list) or not value:
            continue
        if all(isinstance(item, Mapping) for item in value):
            names = [str(item.get("value")) for item in value]
            ranks = [_place(item.get("rank"), "rank", None) for item in value]
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
        texts = tuple(_text(fields[name], name) for name in options)
        prompt = _prompt(fields[_prompt_name(fields, options)])
        rankings.append(Ranking(prompt, texts, tuple(places.get(name) for name in options), _name(user)))
    return rankings


def _write_argilla(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write what ``dataset.records.from_json`` of Argilla 2 reads, for a question on its fields response-1, ....

    Rankings of the same completions that follow each other are responses to one record. A ranking without ties stays
    whole; one with completions without a rank becomes pairs. Argilla wants a user's UUID as the annotator.
    """
    records: list[dict[str, Any]] = []
    for same in _same(_whole_or_pairs(rankings, "argilla")):
        names = [f"response-{place}" for place in range(1, len(same[0].completions) + 1)]
        responses = []
        for ranking in same:
            _no_margin(ranking, "argilla")
            order = sorted(range(len(names)), key=lambda place, ranks=ranking.ranks: ranks[place] or 0)  # type: ignore[misc]
            responses.append({"value": [names[place] for place in order], "user_id": ranking.annotator})
        records.append(
            {
                "id": str(len(records)),
                "fields": {
                    "prompt": _plain(same[0].prompt),
                    **dict(zip(names, same[0].completions, strict=True)),
                },
                "metadata": {},
                "suggestions": {},
                "responses": {"ranking": responses},
                "vectors": {},
            }
        )
    return records


def _read_label_studio(row: Row) -> list[Ranking]:
    """Read the annotations of a task of Label Studio, https://labelstud.io/guide/task_format.

    Results of type ``pairwise`` (https://labelstud.io/tags/pairwise) select ``left`` or ``right``, the two tags named
    in ``to_name``; which of the task's ``data`` they show stands in the project's configuration, not in the export, so
    the tags have to be named like the data, or the data in twos, such as ``answer1`` and ``answer2``. Results of type
    ``ranker`` (https://labelstud.io/tags/ranker) list the ids of the items of a list, the best first, or have them
    in one bucket, next to ``_`` with those that were left unranked; an item's text is its ``body``, or else its
    ``title``. ``completed_by`` is the annotator. Cancelled annotations were skipped and are no judgements, nor are
    predictions.
    """
    data, rankings = _object(row["data"], "data"), []
    for annotation in _objects(row["annotations"], "annotations"):
        if annotation.get("was_cancelled"):
            continue
        results = [
            result
            for result in _objects(annotation.get("result"), "result")
            if result.get("type") in ("pairwise", "ranker")
        ]
        if len(results) != 1:
            raise TextEnvError(
                f"annotation {annotation.get('id')} has {len(results)} pairwise or ranker results; expected one."
            )
        by = annotation.get("completed_by")
        annotator = _name((by.get("email") or by.get("id")) if isinstance(by, Mapping) else by)
        value = _object(results[0].get("value"), "value")
        if results[0]["type"] == "pairwise":
            names = _two_sides(data, str(results[0].get("to_name", "")))
            selected = value.get("selected")
            if selected not in ("left", "right"):
                raise TextEnvError(f"selected={_short(selected)}; expected 'left' or 'right'.")
            texts = tuple(_text(data[name], name) for name in names)
            ranks: tuple[int | None, ...] = (0, 1) if selected == "left" else (1, 0)
        else:
            key, items = _ranked_items(data)
            names, order = [key], _ranked_ids(value.get("ranker"))
            ids = [str(item.get("id")) for item in items]
            if not set(order) <= set(ids) or len(set(order)) < len(order):
                raise TextEnvError(f"the ranker has {order}; expected ids of the items, each once: {ids}.")
            texts = tuple(
                _text(item.get("title") if item.get("body") is None else item["body"], "body") for item in items
            )
            ranks = tuple(order.index(name) if name in order else None for name in ids)
        rankings.append(Ranking(_prompt(data[_prompt_name(data, names)]), texts, ranks, annotator))
    return rankings


def _write_label_studio(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write tasks with annotations: for a ``Pairwise`` tag on answer1 and answer2, or a ``Ranker`` on the list items.

    A project has one configuration: if all rankings order all their completions, and some have more than two, all are
    for the ranker; else all are pairs. An annotator whose name is a number is a user's id, any other an e-mail address.
    """
    rankings = list(rankings)
    whole = all(None not in r.ranks and len(set(r.ranks)) == len(r.ranks) for r in rankings)
    ranker = whole and any(len(ranking.ranks) > 2 for ranking in rankings)
    tasks: list[dict[str, Any]] = []
    for same in _same(rankings if ranker else _untied(rankings, "label_studio")):
        texts = same[0].completions
        data: dict[str, Any] = {"prompt": _plain(same[0].prompt)}
        if ranker:
            data["items"] = [{"id": str(i), "title": f"Answer {i + 1}", "body": text} for i, text in enumerate(texts)]
        else:
            data |= {"answer1": texts[0], "answer2": texts[1]}
        annotations = []
        for ranking in same:
            _no_margin(ranking, "label_studio")
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
        raise TextEnvError(f"ranker={_short(ranker)}; expected a list of ids of items.")
    return [str(each) for each in ranker]


FORMATS: Mapping[str, Format] = {
    "native": Format(
        ("prompt", "completions", "ranks"), _read_native, _write_native, ("completions", "ranks", "margin")
    ),
    "trl": Format(("chosen", "rejected"), _read_trl, _write_trl, ("margin",)),
    "scores": Format(
        ("chosen", "rejected", "score_chosen", "score_rejected"),
        _read_scores,
        _write_scores,
        ("score_chosen", "score_rejected"),
    ),
    "shp": Format(
        ("history", "human_ref_A", "human_ref_B", "labels"), _read_shp, _write_shp, ("labels", "score_A", "score_B")
    ),
    "openai": Format(("info", "summaries", "choice"), _read_openai, _write_openai),
    "ziegler": Format(("query", "sample0", "sample1", "best"), _read_ziegler, _write_ziegler, ("best", "margin")),
    "arena": Format(("conversation_a", "conversation_b", "winner"), _read_arena, _write_arena),
    "argilla": Format(("fields", "responses"), _read_argilla, _write_argilla, table=False),
    "label_studio": Format(("data", "annotations"), _read_label_studio, _write_label_studio, table=False),
}
"""The formats by name, told apart by the keys of a record; see the functions for where each comes from."""


def _known(format: str) -> Format:
    if format not in FORMATS:
        raise TextEnvError(f"format={format!r}: expected one of {', '.join(FORMATS)}.")
    return FORMATS[format]


def _recognised(row: Row, where: str) -> str:
    fit = {name: set(found.keys) for name, found in FORMATS.items() if set(found.keys) <= row.keys()}
    best = [name for name, keys in fit.items() if not any(keys < other for other in fit.values())]
    if len(best) != 1:
        keys = "; ".join(f"{name}: {', '.join(found.keys)}" for name, found in FORMATS.items())
        raise TextEnvError(
            f"{where}: {'none' if not best else 'more than one'} of the formats has the keys {sorted(map(str, row))}. "
            f"Name the format. They have at least these keys: {keys}."
        )
    return best[0]


# Rankings that a format cannot hold


def _pairs(ranking: Ranking) -> list[Ranking]:
    """Return a comparison of two for each pair whose order is known: ranks 0 and 1, or 0 and 0 for a tie.

    Raises:
        TextEnvError: It has a margin and more than two completions: the margin tells of the best and the worst alone.
    """
    if ranking.margin is not None and len(ranking.ranks) > 2:
        raise TextEnvError(
            f"{_about(ranking)} has a margin, between the best and the worst of {len(ranking.ranks)}, which its pairs "
            "cannot hold. Drop 'margins', or use the format 'native'."
        )
    found = []
    for better, worse, tied in ranking.pairs():
        places = (min(better, worse), max(better, worse))
        ranks = (0, 0) if tied else tuple(int(place == worse) for place in places)
        texts = tuple(ranking.completions[place] for place in places)
        found.append(replace(ranking, completions=texts, ranks=ranks))
    return found


def _untied(rankings: Iterable[Ranking], format: str) -> Iterator[Ranking]:
    for ranking in rankings:
        for pair in _pairs(ranking):
            if pair.ranks[0] == pair.ranks[1]:
                raise _cannot(ranking, format, "it has a tie", "Drop 'ties', or use the format 'native' or 'arena'.")
            yield pair


def _whole_or_pairs(rankings: Iterable[Ranking], format: str) -> Iterator[Ranking]:
    for ranking in rankings:
        whole = None not in ranking.ranks and len(set(ranking.ranks)) == len(ranking.ranks)
        yield from [ranking] if whole else _untied([ranking], format)


def _same(rankings: Iterable[Ranking]) -> Iterator[list[Ranking]]:
    """Yield rankings of the same completions that follow each other together."""
    for _, group in itertools.groupby(rankings, key=lambda ranking: (ranking.prompt, ranking.completions)):
        yield list(group)


def _without(ranking: Ranking, drop: Collection[Droppable]) -> list[Ranking]:
    if "margins" in drop:
        ranking = replace(ranking, margin=None)
    if "annotators" in drop:
        ranking = replace(ranking, annotator="")
    if "ties" in drop and any(tied for *_, tied in ranking.pairs()):
        return [pair for pair in _pairs(ranking) if pair.ranks[0] != pair.ranks[1]]
    return [ranking]


def _only_text(ranking: Ranking, format: str) -> str:
    if not isinstance(ranking.prompt, str):
        raise _cannot(ranking, format, "its prompt is a conversation, and the format has texts", "Use 'trl'.")
    return ranking.prompt


def _no_margin(ranking: Ranking, format: str) -> None:
    if ranking.margin is not None:
        raise _cannot(ranking, format, "it has a margin", "Drop 'margins', or use the format 'native' or 'trl'.")


def _cannot(ranking: Ranking, format: str, why: str, advice: str) -> TextEnvError:
    return TextEnvError(f"{_about(ranking)} cannot be written as {format!r}: {why}. {advice}")


def _about(ranking: Ranking) -> str:
    return f"The ranking of {_short(ranking.prompt)} by {ranking.annotator!r}"


# Values


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TextEnvError(f"{name} is {_short(value)}; expected a text.")
    return value


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise TextEnvError(f"{name} is {_short(value)}; expected an object.")
    return value or {}


def _objects(value: Any, name: str) -> list[Mapping[str, Any]]:
    if value is not None and not isinstance(value, list):
        raise TextEnvError(f"{name} is {_short(value)}; expected a list of objects.")
    return [_object(each, name) for each in value or []]


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TextEnvError(f"{name} is {_short(value)}; expected a finite number.")
    return float(value)


def _place(value: Any, name: str, count: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or (count is not None and not 0 <= value < count):
        raise TextEnvError(f"{name} is {_short(value)}; expected a whole number{f' below {count}' if count else ''}.")
    return value


def _margin(value: Any) -> float | None:
    return None if value is None else _number(value, "margin")


def _name(value: Any) -> str:
    """Return who judged: a text or a number, ``""`` where nobody is named."""
    if value is None or isinstance(value, (str, int)):
        return "" if value is None else str(value)
    raise TextEnvError(f"the annotator is {_short(value)}; expected a name.")


def _extras(row: Row) -> dict[str, Any]:
    return {"annotator": _name(row.get("annotator")), "margin": _margin(row.get("margin"))}


def _prompt(value: Any) -> str | Conversation:
    return value if isinstance(value, str) else _messages(value, "prompt")


def _prompt_name(fields: Row, others: Sequence[str]) -> str:
    """Return which field is the prompt: ``prompt``, or the only one that is none of the others."""
    rest = [name for name in fields if name not in others]
    if "prompt" in rest:
        return "prompt"
    if len(rest) != 1:
        raise TextEnvError(f"which of {rest} is the prompt? Expected one that is called 'prompt', or only one.")
    return rest[0]


def _messages(value: Any, name: str) -> Conversation:
    if not isinstance(value, (list, tuple)):
        raise TextEnvError(f"{name} is {_short(value)}; expected a text or a list of messages, as the others are.")
    return read_conversation(value)


def _plain(prompt: str | Conversation) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _answer(messages: Conversation) -> str:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise TextEnvError(
            f"one side ends with {_short([dict(message) for message in messages])}, which the other has not. Expected "
            "one message of the assistant: a ranking compares answers to one prompt."
        )
    return str(messages[0]["content"])


def _common_messages(one: Conversation, other: Conversation) -> tuple[Conversation, Conversation, Conversation]:
    """Return the messages that both begin with, and what each goes on with: one message at least."""
    longest = min(len(one), len(other)) - 1
    cut = next((place for place in range(longest) if one[place] != other[place]), longest)
    if not cut:
        raise TextEnvError("its two sides share no message; expected both to begin with the prompt.")
    return one[:cut], one[cut:], other[cut:]


def _common_text(one: str, other: str) -> int:
    """Return the length of the text that both begin with, up to the last turn of hh-rlhf or the end of a word."""
    longest = min(len(one), len(other))
    cut = next((place for place in range(longest) if one[place] != other[place]), longest)
    turn = one.rfind("\n\nAssistant:", 0, cut)
    if turn >= 0:
        return turn + len("\n\nAssistant:")
    return max((found.start() for found in re.finditer(r"\s+", one[:cut])), default=0)


def _without_empty(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records without our own columns where no record has anything in them."""
    empty = {
        name
        for name, nothing in (("annotator", ""), ("margin", None), ("score_A", None), ("score_B", None))
        if all(row.get(name, nothing) == nothing for row in rows)
    }
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Files


def _unserialised(path: Path, kind: str, data: bytes, text: str) -> Iterator[tuple[str, Any]]:
    if kind == ".parquet":
        yield from _read_parquet(path, data)
    elif kind == ".csv":
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = next(reader, [])
            for row in reader:
                if row and len(row) != len(header):
                    raise TextEnvError(
                        f"{path}, line {reader.line_num}: {len(row)} cells under {len(header)} headings {header}."
                    )
                if row:
                    yield f"line {reader.line_num}", dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise TextEnvError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
    elif kind == ".json" and text.lstrip().startswith("["):
        try:
            yield from ((f"item {number}", row) for number, row in enumerate(json.loads(text), start=1))
        except json.JSONDecodeError as error:
            raise TextEnvError(f"{path}: not JSON ({error}).") from error
    else:
        for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split at U+2028 in a text
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise TextEnvError(f"{path}, line {number}: not JSON ({error}): {_short(line)}") from error
                yield f"line {number}", row


def _serialised(rows: Sequence[Row], kind: str, cells: Collection[str]) -> bytes:
    if kind == ".parquet":
        return _parquet(rows)
    if kind == ".csv":
        return _csv(rows, cells)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    return ("[\n" + ",\n".join(lines) + "\n]\n" if kind == ".json" else "\n".join(lines) + "\n").encode()


def _csv(rows: Sequence[Row], cells: Collection[str]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    for row in rows:
        told = {name: json.dumps(value) for name, value in row.items() if name in cells and value is not None}
        texts = {name: value for name, value in row.items() if name not in cells}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise TextEnvError(f"{name}={_short(value)}: CSV has texts; write conversations to .jsonl or .parquet.")
        writer.writerow(texts | told)
    return file.getvalue().encode()


def _cells(row: Row, cells: Collection[str]) -> dict[str, Any]:
    """Return a record of CSV with the values of the columns that hold JSON; what is empty there is nothing."""
    values: dict[str, Any] = dict(row)
    for name in cells:
        if name in values:
            try:
                values[name] = json.loads(values[name]) if values[name].strip() else None
            except json.JSONDecodeError as error:
                raise TextEnvError(f"{name} is {_short(values[name])}; expected JSON ({error}).") from error
    return values


def _decoded(row: Row, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """Return a record of Ziegler's with texts for token ids; a sample is what it adds to its query."""
    query = row["query"] if isinstance(row["query"], list) else []
    before = decode(query) if query else ""
    texts = {"query": before} if query else {}
    for name, value in row.items():
        if isinstance(value, list) and name not in texts:
            whole = decode([*query, *value])
            texts[name] = whole[shared_length(before, whole) :]
    return {**row, **texts}


def _read_parquet(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    pyarrow, parquet = _pyarrow()
    try:
        rows = parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (OSError, ValueError) as error:
        raise TextEnvError(f"{path}: not a parquet file ({error}).") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _parquet(rows: Sequence[Row]) -> bytes:
    pyarrow, parquet = _pyarrow()
    try:
        table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise TextEnvError(
            f"The records do not make a table ({error}). Are some prompts texts and some conversations? Use .jsonl."
        ) from error
    file = pyarrow.BufferOutputStream()
    parquet.write_table(table, file)
    return bytes(file.getvalue())


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # noqa: PLC0415 (an optional dependency)
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise TextEnvError("Parquet needs pyarrow; run: pip install 'textenv[data]'") from error
    return pyarrow, parquet
