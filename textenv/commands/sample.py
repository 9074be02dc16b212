"""``textenv sample``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from textenv.commands.base import Command, use_threads
from textenv.commands.flags import parse_reward
from textenv.data.outputs import OutputFile
from textenv.types import Episode, TextEnvError
from textenv.validation import Count, Positive, Seed, Threads

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample(Command):
    """Continue prompts with a trained policy or any language model: those that are given, or every line that is typed.

    Attributes:
        run_folder: Folder of a run of ``textenv train``, of its policy, or of any model in Hugging Face format; or
            "bundled".
        prompt: Prompts to continue; none to read them from the terminal.
        samples: Completions a prompt.
        greedy: Take the likeliest token every time.
        temperature: Divides the logits; None for that of the run, else 1.
        max_new_tokens: Token budget of a completion; None for that of the run, else 12.
        seed: Seeds the tokens.
        html: File to write the episodes to, with every token colored by its KL.
        chat: Take what is typed as a user's message, also where the run did not: one of conversations, say.
        device: Where it runs; None for where it was trained.
        max_prompt_tokens: Room for a prompt; None for that of the run, else for the longest prompt that is given, or
            for 128 tokens where they are typed; where the environment makes the model, for that of its own prompts.
        reward: Reward to score with, as in "textenv train", or "run" for that of the run; None scores nothing.
        trust: Let the run's config.json import code and read environment variables: only for a run of your own.
        threads: Threads that torch computes with; None leaves that to torch.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    prompt: tuple[str, ...] = ()
    samples: Count = 1
    greedy: bool = False
    temperature: Positive | None = None
    max_new_tokens: Count | None = None
    seed: Seed = 0
    html: OutputFile | None = None
    chat: bool = False
    device: str | None = None
    max_prompt_tokens: Count | None = None
    reward: str | None = None
    trust: bool = False
    threads: Threads | None = None

    def run(self) -> int:
        """Print the completions."""
        import torch  # noqa: PLC0415 (what takes long to load, here and below)

        from textenv.env.registry import make_envs  # noqa: PLC0415
        from textenv.env.render import color_is_shown, save_html, to_ansi  # noqa: PLC0415

        use_threads(self.threads)
        writer = self._writer()
        envs: Any = make_envs(writer.env, self.samples, **self._settings(writer))
        sample = writer.load(envs)
        generator = None if self.greedy else torch.Generator(envs.unwrapped.reference.device).manual_seed(self.seed)
        episodes: list[Episode] = []
        for prompt in self.prompt or _typed():
            for episode in sample([prompt] * self.samples, generator):
                sys.stdout.write(to_ansi(episode, color=color_is_shown(), scored=self.reward is not None) + "\n")
                episodes.append(episode)
        if self.html is not None:
            save_html(self.html, episodes, scored=self.reward is not None)
        return 0

    def _writer(self) -> _Writer:
        """Return what writes: the policy of a run, or a model.

        Raises:
            TextEnvError: There is no such folder, or its run is not finished, or imports code and is not trusted.
        """
        from textenv.env.settings import unshaped  # noqa: PLC0415
        from textenv.env.trust import Source  # noqa: PLC0415
        from textenv.models.loading import BUNDLED, resolve_model  # noqa: PLC0415

        name = resolve_model(self.run_folder, hub=False)
        run = None if name == BUNDLED else _run_of(Path(name))
        if run is None:
            return _Writer("textenv/Text-v0", {"model": name}, None, None, None)
        path = run / "config.json"
        source = Source(path, self.trust)
        try:
            config = _read_config(run)
            settings, env, agent = config["settings"], source.env(config["env"]), config["agent"]
            model, reward = config["model"], config["reward"]
        except KeyError as error:
            raise TextEnvError(f"{path} has no {error}; expected the one that 'textenv train' wrote.") from error
        settings = source.settings(unshaped(settings) if isinstance(settings, dict) else settings)
        if model is not None:  # else the environment makes it
            settings["model"] = model
        if self.reward == "run" and reward is not None:
            reward = source.reward(parse_reward(reward) if isinstance(reward, str) else reward)
        agent = source.agent(agent)
        if not (run / "policy").is_dir():
            raise TextEnvError(
                f"{run} has no policy yet: its training is not finished. The command that began it goes on with it."
            )
        return _Writer(env, settings, agent, run / "policy", reward)

    def _settings(self, writer: _Writer) -> dict[str, Any]:
        """Return the keywords of ``gymnasium.make`` to sample with."""
        from textenv.env.reference import load_reference  # noqa: PLC0415
        from textenv.env.scoring import unscored  # noqa: PLC0415
        from textenv.env.settings import TextEnvSettings  # noqa: PLC0415

        given = {name: getattr(self, name) for name in ("temperature", "max_new_tokens", "max_prompt_tokens", "device")}
        settings = {**writer.settings, **{name: value for name, value in given.items() if value is not None}}
        settings["kl_mode"] = "lump"
        settings["chat"] = self.chat or settings.get("chat", False)
        if "model" in settings:  # else the environment makes it, and has prompts that it can read
            weights = {name: settings.pop(name, None) for name in ("model", "device", "torch_dtype")}
            settings["model"] = model = load_reference(TextEnvSettings.of(weights))
            settings["prompts"] = list(self.prompt) or ["a"]
            if not self.prompt and settings.get("max_prompt_tokens") is None:
                new = settings.get("max_new_tokens", TextEnvSettings.of({}).max_new_tokens)
                limit = model.max_positions
                if limit is not None and new >= limit:
                    raise TextEnvError(f"max_new_tokens={new}, but the model takes {limit} in all; lower it.")
                settings["max_prompt_tokens"] = _TYPED if limit is None else min(_TYPED, limit - new)
        if self.reward != "run":
            settings["reward"] = unscored if self.reward is None else parse_reward(self.reward)
        elif writer.agent is None:
            raise TextEnvError(f"--reward run: {self.run_folder} is no run, and has no reward; name one.")
        elif writer.reward is None:
            settings.pop("reward", None)  # the environment makes it
        else:
            settings["reward"] = writer.reward
        return settings


