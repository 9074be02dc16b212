"""A training run in a folder: an agent trained, compared with its reference before and after, and all of it written.

The command line, and whatever trains agents one after the other, go through ``train``. Like ``textenv.cli`` it stands
above the layers, and knows agents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import gymnasium as gym
import numpy as np
import torch
import transformers
import tyro
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table

import textenv
from textenv.agents import config_of, find
from textenv.agents.ppo import PPOConfig
from textenv.distributed import ALONE, World
from textenv.files import locked, write_atomically
from textenv.models.policy import TextPolicy
from textenv.render import save_html
from textenv.rollouts import sample_episodes, text_env
from textenv.settings import TextEnvSettings
from textenv.tracking import RunLogger, comparison_markdown, comparison_table, plot_training
from textenv.types import Episode, Prompt, TextEnvError

__all__ = [
    "EnvFlags",
    "PPOFlags",
    "Train",
    "TrainEnvFlags",
    "check_settings",
    "console",
    "described",
    "held_out",
    "make_agent_config",
    "make_keywords",
    "mean_and_error",
    "parse_reward",
    "summary",
    "train",
]

console = Console()


def _flags(settings: type[Any], without: Sequence[str], **defaults: Any) -> type[Any]:
    """Return a dataclass of the fields of ``settings``, and their help, but for those the command line has itself."""
    hints = get_type_hints(settings)
    fields = [
        (f.name, hints[f.name], field(default=defaults.get(f.name, f.default)))
        for f in dataclasses.fields(settings)
        if f.name not in without
    ]
    made = dataclasses.make_dataclass(settings.__name__, fields, frozen=True)
    made.__doc__ = _inherited_help(settings)
    return made


def _inherited_help(settings: type[Any]) -> str:
    """Return the docstring of a dataclass with the attributes that its bases describe."""
    parts = [inspect.getdoc(cls) or "" for cls in settings.__mro__ if dataclasses.is_dataclass(cls)]
    return "\n".join([parts[0], *(part.partition("Attributes:\n")[2] for part in parts[1:])])


_HERE = ("model", "prompts", "reward")
if TYPE_CHECKING:
    EnvFlags = TextEnvSettings
    TrainEnvFlags = TextEnvSettings
    PPOFlags = PPOConfig
else:
    EnvFlags = _flags(TextEnvSettings, _HERE)
    TrainEnvFlags = _flags(TextEnvSettings, _HERE, kl_mode="lump")
    PPOFlags = _flags(PPOConfig, ["seed"])


@dataclass(frozen=True)
class Train:
    """Train an agent in a text environment; a run that was cut off goes on where it was.

    On several processes or GPUs: accelerate launch --multi_gpu --num_processes 2 -m textenv train ..., and --use_fsdp
    in place of --multi_gpu to share out optimizer state, gradients and parameters.

    Attributes:
        out: Folder of the run: metrics, checkpoints, the trained policy, before/after samples, the picture.
        env: Registered id of the environment.
        agent: Algorithm: a2c, best_of_n, expert_iteration, grpo, guided, mac, nlpo, online_dpo, ppo, reinforce, rloo,
            soft_q, or package.module:Class for your own.
        agent_settings: Settings of the agent, a JSON object; those of ppo have flags too.
        reward: Name of a reward, a JSON object with "name" and arguments, or package.module:attribute.
        model: Reference model and starting point: "bundled", a folder, or a Hugging Face id.
        prompts: File of prompts (.txt, .jsonl, .csv, .parquet); None for the environment's own.
        eval_prompts: File of held-out prompts for the before/after comparison; None for the environment's own.
        eval_episodes: Completions to compare on; every held-out prompt gets its share.
        total_steps: Tokens to write in training.
        num_envs: Episodes written side by side, an iteration's batch, in all processes together.
        seed: Seeds everything.
        checkpoint_every: Iterations between checkpoints.
        threads: Threads that torch computes with, in each process; None leaves that to torch.
        timeout: Seconds that the processes of a run wait for each other before they give up.
        settings: The environment's other settings.
        ppo: Settings of ppo.
    """

    out: Path
    env: str = "textenv/MovieReview-v0"
    agent: str = "ppo"
    agent_settings: str = "{}"
    reward: str = "learned"
    model: str = "bundled"
    prompts: Path | None = None
    eval_prompts: Path | None = None
    eval_episodes: int = 1024
    total_steps: int = 56_000
    num_envs: int = 128
    seed: int = 0
    checkpoint_every: int = 5
    threads: int | None = None
    timeout: float = 600.0
    settings: Annotated[TrainEnvFlags, tyro.conf.arg(name="")] = field(default_factory=TrainEnvFlags)
    ppo: Annotated[PPOFlags, tyro.conf.arg(name="")] = field(default_factory=PPOFlags)


def make_keywords(settings: EnvFlags, *, reward: str, model: str, prompts: Path | None) -> dict[str, Any]:
    """Return the keywords of ``gymnasium.make``: what differs from the environment's own defaults."""
    defaults = TextEnvSettings()
    given = dataclasses.asdict(settings)
    changed = {name: value for name, value in given.items() if value != getattr(defaults, name)}
    changed |= {"reward": parse_reward(reward), "model": model}
    return changed | ({"prompts": str(prompts)} if prompts else {})


