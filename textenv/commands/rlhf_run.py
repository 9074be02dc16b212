"""The pipeline of ``textenv rlhf``: sample, have people rank, train a reward model, train the policy, and repeat.

Ziegler et al. 2019 and Ouyang et al. 2022; going round again with rankings of the newest policy's texts, each policy
trained from the same start, is what Bai et al. 2022 (arXiv:2204.05862, section 4.5) call iterated online RLHF.

Everything is in one folder. ``feedback.db`` holds who ranked what, what each reward model was trained on, and what each
policy was trained against. A stage is done when what it makes is there, whole: a run that was killed, or that waits for
people, goes on with the stage that is missing when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from textenv.agents.ppo import PPO, PPOConfig
from textenv.analysis.bias_measures import Probe
from textenv.commands.bias_run import Sampling, find_stages, find_templates
from textenv.commands.bias_run import report as report_bias
from textenv.commands.console import console
from textenv.commands.flags import TRAINING, make_keywords, parse_reward
from textenv.commands.rlhf_report import report
from textenv.commands.settings import RlhfSettings, TrainSettings
from textenv.commands.training_run import held_out, made_with, measured_on, plain_settings, train
from textenv.data.files import locked, read_json, to_json, write_json
from textenv.data.word_lists import built_in_words
from textenv.env.registry import make_envs
from textenv.env.scoring import resolve_reward, score, unscored
from textenv.env.settings import unshaped
from textenv.feedback.annotators import STAND_IN, FromReward, annotate
from textenv.feedback.demonstrations import with_stores_read
from textenv.feedback.noise import expected_agreement
from textenv.feedback.store import FeedbackStore
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import resolve_model, resolve_models_in
from textenv.models.policy import TextPolicy
from textenv.recipes import find as find_recipe
from textenv.recipes.base import Data, Recipe
from textenv.rollouts.collect import sample_episodes, text_env
from textenv.rollouts.runs import check_settings, described, mean_and_error, summary
from textenv.training.configs import RewardModelConfig, SftConfig
from textenv.training.reward_models import train_reward_model
from textenv.training.sft import sft, with_template
from textenv.types import Episode, Prompt, TextEnvError

__all__ = ["Measure", "resolve", "rlhf", "training_settings", "with_data"]

_START = "start"  # the name of the policy before the first round
_LAST_FILE = "tokenizer.json"  # that ``sft`` writes, so that the model is whole when it is there
_BIAS_FILE = "bias.json"
_DATA_FILE = "data.json"  # names the files of a recipe, and is written when they are whole
_PAIRS = 256  # held-out prompts that a reward model is measured on
_IN_A_BATCH = 64  # prompts that are sampled before the next task is made


def rlhf(config: RlhfSettings) -> bool:
    """Run the pipeline, or go on with it, as far as it comes without people.

    Returns:
        Whether it is finished; if not, rankings are missing, and it was said how to give them.

    Raises:
        TextEnvError: The folder holds a run with other settings, or a stage cannot do its work.
    """
    if "world" in config.settings:
        raise TextEnvError("--world: people rank the completions of a prompt, which no world answers; leave it out.")
    config = resolve(config)
    with locked(config.out):
        return _rlhf(*with_data(config))


def resolve(config: RlhfSettings) -> RlhfSettings:
    """Return settings with the recipe's sizes in the places of those not given, and with models as they are found."""
    if config.recipe is not None:
        sizes = find_recipe(config.recipe).sized(quick=config.quick)
        config = dataclasses.replace(config, settings={**sizes.env, **config.settings}, ppo={**sizes.ppo, **config.ppo})
    config = dataclasses.replace(config, model=resolve_model(config.model))
    if config.gold is not None and config.gold.startswith(("{", "[")):
        config = dataclasses.replace(config, gold=to_json(resolve_models_in(parse_reward(config.gold))))
    return config


def with_data(config: RlhfSettings) -> tuple[RlhfSettings, Recipe | None, Data]:
    """Return settings with the recipe's files where none were given, the recipe, and its files, written if need be."""
    recipe, data = _recipe_data(config)
    ppo = dict(config.ppo)
    if data.ptx_files and config.ppo.get("ptx_coef"):
        ppo = {"ptx_files": tuple(map(str, data.ptx_files)), **ppo}
    filled = dataclasses.replace(
        config,
        sft=config.sft or data.sft,
        prompts=config.prompts or data.prompts,
        eval_prompts=config.eval_prompts or data.eval_prompts,
        ppo=ppo,
    )
    return filled, recipe, data


