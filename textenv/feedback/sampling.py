"""Adding tasks: to rank completions that policies write, or to write answers: ``textenv feedback add``."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import gymnasium as gym
import tyro
from annotated_types import Interval
from gymnasium.vector import AutoresetMode

from textenv.data.outputs import OutputFile
from textenv.data.values import MOST_COMPLETIONS
from textenv.env.prompts import read_prompts
from textenv.env.scoring import unscored
from textenv.feedback.exchange import add_rankings
from textenv.feedback.formats import read_rankings
from textenv.feedback.store import FeedbackStore
from textenv.types import Conversation, TextEnvError
from textenv.validation import Count, Probability, Seed, Temperature, validate

if TYPE_CHECKING:
    from textenv.models.policy import TextPolicy

__all__ = ["AddTasks", "add_tasks", "named", "named_folders", "open_policy", "sample_completions"]

_ROWS = 32  # completions that are sampled at once
_OF_DEMONSTRATIONS = ("store", "prompts", "demonstrations", "max_prompts", "judgements", "chat", "seed")
_KEPT = ("max_new_tokens", "temperature", "top_k", "top_p", "stop", "chat")  # of a run's settings


@dataclass(frozen=True)
class AddTasks:
    """Ask annotators to rank completions of policies, or to write answers: afterwards, textenv label.

    Attributes:
        store: The store of feedback; made if it is missing.
        prompts: File of prompts (.txt, .jsonl, .json, .csv, .parquet).
        policies: Each NAME=FOLDER: a run of textenv train, a saved agent, a model's folder or Hugging Face id, or
            "bundled"; none with demonstrations.
        demonstrations: Ask for answers that annotators write to the prompts, instead of rankings.
        max_prompts: Number of prompts, drawn at random; None for all.
        samples: Completions that each policy writes for a prompt.
        items: Completions in a task, 2 to 9.
        tasks: Tasks for a prompt.
        pairing: A task compares completions of different policies (across), of the same policy (within), or any.
        judgements: From how many annotators a ranking of a task, or an answer, is wanted.
        repeats: Share of the tasks that are given a second time to annotators who have judged them, to see whether they
            agree with themselves.
        gold: File of rankings, in any format, which are added as gold tasks to measure annotators.
        max_new_tokens: Token budget of a completion; None for the run's, else 12.
        temperature: Temperature of the samples; None for the run's, else 1.
        chat: Take prompts that are texts as messages of a user.
        device: Device that the models run on.
        seed: Seeds the choice of prompts, the tokens and the tasks.
    """

    store: Annotated[OutputFile, tyro.conf.Positional]
    prompts: Path
    policies: tuple[str, ...] = ()
    demonstrations: bool = False
    max_prompts: Count | None = None
    samples: Count = 2
    items: Annotated[int, Interval(ge=2, le=MOST_COMPLETIONS)] = 2
    tasks: Count = 1
    pairing: Literal["across", "within", "any"] = "any"
    judgements: Count = 1
    repeats: Probability = 0.0
    gold: Path | None = None
    max_new_tokens: Count | None = None
    temperature: Temperature | None = None
    chat: bool = False
    device: str | None = None
    seed: Seed = 0


def add_tasks(command: AddTasks) -> list[str]:
    """Run ``textenv feedback add``; return the lines to print.

    Raises:
        TextEnvError: A file or model cannot be read, or so many different tasks cannot be made.
    """
    validate(command)
    if command.demonstrations:
        return [_ask_for_demonstrations(command)]
    if not command.policies:
        raise TextEnvError(
            "Name policies that write completions (--policies NAME=FOLDER), or ask annotators to write "
            "(--demonstrations)."
        )
    policies = named_folders(command.policies)
    _check_task_count(command, len(policies))
    rng = random.Random(command.seed)
    prompts, columns = read_prompts(command.prompts)
    chosen = _chosen(command, rng, len(prompts))
    gold = [] if command.gold is None else read_rankings(command.gold)
    given = {"max_new_tokens": command.max_new_tokens, "temperature": command.temperature, "device": command.device}
    changed = {name: value for name, value in given.items() if value is not None} | (
        {"chat": True} if command.chat else {}
    )
    sampled = {  # everything is sampled before the store is opened
        name: sample_completions(
            folder,
            [prompts[place] for place in chosen],
            samples=command.samples,
            seed=rng.getrandbits(31),
            **changed,
        )
        for name, folder in policies.items()
    }
    made: list[int] = []
    with FeedbackStore(command.store) as store, store.transaction():
        numbers = {name: store.add_policy(name, folder=folder) for name, folder in policies.items()}
        for row, place in enumerate(chosen):
            prompt = store.add_prompt(prompts[place], columns={name: cells[place] for name, cells in columns.items()})
            pool = [(name, text) for name, texts in sampled.items() for text in texts[row]]
            groups = _groups(pool, command, rng)
            made += _add_groups(store, prompt, pool, groups, policies=numbers, judgements=command.judgements)
        again = rng.sample(made, round(command.repeats * len(made)))
        tasks = {task.id: task for task in store.tasks()}
        for task in again:
            store.add_task(tasks[task].items, repeat_of=task, judgements=command.judgements)
        add_rankings(store, gold, gold=True, judgements=command.judgements)
    lines = [
        f"{command.store}: {len(made)} tasks added, {len(again)} of them to be repeated, and {len(gold)} gold tasks."
    ]
    if missing := command.tasks * len(chosen) - len(made):
        lines.append(
            f"{missing} tasks fewer than asked for: policies wrote the same completions. Sample more (--samples)."
        )
    return lines


def _chosen(command: AddTasks, rng: random.Random, count: int) -> list[int]:
    """Return the places of the prompts that are taken."""
    chosen = list(range(count))
    if command.max_prompts is not None:
        chosen = sorted(rng.sample(chosen, min(command.max_prompts, len(chosen))))
    return chosen


def _ask_for_demonstrations(command: AddTasks) -> str:
    """Add a task for each prompt that is to be answered; return what to print."""
    for field in fields(command):
        default, given = field.default, getattr(command, field.name)
        if field.name not in _OF_DEMONSTRATIONS and given != default:
            flag = field.name.replace("_", "-")
            raise TextEnvError(
                f"--{flag} is about completions that policies write, not --demonstrations; leave it out."
            )
    prompts, columns = read_prompts(command.prompts)
    chosen = _chosen(command, random.Random(command.seed), len(prompts))
    with FeedbackStore(command.store) as store, store.transaction():
        for place in chosen:
            prompt = prompts[place]
            if command.chat and isinstance(prompt, str):
                prompt = ({"role": "user", "content": prompt},)
            number = store.add_prompt(prompt, columns={name: cells[place] for name, cells in columns.items()})
            try:
                store.add_demonstration_task(number, demonstrations=command.judgements)
            except TextEnvError as error:
                raise TextEnvError(f"{command.prompts}, prompt {place + 1}: {error}") from error
    return f"{command.store}: {len(chosen)} prompts added, each to be answered by {command.judgements}."


def _add_groups(
    store: FeedbackStore,
    prompt: int,
    pool: Sequence[tuple[str, str]],
    groups: Sequence[Sequence[int]],
    *,
    policies: Mapping[str, int],
    judgements: int,
) -> list[int]:
    """Add a task for each group of completions of a prompt; return the numbers of the tasks.

    Args:
        store: The store.
        prompt: Number of the prompt.
        pool: Policy and text of the completions that were sampled for it.
        groups: The places in ``pool`` of the completions of each task.
        policies: Numbers of the policies by name.
        judgements: From how many annotators a judgement of each task is wanted.
    """
    added: dict[int, int] = {}
    for index in dict.fromkeys(index for group in groups for index in group):
        name, text = pool[index]
        added[index] = store.add_completion(prompt, text, policy=policies[name])
    return [store.add_task([added[index] for index in group], judgements=judgements) for group in groups]


def sample_completions(
    folder: str, prompts: Sequence[str | Conversation], *, samples: int, seed: int = 0, **settings: Any
) -> list[list[str]]:
    """Sample completions from a policy.

    Args:
        folder: A run of ``textenv train``, whose settings are used; or a model that ``CausalLM.from_pretrained`` loads.
        prompts: Texts, or conversations.
        samples: Completions of each.
        seed: Seeds the tokens.
        **settings: Settings of the environment that differ from those of the run, or from the default.

    Returns:
        The completions, ``samples`` of each prompt.

    Raises:
        TextEnvError: The folder holds no model, or a prompt does not suit it.
    """
    import torch  # noqa: PLC0415 (slow to load, here and below, and the help needs this module)

    from textenv.rollouts.collect import sample_episodes  # noqa: PLC0415

    wanted = [prompt for prompt in prompts for _ in range(samples)]
    envs, policy = open_policy(folder, "textenv/Text-v0", len(wanted), prompts=list(prompts), **settings)
    generator = torch.Generator(policy.lm.device).manual_seed(seed)
    texts = [episode.completion for episode in sample_episodes(envs, policy, generator, wanted)]
    envs.close()
    return [texts[begin : begin + samples] for begin in range(0, len(texts), samples)]


def open_policy(folder: str, env: str, episodes: int, **settings: Any) -> tuple[Any, TextPolicy]:
    """Return a vectorized environment without a reward, and a policy that acts in it.

    Args:
        folder: As in ``sample_completions``.
        env: Id of the environment.
        episodes: How many are wanted; there are no more rows.
        **settings: As in ``sample_completions``.

    Raises:
        TextEnvError: The folder holds no model, or a setting is not what is expected.
    """
    from textenv.models.policy import TextPolicy  # noqa: PLC0415
    from textenv.rollouts.collect import text_env  # noqa: PLC0415

    run = Path(folder)
    config: Mapping[str, Any] = {}
    if (run / "policy").is_dir():
        try:
            config = json.loads((run / "config.json").read_text("utf-8"))
            kept = {name: config["settings"][name] for name in _KEPT if name in config["settings"]}
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise TextEnvError(f"{folder} is no run of 'textenv train' ({error!r}).") from error
        if not isinstance(config["model"], str):
            raise TextEnvError(
                f"{folder}: the model of this run was made by its environment, {config['env']}, and has no name; "
                "expected a run of a model's folder or Hugging Face id."
            )
        settings = {**kept, "model": config["model"], **settings}
    else:
        settings = {"model": folder, **settings}
    envs: Any = gym.make_vec(
        env,
        num_envs=min(_ROWS, episodes),
        autoreset_mode=AutoresetMode.DISABLED,
        reward=unscored,
        kl_mode="lump",
        **settings,
    )
    base = text_env(envs)
    policy = TextPolicy(base.reference, value="none", temperature=base.settings.temperature, trainable=bool(config))
    if config:
        policy.load(run / "policy")
    return envs, policy


def named_folders(given: Sequence[str]) -> dict[str, str]:
    """Return where policies are by name: absolute paths, and ids.

    Raises:
        TextEnvError: One is not NAME=FOLDER, a name comes twice, or there is no such folder.
    """
    from textenv.models.loading import resolve_model  # noqa: PLC0415 (loads torch)

    return {name: resolve_model(folder) for name, folder in named("--policies", given, "FOLDER").items()}


def named(flag: str, given: Sequence[str], what: str) -> dict[str, str]:
    """Return values by name, of a flag that is given NAME=VALUE once or more.

    Args:
        flag: The flag.
        given: What it is given.
        what: What the message calls a value.

    Raises:
        TextEnvError: One is not NAME=VALUE, or a name comes twice.
    """
    found: dict[str, str] = {}
    for each in given:
        name, _, value = each.partition("=")
        if not name or not value or name in found:
            raise TextEnvError(f"{flag} {' '.join(given)}: expected NAME={what} of each, and names that differ.")
        found[name] = value
    return found


def _check_task_count(command: AddTasks, policies: int) -> None:
    possible = {
        "across": math.comb(policies, command.items) * command.samples**command.items,
        "within": policies * math.comb(command.samples, command.items),
        "any": math.comb(policies * command.samples, command.items),
    }[command.pairing]
    if command.tasks > possible:
        raise TextEnvError(
            f"{policies} policies that write {command.samples} completions each give {possible} different tasks of "
            f"{command.items} completions a prompt ({command.pairing}), but --tasks is {command.tasks}."
        )


def _groups(pool: Sequence[tuple[str, str]], command: AddTasks, rng: random.Random) -> list[tuple[int, ...]]:
    """Draw the completions of each task: texts that differ within a task, and tasks that differ."""
    by_policy: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(pool):
        by_policy.setdefault(name, []).append(index)
    groups: dict[frozenset[int], tuple[int, ...]] = {}
    for _ in range(100 * command.tasks):
        if len(groups) == command.tasks:
            break
        if command.pairing == "across":
            group = [rng.choice(by_policy[name]) for name in rng.sample(list(by_policy), command.items)]
        elif command.pairing == "within":
            group = rng.sample(by_policy[rng.choice(list(by_policy))], command.items)
        else:
            group = rng.sample(range(len(pool)), command.items)
        if len({pool[index][1] for index in group}) == command.items:
            groups.setdefault(frozenset(group), tuple(group))
    return list(groups.values())
