"""A training run in a folder: train an agent, compare it with its reference before and after, and write the results.

``textenv train`` and ``textenv rlhf`` go through ``train``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
import transformers

import textenv
from textenv.agents import config_of, find
from textenv.agents.config import MAY_CHANGE
from textenv.commands.console import console, tell
from textenv.commands.flags import ENV_FIELDS, TRAINING, json_object, make_keywords
from textenv.commands.settings import TrainSettings
from textenv.data.files import locked, to_json, write_atomically, write_json
from textenv.env.registry import make_envs, record_of
from textenv.env.render import save_html
from textenv.env.settings import POTENTIAL_SETTINGS, WORLD_SETTINGS, unshaped
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import episode_starts, sample_episodes, text_env
from textenv.rollouts.distributed import ALONE, Processes
from textenv.rollouts.runs import check_settings, described, figure_text, summary
from textenv.rollouts.tables import make_table
from textenv.rollouts.tracking import RunLogger, comparison_markdown, comparison_table, plot_training
from textenv.types import Episode, Prompt, TextEnvError

__all__ = ["agent_config", "held_out", "made_with", "measured_on", "plain_settings", "train"]


def made_with(envs: Any, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a text environment as they are, as JSON values, for the ``config.json`` of a run.

    Args:
        envs: The environment.
        typed: The keywords that it was made with; where it runs, ``device``, is what they say.
    """
    settings = text_env(envs).settings
    silent = ENV_FIELDS if settings.world is not None else (*ENV_FIELDS, *WORLD_SETTINGS)
    silent = silent if settings.potential is not None else (*silent, *POTENTIAL_SETTINGS)
    names = [each.name for each in dataclasses.fields(settings) if each.name not in silent]
    found = {name: getattr(settings, name) for name in names} | {"device": typed.get("device")}
    if "potential" in found:
        found["potential"] = _plain_or_none(found["potential"])
    plain: dict[str, Any] = json.loads(to_json(found, default=str))
    return plain


def plain_settings(config: Any) -> dict[str, Any]:
    """Return the settings of an agent as JSON values, without the seed, which is that of the run.

    What a run may go on with otherwise is left out, since a folder is known by the rest.
    """
    plain: dict[str, Any] = json.loads(to_json(dataclasses.asdict(config)))
    return {name: value for name, value in plain.items() if name not in ("seed", *MAY_CHANGE)}


def _plain_or_none(value: Any) -> Any:
    """Return a value that is JSON; None for an object, which the environment's id makes again."""
    try:
        return json.loads(to_json(value))
    except TypeError:
        return None


def train(command: TrainSettings, processes: Processes = ALONE) -> None:
    """Train an agent as a command says, or go on with it, and write what came of it.

    Raises:
        TextEnvError: The folder holds a finished run, or one with other settings; or a setting is not what is expected.
    """
    with contextlib.ExitStack() as stack:
        refused = None
        if processes.first:
            try:
                stack.enter_context(locked(command.out))
            except TextEnvError as error:
                refused = error
        if any(processes.gather(refused is not None)):  # all processes end, and none waits for the first
            raise refused or TextEnvError(f"Process {processes.rank} of {processes.size} ends, as the first one does.")
        _train(command, processes)


def _train(command: TrainSettings, processes: Processes) -> None:
    out = command.out
    if (out / "results.json").exists():
        raise TextEnvError(f"{out} holds a finished run; give this one another folder with --out.")
    own = agent_config(command)
    typed = make_keywords(command.settings, reward=command.reward, model=command.model, prompts=command.prompts)
    keywords = {**TRAINING, **typed}
    if processes.device is not None and processes.device.type != "cpu":
        keywords["device"] = str(processes.device)
    rows = processes.share("num_envs", command.num_envs)
    envs: Any = make_envs(command.env, rows, **keywords)
    config = described(command, without=("out", "threads", "timeout", "agent_flags"))
    config |= {"settings": made_with(envs, typed), "agent_settings": plain_settings(own)}
    for name in ("reward", "model"):
        config[name] = _plain_or_none(typed.get(name, getattr(text_env(envs).settings, name)))
    check_settings(out, config)
    agent = find(command.agent)(envs, own, processes=processes)
    if processes.size > 1:
        how = "FSDP" if processes.sharded else "DDP"
        tell(f"{processes.size} processes of {rows} rows, {how}, this one on {processes.device}.")
    if processes.first:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", config)
    shared = {name: value for name, value in keywords.items() if name not in ("device", "torch_dtype")}
    if record_of(command.env).takes_model:
        shared["model"] = text_env(envs).reference  # so that it is not loaded twice
    fresh, prompts = held_out(command, shared, rows)
    reference = TextPolicy.of_reference(text_env(fresh))
    before = sample_episodes(fresh, reference, _generator(fresh), prompts, processes=processes)
    checkpoints = out / "checkpoints"
    resumed = agent.resume(checkpoints, command.total_steps)
    if resumed:
        tell(f"Going on from the checkpoint at {agent.steps:,} of {command.total_steps:,} tokens.")
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        logger = None
        if processes.first:
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
    if processes.first:
        about = {"seconds": seconds, "resumed": resumed, "steps": agent.steps}
        by_world = not text_env(fresh).prompts
        _report(out, before, after, about, measured_on(command, by_world=by_world))