def _recipe_data(config: RlhfSettings) -> tuple[Recipe | None, Data]:
    """Return the recipe, if there is one, and the files that it has written, now or when the run began."""
    if config.recipe is None:
        return None, Data()
    recipe, folder = find_recipe(config.recipe), config.out / "data"
    if not (folder / _DATA_FILE).exists():
        if (config.out / "config.json").exists():
            raise TextEnvError(
                f"{config.out} holds a run without the data of the recipe {config.recipe!r}; give this one another "
                "folder with --out."
            )
        console.rule(f"Data of the recipe {config.recipe}")
        folder.mkdir(parents=True, exist_ok=True)
        data = recipe.prepare(folder, quick=config.quick, seed=config.seed)
        write_json(folder / _DATA_FILE, data.to_json(folder))
    return recipe, Data.from_json(read_json(folder / _DATA_FILE), folder)


def _rlhf(config: RlhfSettings, recipe: Recipe | None, data: Data) -> bool:
    out = config.out
    if config.gold is not None:
        resolve_reward(parse_reward(config.gold))  # or it would be found wanting after the first stages
    typed = _keywords(config, config.model, unscored)
    envs: Any = make_envs(config.env, 1, **{**typed, **_as_fine_tuned(config)})
    training = {**TRAINING, **config.settings}
    if text_env(envs).worlds is not None:
        raise TextEnvError(
            f"env={config.env!r}: people rank the completions of a prompt, and in it a world answers; take another."
        )
    settings = described(config, without=("out", "bias")) | {
        "settings": made_with(envs, typed) | {"kl_mode": training["kl_mode"]},
        "ppo": plain_settings(PPOConfig(**config.ppo)),
    }
    envs.close()
    check_settings(out, settings)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", settings)
    base = _fine_tuned(config)
    with FeedbackStore(config.store) as store:
        start = store.add_policy(_START, folder=base)
        writers: list[_Writer] = [_Writer(start, None)]
        measure = Measure(config, base, recipe, data)
        rows = [measure.policy(None, "null", out / "start.json")]
        judged = list[dict[str, Any] | None]()
        for number in range(1, config.rounds + 1):
            folder = config.round(number).resolve()
            _ask(config, store, base, writers[-2:], number)
            if not _judged(config, store, number, measure.gold):
                return False
            model = _reward_model(config, store, base, folder / "reward-model", number)
            reward = to_json(measure.paid({"name": "learned", "model": str(folder / "reward-model")}))
            judged.append(measure.reward_model(writers[-1].folder, reward, folder / "reward-model.json"))
            policy = _trained(config, base, reward, number)
            name = f"round {number}"
            writers.append(
                _Writer(store.add_policy(name, folder=str(policy.resolve()), parent=start, reward_model=model), policy)
            )
            rows.append(measure.policy(policy, reward, folder / "figures.json"))
        demonstrations = measure.demonstrations(out / "demonstrations.json")
    labels = [sum(_share(config, each) for each in range(1, number + 1)) for number in range(len(rows))]
    prompts = measured_on(training_settings(config, config.model, "", config.out))
    title = f"{config.eval_episodes} fresh completions of {prompts}"
    report(out, rows, labels, demonstrations=demonstrations, judged=judged, title=title)
    if config.bias and not (out / _BIAS_FILE).exists():
        _measure_bias(config)
    return True


@dataclass(frozen=True)
class _Writer:
    """A policy: its number in the store, and its folder; None for the model that all start from."""

    number: int
    folder: Path | None


def _as_fine_tuned(config: RlhfSettings) -> dict[str, Any]:
    """Return the keyword for the model with the chat template that fine-tuning gives it; none without fine-tuning."""
    if not config.sft:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        found = with_stores_read(SftConfig(model=config.model, files=config.sft, out=Path(folder)))
        return {"model": with_template(CausalLM.from_pretrained(config.model), found.files)}


