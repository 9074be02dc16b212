"""``textenv sample``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from textenv.commands.base import Command, use_threads
from textenv.commands.flags import parse_reward
from textenv.data.outputs import OutputFile
from textenv.types import Episode, TextEnvError
from textenv.validation import Count, Seed, Threads

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample(Command):
    """Continue prompts with a trained policy: those that are given, or every line that is typed.

    Attributes:
        run_folder: Folder of a run of ``textenv train``.
        prompt: Prompts to continue; none to read them from the terminal.
        samples: Completions a prompt.
        greedy: Take the likeliest token every time.
        seed: Seeds the tokens.
        html: File to write the episodes to, with every token colored by its KL.
        chat: Take what is typed as a user's message, also where the run did not: one of conversations, say.
        device: Where it runs; None for where it was trained.
        max_prompt_tokens: Room for a prompt; None for that of the run, else 128; where the environment makes the
            model, for that of its own prompts.
        reward: Reward to score with, as in "textenv train", or "run" for that of the run; None scores nothing.
        trust: Let the run's config.json import code and read environment variables: only for a run of your own.
        threads: Threads that torch computes with; None leaves that to torch.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    prompt: tuple[str, ...] = ()
    samples: Count = 1
    greedy: bool = False
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

        from textenv.agents import find  # noqa: PLC0415
        from textenv.env.registry import make_envs  # noqa: PLC0415
        from textenv.env.render import color_is_shown, save_html, to_ansi  # noqa: PLC0415

        use_threads(self.threads)
        env, agent_name, settings = self._settings()
        agent_class = find(agent_name)
        envs: Any = make_envs(env, self.samples, **settings)
        agent = agent_class.load(self.run_folder / "policy", envs)
        generator = None if self.greedy else torch.Generator(envs.unwrapped.reference.device).manual_seed(self.seed)
        episodes: list[Episode] = []
        for prompt in self.prompt or _typed():
            for episode in agent.sample(envs, [prompt] * self.samples, generator=generator):
                sys.stdout.write(to_ansi(episode, color=color_is_shown(), scored=self.reward is not None) + "\n")
                episodes.append(episode)
        if self.html is not None:
            save_html(self.html, episodes, scored=self.reward is not None)
        return 0

    def _settings(self) -> tuple[str, str, dict[str, Any]]:
        """Return the run's environment id and agent, and the keywords of ``gymnasium.make`` to sample with."""
        from textenv.env.scoring import unscored  # noqa: PLC0415
        from textenv.env.trust import Source  # noqa: PLC0415

        path = self.run_folder / "config.json"
        try:
            config = json.loads(path.read_text("utf-8"))
            source = Source(path, self.trust)
            settings, env, agent_name = source.settings(config["settings"]), source.env(config["env"]), config["agent"]
            settings["kl_mode"] = "lump"
            if config["model"] is not None:  # else the environment makes it, and has prompts that it can read
                settings |= {"model": config["model"], "prompts": ["(typed)"]}
            own = config["reward"]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise TextEnvError(f"{self.run_folder} is no run of 'textenv train' ({error!r}).") from error
        room = None if config["model"] is None else 128
        settings["max_prompt_tokens"] = self.max_prompt_tokens or settings.get("max_prompt_tokens") or room
        settings["chat"] = self.chat or settings.get("chat", False)
        settings["device"] = self.device or settings.get("device")
        if self.reward == "run" and own is None:
            settings.pop("reward", None)  # the environment makes it
        elif self.reward == "run":
            settings["reward"] = source.reward(parse_reward(own) if isinstance(own, str) else own)
        else:
            settings["reward"] = unscored if self.reward is None else parse_reward(self.reward)
        return env, source.agent(agent_name), settings


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
