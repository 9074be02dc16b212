"""Watermarks on a small model: what they cost, and from how many tokens on they are found.

    python -m benchmarks.watermark
    python -m benchmarks.watermark --models bundled runs/x/policy --texts 512
    python -m benchmarks.watermark --models --runs runs/rlhf --texts 96

Human text is the test split of the movie reviews. Texts of the model go on for as many tokens as are asked for, its
end-of-sequence token being left out, and are read again from their text, as a detector has to. A true-positive rate is
the share of texts whose p-value is below 1 % or 1e-5. The p-values of counts are made continuous for the KS test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from matplotlib.figure import Figure
from scipy import stats

from benchmarks._measure import environment, show
from textenv.commands.bias_run import find_stages
from textenv.data.files import write_json
from textenv.data.pictures import save_figure
from textenv.data.reviews import load_reviews
from textenv.models.codec import TextCodec
from textenv.models.policy import TextPolicy
from textenv.models.reward_model import RewardModel
from textenv.models.watermark import SCHEMES, GreenList, Verdict, Watermark, make_watermark
from textenv.models.watermarked import WatermarkedPolicy
from textenv.rollouts.collect import sample_episodes, text_env
from textenv.types import Episode

KEY = b"benchmarks/watermark.py, no secret"


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        models: ``"bundled"``, or folders of models such as the policy of a run.
        runs: Runs of ``textenv rlhf`` or ``train``, each of whose language models is measured too.
        texts: Texts of each kind.
        lengths: Tokens after which texts are tested.
        temperatures: That the texts are drawn at.
        deltas: Biases of the green list; its score is compared with that of the model without.
        edits: Shares of words that are replaced.
        seed: Seeds openings, tokens and edits.
        out: Folder for the figures and the picture; None writes none.
    """

    models: tuple[str, ...] = ("bundled",)
    runs: tuple[str, ...] = ()
    texts: int = 256
    lengths: tuple[int, ...] = (12, 25, 50, 100, 200)
    temperatures: tuple[float, ...] = (0.5, 0.7, 1.0)
    deltas: tuple[float, ...] = (1.0, 2.0, 4.0)
    edits: tuple[float, ...] = (0.0, 0.1, 0.3)
    seed: int = 0
    out: Path | None = None


class Endless:
    """All tokens but those that end a text, as an ``ActionMask``."""

    def __init__(self, eos_ids: Sequence[int], vocab_size: int) -> None:
        self._allowed = np.ones(vocab_size, dtype=bool)
        self._allowed[list(eos_ids)] = False

    def forget(self) -> None:
        """Do nothing: nothing is cached."""

    def __call__(self, obs: Any, rows: Any, allowed: Any) -> Any:
        """Return the same tokens for every row."""
        return np.tile(self._allowed, (len(obs["input_ids"]), 1))


def write(
    model: str, watermark: Watermark | None, config: Config, *, tokens: int, temperature: float = 1.0, endless: bool
) -> list[Episode]:
    """Let a model go on with held-out openings of movie reviews."""
    envs: Any = gym.make_vec(
        "textenv/MovieReview-v0", num_envs=min(128, config.texts), split="heldout", model=model, reward="vader",
        kl_mode="lump", max_new_tokens=tokens, temperature=temperature, autoreset_mode=AutoresetMode.DISABLED,
    )  # fmt: skip
    base = text_env(envs)
    policy = TextPolicy.of_reference(base)
    policy = policy if watermark is None else WatermarkedPolicy(policy, watermark)
    mask = Endless(base.reference.eos_ids, base.reference.vocab_size) if endless else None
    prompts = [base.prompts[place % len(base.prompts)] for place in range(config.texts)]
    return sample_episodes(envs, policy, torch.Generator().manual_seed(config.seed), prompts, mask=mask)


def judge(watermark: Watermark, ids: Sequence[int]) -> Verdict:
    places = watermark.counted_places(ids)
    windows = [ids[place - watermark.context : place] for place in places]
    return watermark.test(watermark.evidence(windows, [ids[place] for place in places]))


