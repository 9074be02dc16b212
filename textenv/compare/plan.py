"""What is compared: agents, tasks (environments with rewards) and seeds, from flags or a TOML file."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from textenv import plugins
from textenv.data.files import to_json
from textenv.env.registry import record_of
from textenv.env.trust import Source
from textenv.types import TextEnvError

__all__ = ["Budget", "Compare", "ComparedAgent", "ComparedTask", "Plan", "Run", "make_plan"]

_EXACT = "textenv/Exact-v0"  # what is compared on where nothing else is said

_DEFAULTS: dict[str, Any] = {
    "agents": ("reinforce", "ppo", "rloo", "grpo", "soft_q"),
    "envs": (_EXACT,),
    "rewards": (),
    "seeds": 5,
    "total_steps": 60_000,
    "seconds": None,
    "evaluations": 10,
    "eval_episodes": 512,
    "num_envs": 64,
}
"""What a comparison is made of where neither flags, nor the file, nor ``quick`` say anything."""


def _hint(name: str) -> Any:
    default = _DEFAULTS[name]
    text = " ".join(default) or "none" if isinstance(default, tuple) else str(default)
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True)
class Compare:
    """Compare agents on environments and rewards, over seeds, at equal budgets; a comparison cut off goes on.

    Runs that are finished are kept, so that more agents or seeds can be added to a folder later. A setting that may
    also be in the file is None if it was not given.

    Attributes:
        out: Folder of the comparison: runs, results.csv, curves.csv, report.html, compare.png.
        config: TOML file with the settings from "agents" to "num_envs" below, in place of flags; agents and envs may
            be tables there: [[agents]] with name, label and settings, [[envs]] with id, label, rewards, settings,
            agent_settings and eval_prompts.
        agents: Names of agents, package.module:Class for your own, or JSON objects with the keys of a TOML table.
        envs: Ids of environments, or JSON objects with the keys of a TOML table.
        rewards: Rewards to run every environment with that names none itself: as in "textenv train"; none for the
            environments' own.
        seeds: Runs of each agent on each task, from seed 0.
        total_steps: Tokens that a run may write.
        seconds: Seconds of training that a run may take besides, evaluations not counted; None for no limit.
        evaluations: How often a run is measured on its way, at equal distances in tokens.
        eval_episodes: Completions that it is measured on, where the figures are not exact.
        num_envs: Episodes written side by side.
        workers: Runs at the same time, each with its share of the cores; 0 for as many as there are cores.
        ray: Run on Ray: an existing cluster's if RAY_ADDRESS is set, else a local one. "out" has to be a folder that
            all its machines share.
        trust: Let the TOML file import code and read environment variables: only for a file that you have read.
        quick: A comparison of some minutes: REINFORCE, PPO, RLOO, GRPO and soft Q-learning on two small exact
            tasks, 3 seeds.
    """

    out: Path
    config: Path | None = None
    agents: Annotated[tuple[str, ...] | None, _hint("agents")] = None
    envs: Annotated[tuple[str, ...] | None, _hint("envs")] = None
    rewards: Annotated[tuple[str, ...] | None, _hint("rewards")] = None
    seeds: Annotated[int | None, _hint("seeds")] = None
    total_steps: Annotated[int | None, _hint("total_steps")] = None
    seconds: float | None = None
    evaluations: Annotated[int | None, _hint("evaluations")] = None
    eval_episodes: Annotated[int | None, _hint("eval_episodes")] = None
    num_envs: Annotated[int | None, _hint("num_envs")] = None
    workers: int = 0
    ray: bool = False
    quick: bool = False
    trust: bool = False


@dataclass(frozen=True)
class Budget:
    """What every run gets, and how it is measured; see ``Compare``."""

    total_steps: int
    seconds: float | None
    evaluations: int
    eval_episodes: int
    num_envs: int


@dataclass(frozen=True)
class ComparedAgent:
    """An agent with settings.

    Attributes:
        label: Its name in the comparison.
        name: Of the agent, or its import path.
        settings: That differ from its defaults.
    """

    label: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparedTask:
    """An environment with a reward.

    Attributes:
        label: Its name in the comparison.
        env: Registered id.
        settings: Keywords of ``gymnasium.make``, the reward among them.
        agent_settings: Of all agents here that have such a setting, unless their own say otherwise.
        eval_prompts: File of prompts to measure on; None for held-out ones where the environment has any, or its own.
    """

    label: str
    env: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    agent_settings: Mapping[str, Any] = field(default_factory=dict)
    eval_prompts: str | None = None

    @property
    def slug(self) -> str:
        """Its name as that of a file."""
        return _slug(self.label)

    def keywords(self, *, held_out: bool = False) -> dict[str, Any]:
        """Return the keywords of ``gymnasium.make``, to train or to measure."""
        keywords = {"kl_mode": "lump", **self.settings}
        if held_out:
            keywords["kl_mode"] = "lump"
            if self.eval_prompts is not None:
                keywords["prompts"] = self.eval_prompts
            elif "prompts" not in keywords:
                keywords |= record_of(self.env).held_out or {}
        return keywords


@dataclass(frozen=True)
class Run:
    """One training run."""

    agent: ComparedAgent
    task: ComparedTask
    seed: int

    @property
    def name(self) -> str:
        """In messages, and as a folder."""
        return f"{_slug(self.agent.label)}/{self.task.slug}/{self.seed}"

    def agent_config(self) -> Any:
        """Return the settings of the agent.

        Raises:
            TextEnvError: One is unknown, or its value is not what is expected.
        """
        agent = plugins.agents().find(self.agent.name)
        known = agent.Config.__dataclass_fields__
        shared = {name: value for name, value in self.task.agent_settings.items() if name in known}
        return plugins.agents().config_of(agent, {**shared, **self.agent.settings, "seed": self.seed})

    def described(self, budget: Budget) -> dict[str, Any]:
        """Return all that the figures depend on, as JSON values."""
        values = {**dataclasses.asdict(self), "budget": dataclasses.asdict(budget)}
        values["agent"]["config"] = dataclasses.asdict(self.agent_config())
        del values["agent"]["label"], values["task"]["label"]
        described: dict[str, Any] = json.loads(to_json(values, default=str))
        return described


@dataclass(frozen=True)
class Plan:
    """A comparison: every agent on every task, with every seed.

    Attributes:
        agents: In the order of the report.
        tasks: Likewise.
        seeds: Runs of each.
        budget: Of each run.
    """

    agents: tuple[ComparedAgent, ...]
    tasks: tuple[ComparedTask, ...]
    seeds: int
    budget: Budget

    @property
    def runs(self) -> list[Run]:
        """All runs, the first seed of everything first."""
        return [Run(agent, task, seed) for seed in range(self.seeds) for task in self.tasks for agent in self.agents]


def make_plan(command: Compare) -> Plan:
    """Return what a command, or its file, says is to be compared.

    Raises:
        TextEnvError: A name, key or number is not what is expected; or a flag and the file both say something.
    """
    given = {name: value for name in _DEFAULTS if (value := getattr(command, name)) is not None}
    values = {**_DEFAULTS, **given}
    if command.config is not None:
        if given or command.quick:
            flag = next(iter(given), "quick").replace("_", "-")
            raise TextEnvError(
                f"--config and --{flag}: expected one or the other; write what --{flag} says into the file."
            )
        values |= _read(command.config)
    elif command.quick:
        smaller = {"id": _EXACT, "settings": {"vocab_size": 6, "max_new_tokens": 5}}
        quick = {
            "envs": (smaller,),
            "rewards": ("dense", "sparse"),
            "seeds": 3,
            "total_steps": 16_000,
            "evaluations": 8,
        }
        values |= {**quick, **given}
    for name in ("seeds", "total_steps", "evaluations", "eval_episodes", "num_envs"):
        if isinstance(values[name], bool) or not isinstance(values[name], int) or values[name] < 1:
            raise TextEnvError(f"{name}={values[name]!r}: expected a whole number of at least 1.")
    if values["seconds"] is not None and not values["seconds"] > 0:
        raise TextEnvError(f"seconds={values['seconds']!r}: expected a number above 0.")
    if command.workers < 0:
        raise TextEnvError(f"workers={command.workers}: expected at least 1, or 0 for one a core.")
    agents = tuple(_agent(each) for each in values["agents"])
    tasks = tuple(task for each in values["envs"] for task in _tasks(each, values["rewards"]))
    if command.config is not None:
        source = Source(command.config, command.trust)
        for agent in agents:
            source.agent(agent.name)
        for task in tasks:
            source.settings(task.settings)
    for kind, labels in (("agents", [each.label for each in agents]), ("envs", [each.label for each in tasks])):
        if not labels:
            raise TextEnvError(f"{kind}: expected at least one.")
        slugs = [_slug(label) for label in labels]
        if twice := {label for label, slug in zip(labels, slugs, strict=True) if slugs.count(slug) > 1}:
            raise TextEnvError(
                f"{kind}: {', '.join(sorted(twice))} come more than once; give each a 'label' of its own."
            )
    budget = Budget(**{each.name: values[each.name] for each in dataclasses.fields(Budget)})
    plan = Plan(agents, tuple(map(_with_absolute_paths, tasks)), values["seeds"], budget)
    for run in plan.runs[: len(agents) * len(tasks)]:
        run.agent_config()
    return plan


def _with_absolute_paths(task: ComparedTask) -> ComparedTask:
    """Return a task whose files and models are found from any folder: it is stored, and done by other processes.

    Raises:
        TextEnvError: There is no such model.
    """
    from textenv.models.loading import resolve_model, resolve_models_in  # noqa: PLC0415 (loads torch)

    settings = dict(task.settings)
    if isinstance(settings.get("model"), str):
        settings["model"] = resolve_model(settings["model"])
    if isinstance(settings.get("prompts"), str):
        settings["prompts"] = _absolute_file(settings["prompts"])
    if "reward" in settings:
        settings["reward"] = resolve_models_in(settings["reward"])
    eval_prompts = None if task.eval_prompts is None else _absolute_file(task.eval_prompts)
    return dataclasses.replace(task, settings=settings, eval_prompts=eval_prompts)


def _absolute_file(path: str) -> str:
    return str(Path(path).resolve())


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TextEnvError(f"--config {path}: expected a TOML file ({error}).") from error
    _check_keys(str(path), values, list(_DEFAULTS))
    for name in ("agents", "envs", "rewards"):
        if name in values and not isinstance(values[name], list):
            raise TextEnvError(f"{path}: {name} = {values[name]!r}: expected a list.")
    return values


def _check_keys(where: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := [name for name in values if name not in known]:
        raise TextEnvError(f"{where} has the key {unknown[0]!r}; expected some of {', '.join(known)}.")


def _mapping(given: Any, kind: str, key: str) -> dict[str, Any]:
    """Return an entry as a mapping: a name stands for itself."""
    if isinstance(given, str) and given.startswith("{"):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise TextEnvError(f"{kind}: {given} begins like a JSON object, and is none ({error}).") from error
    entry = {key: given} if isinstance(given, str) else given
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get(key), str)
        or not isinstance(entry.get("label", ""), str)
    ):
        raise TextEnvError(
            f"{kind}: {given!r}: expected a name, or an object with {key!r}, and a 'label' that is text."
        )
    return entry


def _agent(given: Any) -> ComparedAgent:
    entry = _mapping(given, "agents", "name")
    _check_keys("An agent", entry, ("name", "label", "settings"))
    name, settings = entry["name"], entry.get("settings", {})
    if "seed" in settings:
        raise TextEnvError(f"agents: {name} has a seed among its settings; 'seeds' seeds all.")
    return ComparedAgent(entry.get("label", name.rpartition(":")[2]), name, settings)


def _tasks(given: Any, rewards: Sequence[Any]) -> list[ComparedTask]:
    entry = _mapping(given, "envs", "id")
    _check_keys("An environment", entry, ("id", "label", "rewards", "settings", "agent_settings", "eval_prompts"))
    env, settings = entry["id"], entry.get("settings", {})
    record = record_of(env)
    label = entry.get("label", env.removeprefix("textenv/").removesuffix("-v0"))
    agent_settings = {**record.agent_settings, **entry.get("agent_settings", {})}
    chosen = entry.get("rewards", () if "reward" in settings else rewards)
    tasks = []
    for reward in chosen:
        made = json.loads(reward) if isinstance(reward, str) and reward.startswith("{") else reward
        name = made if isinstance(made, str) else to_json(made)
        keywords = {**settings, "reward": made}
        tasks.append(ComparedTask(f"{label} {name}", env, keywords, agent_settings, entry.get("eval_prompts")))
    return tasks or [ComparedTask(label, env, settings, agent_settings, entry.get("eval_prompts"))]


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.") or "-"
