"""ChatGPT's recipe on questions about words: demonstrations, rankings, a reward model, PPO-ptx, and again.

Ouyang et al. 2022 (arXiv:2203.02155), and OpenAI's announcement of ChatGPT: trainers play both sides of conversations,
answers at a random turn of the assistant are ranked, and the policy is trained against a model of the rankings with
pre-training text mixed in. In place of the trainers stands a program that asks and judges by WordNet.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from textenv.data.corpora import dictionary_texts
from textenv.data.debian import fetch_debian_files
from textenv.data.dictionary import Entry, columns_of, conversation, dictionary_entries, document, turns_of
from textenv.data.records import read_records, write_records
from textenv.data.wordnet import load_wordnet
from textenv.recipes.base import Data, Recipe, Settings

if TYPE_CHECKING:
    from textenv.models.policy import TextPolicy

__all__ = ["ChatGPT"]

_HELD_OUT, _PROMPTS = 256, 768  # entries; each gives a prompt, and half of them have a sentence
_DEMONSTRATIONS = 3000  # entries, each of which gives a conversation
_TEXTS, _HELD_OUT_TEXTS = 6000, 160  # documents of WordNet in the pre-training text
_BATCHES = 8  # of held-out documents, whose bits per character are compared
_DEVIL = ("usr/share/dictd/devil.dict.dz", "995ca92760d677965cb2780e78b808e982f9d49e8c12d795c1854476bbf13819")
_ANSWER = 28  # tokens
_RIGHT = 0.5  # an answer that scores more is called right


class ChatGPT(Recipe):
    """Conversations about words, whose follow-ups are understood only by who remembers the word.

    "What does heron mean?", "What kind of thing is it?", "Use it in a sentence." The answers are judged by the reward
    ``dictionary_answer``, which is a program and no person. The demonstrations, the prompts and the held-out prompts
    are of different words. The pre-training text is WordNet, without the held-out words, and The Devil's Dictionary
    (Ambrose Bierce, public domain).
    """

    settings: ClassVar[Settings] = Settings(
        {
            "env": "textenv/Text-v0",
            "gold": "dictionary_answer",
            "gold_temperature": 0.2,
            "rounds": 2,
            "labels": 800,
            "samples": 4,
            "eval_episodes": _HELD_OUT,
            "total_steps": 30_000,
            "num_envs": 64,
            "sft_epochs": 3,
        },
        {"max_new_tokens": _ANSWER, "kl_coef": 0.8},
        {"ptx_coef": 0.2},
    )
    quick: ClassVar[Settings] = Settings(
        {
            "rounds": 1,
            "labels": 16,
            "eval_episodes": 12,
            "total_steps": 512,
            "num_envs": 8,
            "sft_epochs": 2,
            "reward_epochs": 1,
        },
        {},
        {"ptx_context": 16, "minibatch_size": 8},
    )

    def prepare(self, folder: Path, *, quick: bool, seed: int) -> Data:
        """Write the conversations, the prompts and the pre-training text.

        Raises:
            TextEnvError: WordNet or The Devil's Dictionary is not in the cache, and Debian's archive is out of reach.
        """
        rng = random.Random(seed)
        material = _quick() if quick else _of_wordnet(rng)
        data = Data(
            (folder / "demonstrations.jsonl",),
            folder / "prompts.jsonl",
            folder / "held-out-prompts.jsonl",
            (folder / "pretraining.jsonl",),
        )
        shown = [conversation(turns_of(entry, rng)) for entry in material.demonstrated]
        write_records(data.sft[0], [{"messages": list(messages)} for messages in shown])
        write_records(folder / "prompts.jsonl", _prompts(material.asked, rng))
        write_records(folder / "held-out-prompts.jsonl", _prompts(material.held_out, rng))
        write_records(data.ptx_files[0], [{"text": text} for text in material.texts])
        write_records(_held_out_texts(data), [{"text": text} for text in material.held_out_texts])
        return data

    def measure(self, policy: TextPolicy, data: Data, *, seed: int) -> Mapping[str, Sequence[float]]:
        """Measure what is answered rightly with the conversation so far and without it, and bits per character.

        Returns:
            ``follow-ups right``: of each held-out follow-up, 1 where the answer scores more than 1/2, and 0 else;
            ``without history``: the same where the follow-up is all that is read; ``bits per character`` of batches of
            held-out pre-training text.
        """
        from textenv.training.bits_per_character import bits_per_character  # noqa: PLC0415 (loads torch)

        assert data.eval_prompts is not None
        rows = [row for _, row in read_records(data.eval_prompts) if row["question"] != "meaning"]
        alone = [{**row, "prompt": row["prompt"][-1:]} for row in rows]
        texts = [row["text"] for _, row in read_records(_held_out_texts(data))]
        lm: Any = policy.lm
        return {
            "follow-ups right": _right(policy, rows, seed),
            "without history": _right(policy, alone, seed),
            "bits per character": [
                bits_per_character(lm.model, lm.tokenizer, texts[first::_BATCHES])
                for first in range(min(_BATCHES, len(texts)))
            ],
        }


def _held_out_texts(data: Data) -> Path:
    return data.ptx_files[0].parent / "held-out-pretraining.jsonl"


def _prompts(entries: Sequence[Entry], rng: random.Random) -> list[dict[str, Any]]:
    """Return a conversation about each entry up to a turn of the assistant, and what its answer is judged by.

    Each turn comes as often as the others, among few entries too.
    """
    rows = []
    for number, entry in enumerate(entries):
        turns = turns_of(entry, rng)
        turn = turns[place := number % len(turns)]
        row = {"prompt": list(conversation(turns, answered=place)), "completion": turn.answer}
        rows.append({**row, **columns_of(entry, turn.question)})
    return rows


class _Material(NamedTuple):
    """What the data are made of: entries that are held out, asked for and demonstrated, and pre-training text."""

    held_out: Sequence[Entry]
    asked: Sequence[Entry]
    demonstrated: Sequence[Entry]
    texts: Sequence[str]
    held_out_texts: Sequence[str]


def _quick() -> _Material:
    return _Material(_QUICK[:4], _QUICK[4:8], _QUICK[8:], _QUICK_TEXTS[:3], _QUICK_TEXTS[3:])


def _of_wordnet(rng: random.Random) -> _Material:
    wordnet = load_wordnet()
    devil = fetch_debian_files("dict-devil", "dict-devil-1.0", dict([_DEVIL]))[_DEVIL[0]]
    entries = dictionary_entries(wordnet)
    rng.shuffle(entries)
    with_sentence = [entry for entry in entries if entry.sentence is not None]
    others = [entry for entry in entries if entry.sentence is None]
    first, second = _HELD_OUT // 2, (_HELD_OUT + _PROMPTS) // 2
    held_out = [*with_sentence[:first], *others[:first]]
    asked = [*with_sentence[first:second], *others[first:second]]
    rest = with_sentence[second:]
    demonstrated = [*rest, *others[second : second + _DEMONSTRATIONS - len(rest)]]
    keys = {entry.key for entry in held_out}
    texts = [document(synset) for key, synset in wordnet.synsets.items() if key not in keys]
    proverbs = [text for text in dictionary_texts(devil) if len(text) >= 40]
    shuffled: tuple[list[Any], ...] = (texts, proverbs, held_out, asked, demonstrated)
    for each in shuffled:
        rng.shuffle(each)
    few = _HELD_OUT_TEXTS // 4
    return _Material(
        held_out,
        asked,
        demonstrated,
        [*texts[_HELD_OUT_TEXTS : _HELD_OUT_TEXTS + _TEXTS], *proverbs[few:]],
        [*texts[:_HELD_OUT_TEXTS], *(text[:600] for text in proverbs[:few])],
    )


def _right(policy: TextPolicy, rows: Sequence[Mapping[str, Any]], seed: int) -> list[float]:
    """Return 1 for each row that the policy answers rightly, and 0 for each other."""
    import torch  # noqa: PLC0415

    from textenv.env.registry import make_envs  # noqa: PLC0415
    from textenv.env.scoring import resolve_reward, score, unscored  # noqa: PLC0415
    from textenv.rollouts.collect import sample_episodes, text_env  # noqa: PLC0415

    envs: Any = make_envs(
        "textenv/Text-v0",
        min(64, len(rows)),
        model=policy.lm,
        prompts=list(rows),
        reward=unscored,
        max_new_tokens=_ANSWER,
        temperature=policy.temperature,
        kl_mode="lump",
    )
    generator = torch.Generator(policy.lm.device).manual_seed(seed)
    episodes = sample_episodes(envs, policy, generator, list(text_env(envs).prompts))
    envs.close()
    scores = score(
        resolve_reward("dictionary_answer"),
        prompts=[row["prompt"] for row in rows],
        completions=[episode.completion for episode in episodes],
        completion_ids=[episode.completion_ids for episode in episodes],
        columns={name: [row[name] for row in rows] for name in ("question", "word", "meaning", "kinds")},
    )
    return [float(value > _RIGHT) for value in scores]


_ANIMALS, _TOOLS = (("animal", "creature"), ("living thing",)), (("tool", "implement"), ("thing",))
_QUICK: tuple[Entry, ...] = (
    Entry("1", "sparrow", "a small brown bird that eats seeds", (("bird",), *_ANIMALS), "bird", "A sparrow sat on it."),
    Entry("2", "trout", "a fish with spots that lives in rivers", (("fish",), *_ANIMALS), "fish"),
    Entry("3", "hammer", "a heavy tool that drives nails", _TOOLS, "tool", "He hit the nail with a hammer."),
    Entry("4", "pony", "a small horse that children ride", (("horse",), *_ANIMALS), "horse"),
    Entry("5", "owl", "a bird that hunts at night", (("bird",), *_ANIMALS), "bird", "We heard an owl at night."),
    Entry("6", "carp", "a big fish of ponds", (("fish",), *_ANIMALS), "fish"),
    Entry("7", "saw", "a tool with teeth that cuts wood", _TOOLS, "tool", "She cut the board with a saw."),
    Entry("8", "mule", "an animal that carries loads", _ANIMALS, "animal"),
    Entry("9", "heron", "a tall gray bird that wades", (("bird",), *_ANIMALS), "bird", "A heron stood in the pond."),
    Entry("10", "pike", "a long fish with sharp teeth", (("fish",), *_ANIMALS), "fish"),
    Entry("11", "axe", "a tool with a blade that fells trees", _TOOLS, "tool", "The axe lay beside the wood."),
    Entry("12", "mare", "a female horse", (("horse",), *_ANIMALS), "horse"),
)
_QUICK_TEXTS = (
    "A river begins as a spring in the hills, and other streams join it on the way down to the sea.",
    "Bread is made of flour, water, salt and yeast. The dough rests until it has risen, and then it is baked.",
    "In winter the days are short, and many birds leave for the south, where they find more to eat.",
    "Carpenters plan before they cut: a board that has been sawn too short cannot be made longer again.",
)
