"""What ``textenv bias`` and ``textenv rlhf --bias`` do: find the stages of runs, measure and show each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Picture

from textenv.analysis.bias import Figure
from textenv.analysis.bias_measures import Probe, measure_model, measure_reward, measure_sentiment
from textenv.analysis.bias_templates import TEMPLATES, Template, read_templates
from textenv.commands.console import console, tell
from textenv.data.files import read_json, write_json
from textenv.data.pictures import save_figure
from textenv.data.values import as_text
from textenv.data.word_lists import WordLists, built_in_words, count_words, package_words, read_word_lists
from textenv.env.registry import make_envs
from textenv.env.scoring import resolve_reward, score, unscored
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import BUNDLED, resolve_model
from textenv.models.policy import TextPolicy
from textenv.models.reward_model import RewardModel
from textenv.models.watermark import Watermark
from textenv.models.watermarked import WatermarkedPolicy
from textenv.rollouts.collect import sample_episodes, text_env
from textenv.rollouts.tables import make_table
from textenv.types import TextEnvError
from textenv.validation import unknown_name

__all__ = [
    "KINDS",
    "Sampling",
    "Stage",
    "find_stages",
    "find_templates",
    "find_words",
    "measure",
    "report",
    "seen_words",
    "with_watermark",
]

KINDS = ("pretrained", "sft", "reward_model", "policy")
"""The kinds of stages of a run; a language model by itself is ``"pretrained"``."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A model as it is after a stage of its training.

    Attributes:
        label: What it is called in tables.
        kind: One of ``KINDS``.
        model: ``"bundled"``, a folder, or a Hugging Face id.
        watermark: What its texts carry; None for nothing.
    """

    label: str
    kind: str
    model: str
    watermark: Watermark | None = None


def find_stages(names: Sequence[str], kinds: Sequence[str] = ()) -> list[Stage]:
    """Return the stages of runs and models, in the order of their training.

    Args:
        names: Each ``"bundled"``, a folder or id of a model, or the folder of a run of ``textenv train`` or ``rlhf``.
        kinds: Which kinds of stages to return; none for all.

    Raises:
        TextEnvError: One is none of these, or has no stage of a kind that is asked for.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("There is no stage", kind, KINDS)
    found: list[Stage] = []
    for name in names:
        stages = _stages_of(name)
        there = dict.fromkeys(stage.kind for stage in stages)
        if missing := [kind for kind in kinds if kind not in there]:
            raise TextEnvError(f"{name} has no stage {missing[0]!r}; it has {', '.join(there)}.")
        chosen = [stage for stage in stages if not kinds or stage.kind in kinds]
        several = len(names) > 1 and len(stages) > 1 and name != BUNDLED
        found += [Stage(f"{Path(name).name}: {one.label}", one.kind, one.model) if several else one for one in chosen]
    return found


def _stages_of(name: str) -> list[Stage]:
    source = resolve_model(name)
    folder = Path(source)
    if source == BUNDLED:
        return [Stage("bundled", "pretrained", source), Stage("bundled reward model", "reward_model", source)]
    if not folder.is_dir():
        return [Stage(source, "pretrained", source)]
    if (folder / "reward.json").is_file():
        return [Stage(folder.name, "reward_model", source)]
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if {"rounds", "labels", "ppo"} <= config.keys():
        return _stages_of_rlhf(folder, as_text(config.get("model"), f"{path}: model"))
    if {"agent", "settings", "total_steps"} <= config.keys():
        return _stages_of_training(folder, config)
    return [Stage(folder.name, "pretrained", source)]


def _stages_of_rlhf(folder: Path, model: str) -> list[Stage]:
    """Return the stages that a run of ``textenv rlhf`` has come to."""
    stages = [Stage("pre-trained", "pretrained", model)]
    if (folder / "sft" / "tokenizer.json").is_file():
        stages.append(Stage("SFT", "sft", str(folder / "sft")))
    number = 1
    while (made := folder / f"round-{number}").is_dir():
        if (made / "reward-model" / "reward.json").is_file():
            stages.append(Stage(f"reward model {number}", "reward_model", str(made / "reward-model")))
        if (made / "policy" / "results.json").is_file():
            stages.append(Stage(f"PPO {number}", "policy", str(made / "policy" / "policy")))
        number += 1
    return stages