def _fine_tuned(config: RlhfSettings) -> str:
    """Return the model that all policies start from."""
    if not config.sft:
        return config.model
    out = (config.out / "sft").resolve()
    if (out / _LAST_FILE).exists():
        return str(out)
    console.rule("Supervised fine-tuning")
    return str(
        sft(
            with_stores_read(
                SftConfig(
                    model=config.model,
                    files=config.sft,
                    out=out,
                    epochs=config.sft_epochs,
                    learning_rate=config.sft_learning_rate,
                    max_tokens=config.sft_max_tokens,
                    seed=config.seed,
                )
            )
        )
    )


def training_settings(config: RlhfSettings, base: str, reward: str, out: Path) -> TrainSettings:
    """Return a training run with the settings of the pipeline."""
    return TrainSettings(
        out=out,
        env=config.env,
        reward=reward,
        model=base,
        prompts=config.prompts,
        eval_prompts=config.eval_prompts,
        eval_episodes=config.eval_episodes,
        total_steps=config.total_steps,
        num_envs=config.num_envs,
        seed=config.seed,
        settings=config.settings,
        agent_flags=config.ppo,
    )


def _keywords(config: RlhfSettings, base: str, reward: Any) -> dict[str, Any]:
    keywords = make_keywords(config.settings, reward=None, model=base, prompts=config.prompts)
    return {**keywords, "reward": reward, "kl_mode": "lump"}


def _load(writer: Path | None, envs: Any) -> TextPolicy:
    if writer is not None:
        return PPO.load(writer, envs).policy
    base = text_env(envs)
    return TextPolicy.of_reference(base)


# Sampling and ranking


def _share(config: RlhfSettings, number: int) -> int:
    """Return how many rankings round ``number`` asks for."""
    return config.labels * number // config.rounds - config.labels * (number - 1) // config.rounds


def _of_round(store: FeedbackStore, number: int) -> list[int]:
    """Return the tasks of a round, which their priority tells."""
    return [task.id for task in store.tasks() if task.priority == -number]