_TYPED = 128
"""Tokens of a prompt that is typed, where nothing says otherwise and the model reads as many."""


@dataclass(frozen=True)
class _Writer:
    """What writes completions.

    Attributes:
        env: Id of the environment to write in.
        settings: Its keywords, as far as they are known from the folder.
        agent: Name of the agent that was saved; None for a model, which is sampled as it is.
        policy: Where the agent was saved.
        reward: What the run was trained with; None if the environment makes it.
    """

    env: str
    settings: dict[str, Any]
    agent: str | None
    policy: Path | None
    reward: Any

    def load(self, envs: Any) -> Callable[[Sequence[str], Any], list[Episode]]:
        """Return a function of prompts and a generator that writes an episode from each prompt."""
        from textenv.agents import find  # noqa: PLC0415
        from textenv.models.policy import TextPolicy  # noqa: PLC0415
        from textenv.rollouts.collect import sample_episodes, text_env  # noqa: PLC0415

        if self.agent is None:
            policy = TextPolicy.of_reference(text_env(envs))
            return lambda prompts, generator: sample_episodes(envs, policy, generator, prompts)
        agent: Any = find(self.agent).load(self.policy, envs)
        return lambda prompts, generator: agent.sample(envs, prompts, generator=generator)


def _run_of(folder: Path) -> Path | None:
    """Return the run that a folder is, or that it is the policy of; None for a folder of something else."""
    for run in (folder, folder.parent):
        known = run == folder or ((folder / "agent.json").is_file() and folder.name == "policy")
        if known and {"settings", "agent"} <= _read_config(run).keys():
            return run
    return None


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a folder; nothing if it has none.

    Raises:
        TextEnvError: It cannot be read, or holds no object.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TextEnvError(f"{path} cannot be read ({error}).") from error
    if not isinstance(config, dict):
        raise TextEnvError(f"{path} holds no object; expected the settings of a run, or of a model.")
    return config


def _typed() -> Iterator[str]:
    while True:
        try:
            line = input("prompt> ")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise TextEnvError(f"What was typed is not {error.encoding} ({error}); type or pipe UTF-8.") from error
        if line.strip():
            yield line