def found(watermark: Watermark, texts: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Return the true-positive rates at 1 % and 1e-5."""
    values = np.array([1.0 if (p := judge(watermark, ids).p_value) is None else p for ids in texts])
    return float((values < 0.01).mean()), float((values < 1e-5).mean())


def human(watermark: Watermark, codec: TextCodec, rng: np.random.Generator) -> tuple[float, float, int]:
    """Return the KS p-value of human text, the share of it below 1 %, and the number of texts."""
    values, low = [], 0
    for review in load_reviews("test"):
        verdict = judge(watermark, codec.encode_behind(" " + review.text))
        if verdict.p_value is None:
            continue
        low += verdict.p_value < 0.01
        value = verdict.p_value
        if isinstance(watermark, GreenList):
            gamma, count = watermark.gamma, verdict.counted
            green = round(verdict.score * np.sqrt(count * gamma * (1 - gamma)) + gamma * count)
            value -= rng.random() * float(stats.binom.pmf(green, count, gamma))
        values.append(value)
    return float(stats.kstest(values, "uniform").pvalue), low / len(values), len(values)


def edited(text: str, share: float, words: Sequence[str], rng: np.random.Generator) -> str:
    """Replace a share of a text's words by words of human text."""
    parts = text.split(" ")
    for place in rng.choice(len(parts), round(share * len(parts)), replace=False):
        parts[place] = str(rng.choice(words))
    return " ".join(parts)


def power(model: str, codec: TextCodec, config: Config) -> dict[str, Any]:
    """Return true-positive rates by scheme, temperature and length, and after edits of the longest texts."""
    rng = np.random.default_rng(config.seed)
    words = " ".join(review.text for review in load_reviews("test")[:200]).split()
    results: dict[str, Any] = {}
    for name in SCHEMES:
        watermark = make_watermark(name, KEY)
        for temperature in config.temperatures:
            episodes = write(
                model, watermark, config, tokens=max(config.lengths), temperature=temperature, endless=True
            )
            texts = [codec.encode_behind(episode.completion) for episode in episodes]
            rates = {str(length): found(watermark, [ids[:length] for ids in texts]) for length in config.lengths}
            after = {
                f"{share:.0%}": found(
                    watermark, [codec.encode_behind(edited(each.completion, share, words, rng)) for each in episodes]
                )
                for share in config.edits
            }
            results[f"{name} T={temperature:g}"] = {"length": rates, "edits": after}
    return results


def cost(model: str, codec: TextCodec, config: Config) -> list[tuple[str, ...]]:
    """Return what a watermark costs in texts of 24 tokens that may end, and what the best of 4 regains.

    The best is that of the bundled reward model, whose score is shown beside VADER's, which did not choose it.
    """
    marks: dict[str, Watermark | None] = {"none": None}
    marks |= {f"green_list, delta {delta:g}": make_watermark("green_list", KEY, delta=delta) for delta in config.deltas}
    marks |= {name: make_watermark(name, KEY) for name in ("gumbel", "synthid")}
    judge_of = RewardModel.load("bundled")
    rows = []
    for label, watermark in marks.items():
        tries = [
            write(model, watermark, replace(config, seed=config.seed + number), tokens=24, endless=False)
            for number in range(4)
        ]
        vader = np.array([[each.score for each in episodes] for episodes in tries])
        learned = np.array([judge_of.scores(*zip(*_texts(episodes), strict=True)) for episodes in tries])
        best = (learned.argmax(axis=0), np.arange(config.texts))
        kl = np.array([sum(episode.kl) for episode in tries[0]])
        texts = [codec.encode_behind(episode.completion) for episode in tries[0]]
        rate = "" if watermark is None else f"{found(watermark, texts)[0]:.0%}"
        figures = (learned[0], vader[0], learned[best], vader[best])
        cells = (f"{each.mean():+.3f} ± {each.std() / np.sqrt(config.texts):.3f}" for each in figures)
        rows.append((label, *cells, f"{kl.mean():.2f}", rate))
    return rows


def _texts(episodes: Sequence[Episode]) -> list[tuple[str, str]]:
    return [(episode.prompt, episode.completion) for episode in episodes]


def models_of(config: Config) -> dict[str, str]:
    """Return what is measured, by its name: the models, and the language models of the runs."""
    found = {Path(model).name: model for model in config.models}
    stages = [stage for stage in find_stages(config.runs) if stage.kind != "reward_model"] if config.runs else []
    return found | {stage.label: stage.model for stage in stages}


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    results: dict[str, Any] = {}
    for stage, model in models_of(config).items():
        base: Any = text_env(gym.make("textenv/MovieReview-v0", model=model))
        codec = TextCodec(base.reference.tokenizer)
        rng = np.random.default_rng(config.seed)
        rows = []
        for name in SCHEMES:
            ks, low, count = human(make_watermark(name, KEY), codec, rng)
            rows.append((name, f"{ks:.2f}", f"{low:.2%}", f"{count:,}"))
        show(f"{stage}: human text", ("", "KS p-value", "below 1 %", "texts"), rows)
        figures = power(model, codec, config)
        for level, title in enumerate(("1 %", "1e-5")):
            shares = [
                (label, *(f"{rate[level]:.0%}" for rate in (*each["length"].values(), *each["edits"].values())))
                for label, each in figures.items()
            ]
            heads = (*(f"{n} tokens" for n in config.lengths), *(f"{share:.0%} edited" for share in config.edits))
            show(f"{stage}: found at a false-positive rate of {title}", ("", *heads), shares)
        show(
            f"{stage}: cost in texts of 24 tokens",
            ("watermark", "reward model", "VADER", "reward, best of 4", "VADER, best of 4", "KL", "found at 1 %"),
            cost(model, codec, config),
        )
        results[stage] = figures
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / "watermark.json", results)
        draw(results, config.out / "watermark.png")


def draw(results: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(4.2 * len(results), 3.4), dpi=130, layout="constrained")
    styles = ("-", "--", ":", "-.")
    temperatures = {float(label.split(" T=")[1]) for rows in results.values() for label in rows}
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for panel, (model, rows) in zip(panels, results.items(), strict=True):
        lengths = [int(length) for length in next(iter(rows.values()))["length"]]
        for label, each in rows.items():
            name, temperature = label.split(" T=")
            color = f"C{list(SCHEMES).index(name)}"
            shares = [rate[1] for rate in each["length"].values()]
            style = styles[sorted(temperatures, reverse=True).index(float(temperature)) % len(styles)]
            panel.plot(lengths, shares, color=color, linestyle=style, alpha=0.9, label=label)
        panel.set(title=model, xlabel="tokens", xscale="log", ylim=(-0.03, 1.03))
        panel.set_xticks(lengths, [str(length) for length in lengths])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("found at p < 1e-5")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