def measured_on(
    command: TrainSettings, *, by_world: bool = False
) -> Literal["held-out prompts", "training prompts", "the world's prompts"]:
    """Return what a run measures on: prompts that it does not train on, if any are given or its environment has any.

    Args:
        command: The training run.
        by_world: Whether there are no prompts, since a world begins the episodes by itself: their seeds are then the
            same before and after.
    """
    if by_world:
        return "the world's prompts"
    own = command.prompts is None and record_of(command.env).held_out is not None
    return "held-out prompts" if own or command.eval_prompts is not None else "training prompts"


def held_out(command: TrainSettings, keywords: Mapping[str, Any], rows: int) -> tuple[Any, Sequence[Prompt | int]]:
    """Return an environment to measure in, and the prompts to measure on, or the seeds of its world.

    It pays the KL of an episode at its end (``kl_mode="lump"``), its KL coefficient does not adapt to the training, and
    its rewards are not shaped.

    Args:
        command: The training run.
        keywords: Of ``gymnasium.make``.
        rows: Episodes written side by side.
    """
    keywords = {**unshaped(keywords), "kl_mode": "lump"}
    if command.eval_prompts is not None:
        keywords["prompts"] = str(command.eval_prompts)
    elif measured_on(command) == "held-out prompts":
        keywords |= record_of(command.env).held_out or {}
    envs: Any = make_envs(command.env, rows, **keywords)
    prompts = text_env(envs).prompts
    if prompts and measured_on(command) == "training prompts":
        tell("No held-out prompts (--eval-prompts): before and after are compared on the training prompts.")
    return envs, episode_starts(prompts, command.eval_episodes)


def _generator(envs: Any) -> torch.Generator:
    return torch.Generator(text_env(envs).reference.device).manual_seed(20_260)


def _report(out: Path, before: list[Episode], after: list[Episode], about: dict[str, Any], prompts: str) -> None:
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
    title = f"Completions of {prompts}"
    when = f"{title}, before and after training"
    save_html(out / "samples.html", pairs, title=when, captions=["before", "after"] * (len(pairs) // 2))
    write_atomically(out / "samples.md", comparison_markdown(before[:16], after[:16]))
    plot_training({out.name: out}, out / "training.png")
    console.print(comparison_table(before[:8], after[:8], title=title))
    table = make_table("", "score", "KL in nats", "tokens", title=f"{len(after)} fresh completions of {prompts}")
    for name in ("before", "after"):
        row = results[name]
        table.add_row(name, *(figure_text(row[key]) for key in ("score", "kl", "length")))
    console.print(table)
    tell(f"Trained {about['steps']:,} tokens in {about['seconds']:.0f} s. Picture: {out / 'training.png'}")
    write_json(out / "results.json", results)


def agent_config(command: TrainSettings) -> Any:
    """Return the settings of the agent that a command names.

    Raises:
        TextEnvError: There is no such agent, or a setting is not what is expected.
    """
    settings, flags = json_object("--agent-settings", command.agent_settings), command.agent_flags
    if "seed" in settings:
        raise TextEnvError("--agent-settings holds a seed; give it as --seed, which seeds all of the run.")
    if twice := sorted(set(flags) & set(settings)):
        raise TextEnvError(
            f"--{twice[0].replace('_', '-')} and --agent-settings both say {twice[0]}; give it in one of them."
        )
    return config_of(find(command.agent), {**flags, **settings, "seed": command.seed})
