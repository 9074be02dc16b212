"""A training run in a folder: an agent trained, compared with its reference before and after, and all of it written.

The command line, and whatever trains agents one after the other, go through ``train``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_type_hints

import gymnasium as gym
import torch
import transformers
import tyro
from gymnasium.vector import AutoresetMode
from rich.table import Table

import textenv
from textenv.agents import config_of, find
from textenv.agents.ppo import PPOConfig
from textenv.data.files import locked, to_json, write_atomically, write_json
from textenv.env.render import save_html
from textenv.env.settings import TextEnvSettings, check_counts
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import sample_episodes, text_env
from textenv.rollouts.distributed import ALONE, World
from textenv.rollouts.runs import check_settings, described, figure_text, summary
from textenv.rollouts.tracking import RunLogger, SafeConsole, comparison_markdown, comparison_table, plot_training
from textenv.types import Episode, Prompt, TextEnvError

__all__ = [
    "EnvFlags",
    "PPOFlags",
    "Train",
    "TrainEnvFlags",
    "console",
    "held_out",
    "made_with",
    "make_agent_config",
    "make_keywords",
    "parse_reward",
    "ppo_settings",
    "train",
]

console = SafeConsole()


def _flags(settings: type[Any], without: Sequence[str], hint: str, **defaults: Any) -> Any:
    """Return a mapping type of the fields of the dataclass ``settings``, with their help.

    Its values hold what was typed and nothing else, also where that equals a default.

    Args:
        settings: The dataclass.
        without: Fields that the command line has itself.
        hint: What the help says after a default.
        **defaults: Defaults of the command that are not those of ``settings``.
    """
    hints, described = get_type_hints(settings), _inherited_help(settings)
    fields = {}
    for each in dataclasses.fields(settings):
        if each.name not in without:
            default = defaults.get(each.name, f"{each.default}{hint}")
            about = tyro.conf.arg(help=described[each.name], help_behavior_hint=f"(default: {default})")
            fields[each.name] = Annotated[hints[each.name], about]
    make: Any = TypedDict
    return make(f"{settings.__name__}Flags", fields, total=False)


def _inherited_help(settings: type[Any]) -> dict[str, str]:
    """Return what the docstrings of a dataclass and its bases say of each attribute."""
    found: dict[str, str] = {}
    for cls in reversed([cls for cls in settings.__mro__ if dataclasses.is_dataclass(cls)]):
        attributes = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n(?:        .*|$))*)", attributes, re.M):
            found[name] = " ".join(text.split())
    return found


_HERE = ("model", "prompts", "reward")
_TRAINING: dict[str, Any] = {"kl_mode": "lump"}  # costs an agent of ours less, and pays an episode the same
if TYPE_CHECKING:
    EnvFlags = dict[str, Any]
    TrainEnvFlags = dict[str, Any]
    PPOFlags = dict[str, Any]
else:
    EnvFlags = _flags(TextEnvSettings, _HERE, ", or the environment's own")
    TrainEnvFlags = _flags(TextEnvSettings, _HERE, ", or the environment's own", **_TRAINING)
    PPOFlags = _flags(PPOConfig, ["seed"], "")


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
        reward: Name of a reward, a JSON object with "name" and arguments, or package.module:attribute; None for the
            environment's own.
        model: Reference model and starting point: "bundled", a folder, or a Hugging Face id; None for the
            environment's own.
        prompts: File of prompts (.txt, .jsonl, .json, .csv, .parquet); None for the environment's own.
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
    reward: str | None = None
    model: str | None = None
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


def make_keywords(
    settings: Mapping[str, Any], *, reward: str | None, model: str | None, prompts: Path | None
) -> dict[str, Any]:
    """Return the keywords of ``gymnasium.make``: what was typed. The rest is the environment's own."""
    given = {
        "reward": None if reward is None else parse_reward(reward),
        "model": model,
        "prompts": None if prompts is None else str(prompts),
    }
    return {**settings, **{name: value for name, value in given.items() if value is not None}}


def made_with(envs: Any, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a text environment as they are, as JSON values, for the ``config.json`` of a run.

    Args:
        envs: The environment.
        typed: The keywords that it was made with; where it runs, ``device``, is what they say.
    """
    settings = text_env(envs).settings
    names = [each.name for each in dataclasses.fields(settings) if each.name not in _HERE]
    found = {name: getattr(settings, name) for name in names} | {"device": typed.get("device")}
    plain: dict[str, Any] = json.loads(to_json(found, default=str))
    return plain


def ppo_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ppo, as JSON values, with what was typed."""
    config = {**dataclasses.asdict(PPOConfig()), **flags}
    del config["seed"]
    plain: dict[str, Any] = json.loads(to_json(config))
    return plain


def _plain_or_none(value: Any) -> Any:
    """Return a value that is JSON; None for an object, which the environment's id makes again."""
    try:
        return json.loads(to_json(value))
    except TypeError:
        return None


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
    check_counts(command, "eval_episodes", "total_steps", "num_envs", "checkpoint_every", "threads")
    agent_config = make_agent_config(command)
    if command.threads:
        torch.set_num_threads(command.threads)
    typed = make_keywords(command.settings, reward=command.reward, model=command.model, prompts=command.prompts)
    keywords = {**_TRAINING, **typed}
    if world.device is not None and world.device.type != "cpu":
        keywords["device"] = str(world.device)
    rows = world.share("num_envs", command.num_envs)
    envs: Any = gym.make_vec(command.env, num_envs=rows, autoreset_mode=AutoresetMode.DISABLED, **keywords)
    config = described(command, without=("out", "threads", "timeout"))
    config |= {"settings": made_with(envs, typed), "ppo": ppo_settings(command.ppo)}
    for name in ("reward", "model"):
        if config[name] is None:
            config[name] = _plain_or_none(getattr(text_env(envs).settings, name))
    check_settings(out, config)
    agent = find(command.agent)(envs, agent_config, world=world)
    if world.size > 1:
        how = "FSDP" if world.sharded else "DDP"
        console.print(f"{world.size} processes of {rows} rows, {how}, this one on {world.device}.")
    if world.first:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", config)
    shared = {name: value for name, value in keywords.items() if name not in ("device", "torch_dtype")}
    fresh, prompts = held_out(command, {**shared, "model": text_env(envs).reference}, rows)
    reference = TextPolicy.of_reference(text_env(fresh))
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
        table.add_row(name, *(figure_text(row[key]) for key in ("score", "kl", "length")))
    console.print(table)
    console.print(f"Trained {about['steps']:,} tokens in {about['seconds']:.0f} s. Picture: {out / 'training.png'}")
    write_json(out / "results.json", results)


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
    flags = dict(command.ppo)
    if flags and command.agent != "ppo":
        raise TextEnvError(
            f"--{next(iter(flags)).replace('_', '-')} is a flag of ppo; for {command.agent} give "
            f"--agent-settings '{to_json(flags)}'."
        )
    if twice := sorted(set(flags) & set(settings)):
        raise TextEnvError(
            f"--{twice[0].replace('_', '-')} and --agent-settings both say {twice[0]}; give it in one of them."
        )
    settings = {**flags, **settings}
    return config_of(find(command.agent), {**settings, "seed": command.seed})


def parse_reward(reward: str) -> Any:
    """Return the specification of a reward that was typed: a name, or the mapping that a JSON object stands for."""
    if not reward.startswith("{"):
        return reward
    try:
        return json.loads(reward)
    except json.JSONDecodeError as error:
        raise TextEnvError(f"--reward {reward}: begins like a JSON object, and is none ({error}).") from error
