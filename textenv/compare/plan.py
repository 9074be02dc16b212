"""What is compared: agents, tasks (environments with rewards) and seeds, from flags or a TOML file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from textenv import plugins
from textenv.data.files import parse_name_or_json, to_json
from textenv.data.outputs import OutputFolder
from textenv.data.values import short
from textenv.env.registry import record_of
from textenv.env.settings import unshaped
from textenv.env.trust import Source
from textenv.types import TextEnvError
from textenv.validation import Count, NonEmpty, NonNegativeInt, Positive, Threads, unknown_name, validate

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
        rewards: Rewards to run every environment with that names none itself: each a name, a JSON object, or a JSON
            list of these, which are added up, as in "textenv train"; none for the environments' own.
        seeds: Runs of each agent on each task, from seed 0.
        total_steps: Tokens that a run may write.
        seconds: Seconds of training that a run may take besides, evaluations not counted; None for no limit.
        evaluations: How often a run is measured on its way, at equal distances in tokens.
        eval_episodes: Completions that it is measured on, where the figures are not exact.
        num_envs: Episodes written side by side.
        workers: Runs at the same time; 0 for as many as there are cores.
        threads: Threads that torch computes with in each run; None for OMP_NUM_THREADS, or else the run's share of the
            cores.
        ray: Run on Ray: an existing cluster's if RAY_ADDRESS is set, else a local one. "out" has to be a folder that
            all its machines share.
        trust: Let the TOML file import code and read environment variables: only for a file that you have read.
        quick: A comparison of some minutes: REINFORCE, PPO, RLOO, GRPO and soft Q-learning on two small exact
            tasks, 3 seeds.
    """

    out: OutputFolder
    config: Path | None = None
    agents: Annotated[tuple[str, ...] | None, _hint("agents")] = None
    envs: Annotated[tuple[str, ...] | None, _hint("envs")] = None
    rewards: Annotated[tuple[str, ...] | None, _hint("rewards")] = None
    seeds: Annotated[Count | None, _hint("seeds")] = None
    total_steps: Annotated[Count | None, _hint("total_steps")] = None
    seconds: Positive | None = None
    evaluations: Annotated[Count | None, _hint("evaluations")] = None
    eval_episodes: Annotated[Count | None, _hint("eval_episodes")] = None
    num_envs: Annotated[Count | None, _hint("num_envs")] = None
    workers: NonNegativeInt = 0
    threads: Threads | None = None
    ray: bool = False
    quick: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        validate(self)


@dataclass(frozen=True)
class Budget:
    """What every run gets, and how it is measured; see ``Compare``."""

    total_steps: Count
    seconds: Positive | None
    evaluations: Count
    eval_episodes: Count
    num_envs: Count

    def __post_init__(self) -> None:
        """Check the values."""
        validate(self)


@dataclass(frozen=True)
class ComparedAgent:
    """An agent with settings.

    Attributes:
        label: Its name in the comparison.
        name: Of the agent, or its import path.
        settings: That differ from its defaults.
    """

    label: NonEmpty
    name: NonEmpty
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        validate(self)


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
    env: NonEmpty
    settings: Mapping[str, Any] = field(default_factory=dict)
    agent_settings: Mapping[str, Any] = field(default_factory=dict)
    eval_prompts: NonEmpty | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        validate(self)

    @property
    def slug(self) -> str:
        """Its name as that of a file."""
        return _slug(self.label)

    def keywords(self, *, held_out: bool = False) -> dict[str, Any]:
        """Return the keywords of ``gymnasium.make``, to train or to measure."""
        keywords = {"kl_mode": "lump", **self.settings}
        if held_out:
            keywords = {**unshaped(keywords), "kl_mode": "lump"}
            if self.eval_prompts is not None:
                keywords["prompts"] = self.eval_prompts
            elif "prompts" not in keywords and "world" not in keywords:
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
    seeds: Count
    budget: Budget

    def __post_init__(self) -> None:
        """Check the values."""
        validate(self)

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
    budget = Budget(**{each.name: values[each.name] for each in dataclasses.fields(Budget)})
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
                f"{kind}: {', '.join(sorted(twice))} come more than once, or would in names of files. Give each a "
                "'label' of its own that differs in letters or digits."
            )
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
    for name in ("reward", "potential"):
        if name in settings:
            settings[name] = resolve_models_in(settings[name])
    eval_prompts = None if task.eval_prompts is None else _absolute_file(task.eval_prompts)
    return dataclasses.replace(task, settings=settings, eval_prompts=eval_prompts)


def _absolute_file(path: str) -> str:
    return str(Path(path).resolve())


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise TextEnvError(f"--config {path}: expected a TOML file ({error}).") from error
    _check_keys(str(path), values, list(_DEFAULTS))
    for name in ("agents", "envs", "rewards"):
        _check_list(str(path), values, name)
    return values


def _check_keys(where: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in values:
        if name not in known:
            raise unknown_name(f"{where} has the key", name, known)


def _check_list(where: str, values: Mapping[str, Any], name: str) -> None:
    if name in values and not isinstance(values[name], list):
        raise TextEnvError(f"{where}: {name} = {values[name]!r}: expected a list, even of one: [{values[name]!r}].")


def _mapping(given: Any, kind: str, key: str) -> dict[str, Any]:
    """Return an entry as a mapping: a name stands for itself."""
    given = parse_name_or_json(given, f"{kind}:") if isinstance(given, str) else given
    entry = {key: given} if isinstance(given, str) else given
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
        raise TextEnvError(f"{kind}: {short(given)}: expected a name, or an object with {key!r}, which is a text.")
    return entry


def _agent(given: Any) -> ComparedAgent:
    entry = _mapping(given, "agents", "name")
    _check_keys("An agent", entry, ("name", "label", "settings"))
    name = entry["name"]
    agent = ComparedAgent(entry.get("label", name.rpartition(":")[2]), name, entry.get("settings", {}))
    if "seed" in agent.settings:
        raise TextEnvError(f"agents: {name} has a seed among its settings; 'seeds' seeds all.")
    return agent


def _tasks(given: Any, rewards: Sequence[Any]) -> list[ComparedTask]:
    entry = _mapping(given, "envs", "id")
    _check_keys("An environment", entry, ("id", "label", "rewards", "settings", "agent_settings", "eval_prompts"))
    _check_list("An environment", entry, "rewards")
    env = entry["id"]
    label = entry.get("label", env.removeprefix("textenv/").removesuffix("-v0"))
    given = {name: entry[name] for name in ("settings", "agent_settings", "eval_prompts") if name in entry}
    task = ComparedTask(label, env, **given)
    task = dataclasses.replace(task, agent_settings={**record_of(env).agent_settings, **task.agent_settings})
    tasks = []
    for reward in entry.get("rewards", () if "reward" in task.settings else rewards):
        made = parse_name_or_json(reward, "rewards:", lists=True) if isinstance(reward, str) else reward
        if not isinstance(made, str | dict | list):
            raise TextEnvError(f"rewards: {short(made)}: expected a name, an object with 'name', or a list of these.")
        if made == []:
            raise TextEnvError("rewards: []: expected a non-empty list of rewards, or a name.")
        named = f"{label} {made if isinstance(made, str) else to_json(made)}"
        tasks.append(dataclasses.replace(task, label=named, settings={**task.settings, "reward": made}))
    return tasks or [task]


def _slug(label: str) -> str:
    """Return a label as the name of a file; labels that differ in other letters than these keep different names."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.")
    if re.fullmatch(r"[\x20-\x7e]+", label) and slug:
        return slug
    digest = hashlib.sha256(label.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{slug}-{digest}".lstrip("-")