def _ask(config: RlhfSettings, store: FeedbackStore, base: str, writers: Sequence[_Writer], number: int) -> None:
    """Have the newest policy, and its predecessor, complete prompts, and ask to rank what they wrote."""
    wanted = _share(config, number)
    if len(_of_round(store, number)) >= wanted:
        return
    console.rule(f"Round {number} of {config.rounds}: {wanted} tasks of {config.samples} completions")
    envs: Any = make_envs(
        config.env,
        config.num_envs,
        **unshaped(_keywords(config, base, unscored)),
    )
    policies = [_load(writer.folder, envs) for writer in writers]
    shares = [config.samples // 2, config.samples - config.samples // 2] if len(writers) == 2 else [config.samples]
    # A number for each batch, so that a run that goes on draws what it would have drawn.
    batch, fruitless = 0, 0
    tasks: list[tuple[Prompt, _Texts]] = []
    while (missing := wanted - len(tasks)) > 0:  # others write to the store meanwhile: nothing is written yet
        rng = random.Random(f"{config.seed}/{number}/{batch}")
        prompts = [rng.choice(text_env(envs).prompts) for _ in range(min(missing, _IN_A_BATCH))]
        written = []
        for writer, policy, share in zip(writers, policies, shares, strict=True):
            generator = torch.Generator(policy.lm.device).manual_seed(rng.getrandbits(60))
            repeated = [prompt for prompt in prompts for _ in range(share)]
            written.append((writer, sample_episodes(envs, policy, generator, repeated), share))
        found = [(prompt, _different(place, written)) for place, prompt in enumerate(prompts)]
        made = [(prompt, texts) for prompt, texts in found if len(texts) > 1]
        tasks += made
        batch, fruitless = batch + 1, 0 if made else fruitless + 1
        if fruitless == 20:
            raise TextEnvError(
                f"Round {number}: all completions of a prompt are the same, {fruitless} batches in a row; there is "
                "nothing to rank. Raise kl_coef or temperature, or take fewer rounds."
            )
    with store.transaction():  # all tasks of a round, or none
        for prompt, texts in tasks:
            asked = store.add_prompt(prompt.text if prompt.given is None else prompt.given, columns=prompt.columns)
            items = [
                store.add_completion(asked, text, policy=author, details={"token_ids": list(episode.completion_ids)})
                for text, (author, episode) in texts.items()
            ]
            store.add_task(items, priority=-number)  # earlier rounds first


_Texts: TypeAlias = dict[str, tuple[int, Episode]]
"""Completions of a prompt by what they say: the number of the policy that wrote each first, and its episode."""


def _different(place: int, written: Sequence[tuple[_Writer, Sequence[Episode], int]]) -> _Texts:
    """Return the different texts that were written for the prompt at a place."""
    texts: _Texts = {}
    for writer, episodes, share in written:
        for episode in episodes[place * share : (place + 1) * share]:
            texts.setdefault(episode.completion, (writer.number, episode))
    return texts


def _judged(config: RlhfSettings, store: FeedbackStore, number: int, gold: Any) -> bool:
    """Have the stand-in rank, if there is one; return whether all tasks of a round are judged."""
    if config.gold is not None:
        judge = FromReward(resolve_reward(gold), temperature=config.gold_temperature, best_only=config.judged == "best")
        annotate(store, judge, STAND_IN, seed=config.seed)
    tasks = set(_of_round(store, number))
    missing = len(tasks - {judgement.task for judgement in store.judgements()})
    if missing:
        console.print(
            f"Round {number}: {missing} of {len(tasks)} rankings are missing. Give them on the page of\n"
            f"  textenv label {config.store}\nand then start this command again.",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    return not missing


# Training


def _reward_model(config: RlhfSettings, store: FeedbackStore, base: str, out: Path, number: int) -> int:
    """Train a reward model on all rankings so far; return its number in the store."""
    for known in store.reward_models():
        if known.folder == str(out):
            return known.id
    tasks = {task for each in range(1, number + 1) for task in _of_round(store, each)}
    learned = [(judgement, ranking) for judgement, ranking in store.rankings() if judgement.task in tasks]
    if not learned:
        raise TextEnvError(f"Round {number}: no judgement ranks anything, so that there is nothing to learn.")
    console.rule(f"Round {number} of {config.rounds}: the reward model, of {len(learned)} rankings")
    report = train_reward_model(
        RewardModelConfig(
            model=base,
            epochs=config.reward_epochs,
            learning_rate=config.reward_learning_rate,
            batch_size=16 * config.samples,
            loss="plackett_luce" if config.judged == "best" else "pairs",
            seed=config.seed,
            device=config.settings.get("device") or "cpu",
        ),
        [ranking for _, ranking in learned],
        out=out,
    )
    return store.add_reward_model(
        out, judgements=[judgement.id for judgement, _ in learned], details={"comparisons": report.comparisons}
    )


def _trained(config: RlhfSettings, base: str, reward: str, number: int) -> Path:
    """Train the policy of a round; return its folder."""
    out = config.round(number) / "policy"
    if not (out / "results.json").exists():
        console.rule(f"Round {number} of {config.rounds}: the policy")
        train(training_settings(config, base, reward, out))
    return out / "policy"


# Measuring


@dataclass(frozen=True)
class Measure:
    """Measures policies on held-out prompts, and keeps what was measured.

    Attributes:
        config: Settings of the pipeline.
        base: Folder of the model that the policies start from.
        recipe: The recipe, which has measures of its own; None without one.
        data: Its files.
    """

    config: RlhfSettings
    base: str
    recipe: Recipe | None
    data: Data

    def paid(self, spec: Any) -> Any:
        """Return a reward as the recipe pays it."""
        return spec if self.recipe is None else self.recipe.reward(spec, self.base)

    @property
    def gold(self) -> Any:
        """The reward that stands in for people; None without one."""
        return None if self.config.gold is None else self.paid(parse_reward(self.config.gold))

    def policy(self, policy: Path | None, reward: str, path: Path) -> dict[str, Any]:
        """Return the figures of a policy, measured or read from where they are kept.

        Args:
            policy: Its folder; None for the model that the policies start from.
            reward: What it is trained against, as JSON.
            path: Where the figures are kept.

        Returns:
            ``proxy``, the score by that reward, ``gold``, ``kl`` and ``length``, each a mean with its error; the gold
            ``scores`` of all prompts; and what the recipe measures, under ``measures``.
        """
        if path.exists():
            return read_json(path, "proxy", "gold", "kl", "length")
        config = self.config
        envs, prompts = self._prompts(unscored if policy is None else parse_reward(reward), path)
        writer = _load(policy, envs)
        generator = torch.Generator(writer.lm.device).manual_seed(20_261)
        episodes = sample_episodes(envs, writer, generator, prompts)
        found = summary(episodes)
        row: dict[str, Any] = {
            "proxy": None if policy is None else found["score"],
            "gold": None,
            "kl": found["kl"],
            "length": found["length"],
        }
        if config.gold is not None:
            scores = self._gold(prompts, [(episode.completion, episode.completion_ids) for episode in episodes])
            row |= {"gold": mean_and_error(scores), "scores": scores}
        if self.recipe is not None:
            of_recipe = self.recipe.measure(writer, self.data, seed=config.seed)
            row["measures"] = {name: mean_and_error(list(values)) for name, values in of_recipe.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, row)
        return row

    def reward_model(self, writer: Path | None, reward: str, path: Path) -> dict[str, Any] | None:
        """Return how often a reward model and the stand-in agree on pairs of a policy's texts; None without one.

        Args:
            writer: The policy that writes two texts for each of some held-out prompts, as the rankings were of.
            reward: The reward model.
            path: Where the figures are kept.
        """
        if self.config.gold is None:
            return None
        if path.exists():
            return read_json(path, "model", "ceiling", "judges")
        envs, prompts = self._prompts(parse_reward(reward), path)
        policy = _load(writer, envs)
        generator = torch.Generator(policy.lm.device).manual_seed(20_262)
        asked = [prompt for prompt in prompts[:_PAIRS] for _ in range(2)]
        episodes = sample_episodes(envs, policy, generator, asked)
        gold = self._gold(asked, [(episode.completion, episode.completion_ids) for episode in episodes])
        pairs = [
            place
            for place in range(0, len(episodes), 2)
            if episodes[place].completion != episodes[place + 1].completion  # nobody would be asked
        ]
        found = expected_agreement(
            [(gold[place], gold[place + 1]) for place in pairs],
            self.config.gold_temperature,
            [(episodes[place].earned, episodes[place + 1].earned) for place in pairs],
        )
        row = {name: mean_and_error(values) if values else None for name, values in found.items()}
        write_json(path, row)
        return row

    def demonstrations(self, path: Path) -> dict[str, Any] | None:
        """Return the gold scores of what demonstrations say after the held-out prompts; None without them."""
        if self.config.gold is None or self.data.eval_prompts is None:
            return None
        if path.exists():
            return read_json(path, "gold", "scores")
        envs, prompts = self._prompts(unscored, path)
        texts = [str(prompt.columns["completion"]) for prompt in prompts if "completion" in prompt.columns]
        if len(texts) < len(prompts):
            return None
        encode = text_env(envs).reference.tokenizer.encode
        scores = self._gold(prompts, [(text, encode(text, add_special_tokens=False)) for text in texts])
        row = {"gold": mean_and_error(scores), "scores": scores}
        write_json(path, row)
        return row

    def _prompts(self, reward: Any, path: Path) -> tuple[Any, list[Prompt]]:
        config = self.config
        keywords = _keywords(config, self.base, reward)
        envs, found = held_out(training_settings(config, self.base, "null", path), keywords, config.num_envs)
        return envs, [prompt for prompt in found if isinstance(prompt, Prompt)]

    def _gold(self, prompts: Sequence[Prompt], written: Sequence[tuple[str, Sequence[int]]]) -> list[float]:
        given = [prompt.for_reward(text) for prompt, (text, _) in zip(prompts, written, strict=True)]
        names = sorted({name for prompt in prompts for name in prompt.columns})
        scores: list[float] = score(
            resolve_reward(self.gold),
            prompts=[prompt for prompt, _ in given],
            completions=[completion for _, completion in given],
            completion_ids=[ids for _, ids in written],
            columns={name: [prompt.columns.get(name) for prompt in prompts] for name in names},
        ).tolist()
        return scores


def _measure_bias(config: RlhfSettings) -> None:
    """Measure the bias of every stage, with our own words."""
    console.rule("Bias of every stage")
    stages = find_stages([str(config.out)])
    probe = Probe(built_in_words(), find_templates("auto", stages), config.seed)
    sampling = Sampling(seed=config.seed, device=config.settings.get("device") or "cpu")
    report_bias(stages, probe, sampling, out=config.out / _BIAS_FILE)