def described(command: Any, without: Sequence[str] = ("out",)) -> dict[str, Any]:
    """Return the settings of a command, a dataclass, as JSON values, for the ``config.json`` of its folder."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(command), default=str))
    return {name: value for name, value in values.items() if name not in without}


def check_settings(out: Path, config: Mapping[str, Any]) -> None:
    """Check that a run in a folder, if there is one, was begun with these settings.

    Raises:
        TextEnvError: It was not.
    """
    if not (out / "config.json").exists():
        return
    if changed := _differences(json.loads((out / "config.json").read_text("utf-8")), config):
        raise TextEnvError(
            f"{out} holds an unfinished run with other settings ({', '.join(changed)}). Start it again with those "
            "it was started with, or give this one another folder with --out."
        )


def train(command: Train, world: World = ALONE) -> None:
    """Train an agent as a command says, or go on with it, and write what came of it.

    Raises:
        TextEnvError: The folder holds a finished run, or one with other settings; or a setting is not what is expected.
    """
    with locked(command.out) if world.first else contextlib.nullcontext():
        _train(command, world)


def _train(command: Train, world: World) -> None:
    out = command.out
    if (out / "results.json").exists():
        raise TextEnvError(f"{out} holds a finished run; give this one another folder with --out.")
    config = described(command, without=("out", "threads", "timeout"))
    check_settings(out, config)
    agent_config = make_agent_config(command)
    if command.threads:
        torch.set_num_threads(command.threads)
    keywords = make_keywords(command.settings, reward=command.reward, model=command.model, prompts=command.prompts)
    if world.device is not None and world.device.type != "cpu":
        keywords["device"] = str(world.device)
    rows = world.share("num_envs", command.num_envs)
    envs: Any = gym.make_vec(command.env, num_envs=rows, autoreset_mode=AutoresetMode.DISABLED, **keywords)
    agent = find(command.agent)(envs, agent_config, world=world)
    if world.size > 1:
        how = "FSDP" if world.sharded else "DDP"
        console.print(f"{world.size} processes of {rows} rows, {how}, this one on {world.device}.")
    if world.first:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "config.json", json.dumps(config, indent=2) + "\n")
    shared = {name: value for name, value in keywords.items() if name not in ("device", "torch_dtype")}
    fresh, prompts = held_out(command, {**shared, "model": text_env(envs).reference}, rows)
    reference = TextPolicy(text_env(fresh).reference, value="none", temperature=_temperature(fresh), trainable=False)
    before = sample_episodes(fresh, reference, _generator(fresh), prompts, world=world)
    checkpoints = out / "checkpoints"
    resumed = agent.resume(checkpoints, command.total_steps)
    if resumed:
        console.print(f"Going on from the checkpoint at {agent.steps:,} of {command.total_steps:,} tokens.")
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        logger = None
        if world.first:
            logger = stack.enter_context(RunLogger(out, total_steps=command.total_steps, resume_from=agent.steps))
        agent.learn(
            command.total_steps,
            progress=None if logger is None else logger.log,
            checkpoints=checkpoints,
            checkpoint_every=command.checkpoint_every,
        )
    seconds = time.perf_counter() - began
    agent.save(out / "policy")
    after = agent.sample(fresh, prompts, generator=_generator(fresh))
    if world.first:
        _report(out, before, after, {"seconds": seconds, "resumed": resumed, "steps": agent.steps})


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted({*earlier, *now}):
        old, new = earlier.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new)
        elif old != new:
            found.append(f"{prefix}{name} was {old!r}, is {new!r}")
    return found


def held_out(command: Train, keywords: Mapping[str, Any], rows: int) -> tuple[Any, list[Prompt]]:
    """Return an environment to compare in, with dense KL of its own, and the prompts to compare on."""
    keywords = {**keywords, "kl_mode": "lump"}
    if command.eval_prompts is not None:
        keywords["prompts"] = str(command.eval_prompts)
    elif command.prompts is None and command.env == "textenv/MovieReview-v0":
        keywords["split"] = "heldout"
    else:
        console.print("No held-out prompts (--eval-prompts): before and after are compared on the training prompts.")
    envs: Any = gym.make_vec(command.env, num_envs=rows, autoreset_mode=AutoresetMode.DISABLED, **keywords)
    prompts = text_env(envs).prompts
    return envs, [prompts[place % len(prompts)] for place in range(command.eval_episodes)]


def _temperature(envs: Any) -> float:
    return text_env(envs).settings.temperature


def _generator(envs: Any) -> torch.Generator:
    return torch.Generator(text_env(envs).reference.device).manual_seed(20_260)


def _report(out: Path, before: list[Episode], after: list[Episode], about: dict[str, Any]) -> None:
    results = {
        **about,
        "before": summary(before),
        "after": summary(after),
        "versions": {
            "textenv": textenv.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "gymnasium": gym.__version__,
        },
    }
    pairs = [episode for pair in zip(before[:16], after[:16], strict=True) for episode in pair]
    title = "Completions of held-out prompts, before and after training"
    save_html(out / "samples.html", pairs, title=title, captions=["before", "after"] * (len(pairs) // 2))
    write_atomically(out / "samples.md", comparison_markdown(before[:16], after[:16]))
    plot_training({out.name: out}, out / "training.png")
    console.print(comparison_table(before[:8], after[:8]))
    table = Table(title=f"{len(after)} fresh completions of held-out prompts")
    for name in ("", "score", "KL in nats", "tokens"):
        table.add_column(name, justify="right" if name else "left")
    for name in ("before", "after"):
        row = results[name]
        table.add_row(
            name, *(f"{row[key]['mean']:.3f} ± {row[key]['stderr']:.3f}" for key in ("score", "kl", "length"))
        )
    console.print(table)
    console.print(f"Trained {about['steps']:,} tokens in {about['seconds']:.0f} s. Picture: {out / 'training.png'}")
    write_atomically(out / "results.json", json.dumps(results, indent=2) + "\n")


def summary(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Return the number of episodes, and mean and standard error of their ``score``, ``kl`` (nats) and ``length``."""
    return {
        "episodes": len(episodes),
        "score": mean_and_error([episode.score for episode in episodes]),
        "kl": mean_and_error([math.fsum(episode.kl) for episode in episodes]),
        "length": mean_and_error([float(len(episode.completion_ids)) for episode in episodes]),
    }


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Return the mean of values and its standard error, under ``"mean"`` and ``"stderr"``."""
    return {"mean": float(np.mean(values)), "stderr": float(np.std(values, ddof=1) / math.sqrt(len(values)))}


def make_agent_config(command: Train) -> Any:
    """Return the settings of the agent that a command names.

    Raises:
        TextEnvError: There is no such agent, a setting is not what is expected, or a flag is not the agent's.
    """
    try:
        settings = json.loads(command.agent_settings)
    except json.JSONDecodeError as error:
        raise TextEnvError(f"--agent-settings {command.agent_settings}: expected a JSON object ({error}).") from error
    if not isinstance(settings, dict):
        raise TextEnvError(f"--agent-settings {command.agent_settings}: expected a JSON object.")
    if "seed" in settings:
        raise TextEnvError("--agent-settings holds a seed; give it as --seed, which seeds all of the run.")
    flags = dataclasses.asdict(command.ppo)
    if command.agent == "ppo":
        settings = {**flags, **settings}
    elif changed := [name for name, value in flags.items() if value != getattr(PPOConfig(), name)]:
        raise TextEnvError(
            f"--{changed[0].replace('_', '-')} is a flag of ppo; for {command.agent} give "
            f"--agent-settings '{json.dumps({name: flags[name] for name in changed})}'."
        )
    return config_of(find(command.agent), {**settings, "seed": command.seed})


def parse_reward(reward: str) -> Any:
    """Return the specification of a reward that was typed: a name, or the mapping that a JSON object stands for."""
    if not reward.startswith("{"):
        return reward
    try:
        return json.loads(reward)
    except json.JSONDecodeError as error:
        raise TextEnvError(f"--reward {reward}: begins like a JSON object, and is none ({error}).") from error
