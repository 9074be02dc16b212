"""Learning to summarize from feedback (Stiennon et al. 2020), on the descriptions of Debian's packages."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textenv.data.descriptions import DescriptionSplit
from textenv.data.records import write_records
from textenv.data.summaries import DEBIAN, FEW, SummaryData
from textenv.models.matcher import copied_share, words_of
from textenv.recipes.base import Data, Recipe, Settings

if TYPE_CHECKING:
    from textenv.models.policy import TextPolicy

__all__ = ["Summarize"]

_DEMONSTRATIONS, _PROMPTS, _HELD_OUT = 3000, 2000, 256
_LONGEST = 350  # characters of a description: short ones, which a small model on a CPU reads in minutes
_SPLITS: tuple[DescriptionSplit, ...] = ("train", "heldout")
_LETTERS = 0.9  # share of letters and blanks in prose
_ROWS = 16  # summaries that are written side by side to be measured


class Summarize(Recipe):
    """Descriptions to synopses: fine-tune on people's, rank samples, train a reward model and, against it, a policy.

    As in Stiennon et al. 2020 a summary is one line of bounded length, the demonstrations are people's summaries, and
    what is trained is compared with them. A program stands in for people, ``textenv.rewards.SummaryJudge``: it tells
    true synopses from those of similar packages and punishes copying. ``--gold None`` asks people instead. What the
    judge has learned from, what policies learn from and what they are measured on have no source package in common.
    """

    settings: ClassVar[Settings] = Settings(
        command={
            "env": "textenv/Summary-v0",
            "gold": '{"name": "summary_judge"}',
            "rounds": 1,
            "labels": 400,
            "samples": 4,
            "sft_epochs": 1,
            "reward_epochs": 1,
            "eval_episodes": _HELD_OUT,
            "total_steps": 32_000,
            "num_envs": 64,
        },
        env={"max_new_tokens": 32, "kl_coef": 0.05},
        ppo={"epochs": 2},
    )
    quick: ClassVar[Settings] = Settings(
        command={
            "gold": '{"name": "summary_judge", "data": "few"}',
            "labels": 4,
            "samples": 2,
            "eval_episodes": 4,
            "total_steps": 64,
            "num_envs": 4,
        },
        env={"max_new_tokens": 8},
        ppo={"epochs": 1},
    )

    def prepare(self, folder: Path, *, quick: bool, seed: int) -> Data:
        """Write demonstrations and prompts of the training split, and held-out prompts with their synopses."""
        source = FEW if quick else DEBIAN
        train, held_out = (
            _mixed(SummaryData(data=source, split=split, max_characters=_LONGEST).prompts(), seed) for split in _SPLITS
        )
        written: dict[str, list[Mapping[str, str]]] = {
            "demonstrations": [_demonstration(row) for row in train[:_DEMONSTRATIONS]],
            "prompts": train[-_PROMPTS:],
            "held-out": [{**row, "completion": _completion(row)} for row in held_out[:_HELD_OUT]],
        }
        paths = {name: folder / f"{name}.jsonl" for name in written}
        for name, rows in written.items():
            write_records(paths[name], rows)
        return Data((paths["demonstrations"],), paths["prompts"], paths["held-out"])

    def measure(self, policy: TextPolicy, data: Data, *, seed: int) -> Mapping[str, Sequence[float]]:
        """Return ROUGE-L against people's synopses, the share of copied word pairs, and words, at temperature 0."""
        from textenv.env.registry import make_envs  # noqa: PLC0415 (what takes long to load)
        from textenv.env.scoring import resolve_reward, score, unscored  # noqa: PLC0415
        from textenv.models.policy import TextPolicy  # noqa: PLC0415
        from textenv.rollouts.collect import sample_episodes, text_env  # noqa: PLC0415

        envs: Any = make_envs(
            "textenv/Summary-v0",
            _ROWS,
            prompts=str(data.eval_prompts),
            model=policy.lm,
            reward=unscored,
            kl_mode="lump",
        )
        base = text_env(envs)
        prompts = base.prompts
        episodes = sample_episodes(envs, TextPolicy.of_reference(base), None, prompts)
        summaries = [episode.completion for episode in episodes]
        rouge = score(
            resolve_reward("rouge"),
            prompts=[prompt.text for prompt in prompts],
            completions=summaries,
            completion_ids=[episode.completion_ids for episode in episodes],
            columns={"reference": [prompt.columns["reference"] for prompt in prompts]},
        )
        pairs = list(zip(prompts, summaries, strict=True))
        return {
            "ROUGE-L": rouge.tolist(),
            "copied": [copied_share(prompt.columns["text"], summary) for prompt, summary in pairs],
            "words": [float(len(words_of(summary))) for summary in summaries],
        }


def _mixed(rows: Sequence[Mapping[str, str]], seed: int) -> list[Mapping[str, str]]:
    """Return the rows whose texts are prose, in a drawn order: lists of devices take many tokens and say little."""
    prose = [row for row in rows if _share_of_letters(row["text"]) >= _LETTERS]
    return random.Random(seed).sample(prose, len(prose))


def _share_of_letters(text: str) -> float:
    return sum(letter.isalpha() or letter == " " for letter in text) / len(text)


def _completion(row: Mapping[str, str]) -> str:
    return f" {row['reference']}"


def _demonstration(row: Mapping[str, str]) -> dict[str, str]:
    return {"prompt": row["prompt"], "completion": _completion(row)}