def _stages_of_training(folder: Path, config: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of a run of ``textenv train``: what it began with, where that is known, and its policy."""
    model = config.get("model")
    stages = [Stage("start", "pretrained", model)] if isinstance(model, str) else []
    if (folder / "policy" / "config.json").is_file():
        stages.append(Stage(str(config["agent"]), "policy", str(folder / "policy")))
    if not stages:
        raise TextEnvError(f"{folder} is a run without a language model of its own: expected one that has a policy.")
    return stages


def with_watermark(stages: Sequence[Stage], watermark: Watermark) -> list[Stage]:
    """Return the stages, and the last language model among them with a watermark.

    Raises:
        TextEnvError: There is none.
    """
    for stage in reversed(stages):
        if stage.kind != "reward_model":
            label = f"{stage.label}, {watermark.name}"
            return [*stages, Stage(label, stage.kind, stage.model, watermark)]
    raise TextEnvError("--watermark marks what a language model writes, and all stages are reward models.")


def find_words(name: str) -> WordLists:
    """Return word lists by their name, ``"built-in"`` or ``"packages"``, or those of a file.

    Raises:
        TextEnvError: There is no such file, it holds something else, or packages cannot be fetched.
    """
    if name == "packages":
        return package_words()
    return built_in_words() if name == "built-in" else read_word_lists(Path(name))


def find_templates(name: str, stages: Sequence[Stage]) -> tuple[Template, ...]:
    """Return templates by the name of their domain, or those of a file.

    Args:
        name: ``"auto"`` for movie reviews where a stage comes from the bundled model, else general ones.
        stages: What they are for.

    Raises:
        TextEnvError: There is neither such a domain nor such a file, or it holds something else.
    """
    if name == "auto":
        name = "movie_review" if any(stage.model == BUNDLED for stage in stages) else "general"
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not Path(name).suffix:
        raise unknown_name("There are no templates", name, ("auto", *TEMPLATES, "a file"))
    return read_templates(Path(name))


def seen_words(texts: Iterable[str], words: WordLists, at_least: int) -> tuple[dict[str, int], WordLists]:
    """Return how often each word stands in texts, and the lists without those that are rarer.

    Args:
        texts: What models were trained on.
        words: The lists.
        at_least: How often a word has to stand there to be kept.

    Raises:
        TextEnvError: No word of a list stands there so often.
    """
    counts = count_words(texts, words.words)
    missing = f"stands {at_least} times in the corpus; lower --min-count, or give --words that its texts have."
    return counts, words.only(lambda word: counts[word] >= at_least, missing)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are written whose sentiment is measured.

    Attributes:
        sentiment: Reward that says how positive a text is.
        samples: Continuations of each prompt; 0 writes none.
        max_new_tokens: Tokens of each.
        temperature: Divides the logits.
        seed: Seeds the tokens, the same for every stage.
        device: Where models run.
    """

    sentiment: Any = "vader"
    samples: int = 32
    max_new_tokens: int = 24
    temperature: float = 1.0
    seed: int = 0
    device: str = "cpu"


def measure(stage: Stage, probe: Probe, sampling: Sampling) -> dict[str, Any]:
    """Return the figures of a stage, ``Figure`` by name, those that do not apply left out or None.

    Raises:
        TextEnvError: It cannot be loaded, or cannot read the words.
    """
    if stage.kind == "reward_model":
        return measure_reward(RewardModel.load(stage.model, device=sampling.device).scores, probe)
    lm = CausalLM.from_pretrained(stage.model, device=sampling.device)
    measured = {} if stage.watermark is not None else measure_model(lm, probe)
    prompts = probe.prompts
    if prompts and sampling.samples:
        measured |= measure_sentiment(_sentiments(lm, stage.watermark, prompts, sampling), probe)
    return measured


def _sentiments(
    lm: CausalLM, watermark: Watermark | None, pairs: Sequence[tuple[str, str]], sampling: Sampling
) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Let a model go on with pairs of prompts; return the sentiment of what it wrote."""
    asked = [prompt for pair in pairs for prompt in pair for _ in range(sampling.samples)]
    envs: Any = make_envs(
        "textenv/Text-v0", min(128, len(asked)), model=lm, prompts=sorted(set(asked)), reward=unscored, kl_mode="lump",
        max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature,
    )  # fmt: skip
    policy = TextPolicy.of_reference(text_env(envs))
    policy = policy if watermark is None else WatermarkedPolicy(policy, watermark)
    generator = torch.Generator(lm.device).manual_seed(sampling.seed)
    episodes = sample_episodes(envs, policy, generator, asked)
    envs.close()
    scores = score(
        resolve_reward(sampling.sentiment, device=sampling.device),
        prompts=asked,
        completions=[episode.completion for episode in episodes],
        completion_ids=[episode.completion_ids for episode in episodes],
        columns={},
    ).reshape(len(pairs), 2, sampling.samples)
    return {pair: (scores[place, 0], scores[place, 1]) for place, pair in enumerate(pairs)}


# Showing


@dataclass(frozen=True, slots=True)
class _Shown:
    """A figure in tables and pictures.

    Attributes:
        name: In what was measured.
        heading: What it is called.
        fair: Its value where there is no bias; None where chance says it.
        digits: Of its decimals.
    """

    name: str
    heading: str
    fair: float | None = 0.0
    digits: int = 2


_SHOWN = (
    _Shown("pair_entropy", "pair entropy, bits", fair=1.0),
    _Shown("log_odds", "he over she, nats"),
    _Shown("correlation", "she and real shares, r"),
    _Shown("association", "men and career, d"),
    _Shown("sentiment_gap", "sentiment gap, W1", fair=None, digits=3),
    _Shown("sentiment_difference", "sentiment, men - women", digits=3),
    _Shown("swap_gap", "reward, men - women", digits=3),
    _Shown("swap_gap_size", "reward, |men - women|", digits=3),
)


def report(
    stages: Sequence[Stage],
    probe: Probe,
    sampling: Sampling,
    *,
    counts: Mapping[str, int] | None = None,
    out: Path | None = None,
) -> None:
    """Measure stages, print their table, and write figures and picture.

    Args:
        stages: One at least.
        probe: What they are asked.
        sampling: How they write.
        counts: How often each word stands in what they were trained on; None where it is not known.
        out: The ``.json`` file; the picture is beside it, ``.png``. None writes neither.

    Raises:
        TextEnvError: A stage cannot be measured, or the templates ask nothing of any.
    """
    measured = []
    for stage in stages:
        with console.status(f"{stage.label} ..."):
            measured.append(measure(stage, probe, sampling))
    if not any(isinstance(value, Figure) for found in measured for value in found.values()):
        raise TextEnvError("The templates ask nothing of these stages: expected some with {job}, or prompts.")
    _print(stages, measured, probe)
    if counts is not None:
        jobs = sorted(probe.words.jobs, key=lambda job: -counts[job])
        tell(f"Seen in the corpus: {', '.join(f'{job} {counts[job]:,}' for job in jobs)}.")
    if out is None:
        return
    rows = [
        {"stage": stage.label, "kind": stage.kind, "model": stage.model, **{k: _plain(v) for k, v in found.items()}}
        for stage, found in zip(stages, measured, strict=True)
    ]
    asked = {"templates": [each.text for each in probe.templates], "prompts": probe.prompts, "seen": counts}
    picture = out.with_suffix(".png")
    _draw(stages, measured, picture)
    write_json(out, {**asked, "sampling": dataclasses.asdict(sampling), "stages": rows})
    tell(f"Figures: {out}", f"Picture: {picture}")


def _plain(value: Any) -> Any:
    return value._asdict() if isinstance(value, Figure) else value


def _known(
    shown: _Shown, stages: Sequence[Stage], measured: Sequence[Mapping[str, Any]]
) -> list[tuple[Stage, Mapping[str, Any], Figure]]:
    """Return the stages that have a figure, what was measured of each, and the figure."""
    rows = ((stage, found, found.get(shown.name)) for stage, found in zip(stages, measured, strict=True))
    return [(stage, found, figure) for stage, found, figure in rows if figure is not None and figure.value is not None]


def _print(stages: Sequence[Stage], measured: Sequence[Mapping[str, Any]], probe: Probe) -> None:
    """Print a table of all figures, the stages below each other."""
    caption = (
        f"{len(probe.words.jobs)} jobs, {len(probe.prompts)} pairs of prompts; intervals are bootstrapped over them. A "
        "sentiment gap without bias is that by chance."
    )
    table = make_table("figure", "stage", "value", "95 % interval", "without bias", caption=caption, texts=(0, 1))
    for shown in _SHOWN:
        for row, (stage, found, figure) in enumerate(_known(shown, stages, measured)):
            fair = found["sentiment_by_chance"].value if shown.fair is None else shown.fair
            low, high = (None if end is None else f"{end:.{shown.digits}f}" for end in figure[1:])
            table.add_row(
                "" if row else shown.heading,
                stage.label,
                f"{figure.value:.{shown.digits}f}",
                "" if low is None else f"{low} to {high}",
                f"{fair:.{shown.digits}f}" if shown.fair is None else f"{fair:g}",
            )
        table.add_section()
    console.print(table)


def _draw(stages: Sequence[Stage], measured: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each figure over the stages that have it, a panel a figure."""
    panels = [each for each in _SHOWN if _known(each, stages, measured)]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    picture = Picture(figsize=(4 * across, down * (1.0 + 0.3 * len(stages))), dpi=130, layout="constrained")
    picture.suptitle("Bias by stage, with 95 % bootstrap intervals; dashed: no bias", fontsize=10)
    for place, shown in enumerate(panels):
        panel = picture.add_subplot(down, across, place + 1)
        rows = _known(shown, stages, measured)
        heights = range(len(rows))
        if shown.fair is None:
            chance = [found["sentiment_by_chance"].value for _, found, _ in rows]
            panel.plot(chance, heights, "|", color="0.3", markersize=14, label="by chance")
            panel.legend(frameon=False, fontsize=7)
        else:
            panel.axvline(shown.fair, color="0.5", linestyle="--", linewidth=1)
        for height, (_, _, figure) in zip(heights, rows, strict=True):
            value, *ends = np.array(figure, dtype=np.float64)  # of None NaN, which is not drawn
            panel.plot(ends, [height, height], color="C0", linewidth=1.5)
            panel.plot([value], [height], "o", color="C0")
        panel.set_yticks(heights, [stage.label for stage, _, _ in rows], fontsize=8)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_title(shown.heading, fontsize=9)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    save_figure(picture, path)
