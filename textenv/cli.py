"""The command line: ``textenv train | sample | doctor | pretrain | sft | corpus | reward``.

With ``textenv.experiment`` it stands above the layers: only these know agents and rewards.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import torch
import tyro
from gymnasium.vector import AutoresetMode
from rich.markup import escape
from rich.table import Table

from textenv.agents.ppo import PPO
from textenv.corpora import write_general_corpus, write_review_pairs
from textenv.distributed import connect
from textenv.doctor import examine
from textenv.experiment import EnvFlags, Train, console, make_keywords, parse_reward, train
from textenv.models.training import PretrainConfig, SftConfig, pretrain, sft
from textenv.process import keep_memory
from textenv.render import save_html, to_ansi
from textenv.rollouts import sample_episodes
from textenv.scoring import resolve_reward, reward_name
from textenv.types import Episode, TextEnvError

__all__ = ["main"]


@dataclass(frozen=True)
class Sample:
    """Talk to a trained policy: it continues every line that is typed, or the prompts that are given.

    Attributes:
        run: Folder of a run of ``textenv train``.
        prompt: Prompts to continue; none to read them from the terminal.
        samples: Completions a prompt.
        greedy: Take the likeliest token every time.
        seed: Seeds the tokens.
        html: File to write the episodes to, with every token coloured by its KL.
        chat: Take what is typed as a user's message, also where the run did not: one of conversations, say.
        device: Where it runs; None for where it was trained.
        max_prompt_tokens: Room for a prompt; None for what the run was told, or 128.
    """

    run: Annotated[Path, tyro.conf.Positional]
    prompt: tuple[str, ...] = ()
    samples: int = 1
    greedy: bool = False
    seed: int = 0
    html: Path | None = None
    chat: bool = False
    device: str | None = None
    max_prompt_tokens: int | None = None


@dataclass(frozen=True)
class Doctor:
    """Check that an environment, its reference model and a policy measure what they claim to.

    Attributes:
        env: Registered id of the environment.
        reward: Name of a reward, a JSON object with "name" and arguments, or package.module:attribute.
        model: Reference model: "bundled", a folder, or a Hugging Face id.
        prompts: File of prompts; None for the environment's own.
        num_envs: Rows of the vector environment.
        seed: Seeds prompts and tokens.
        settings: The environment's other settings.
    """

    env: str = "textenv/MovieReview-v0"
    reward: str = "vader"
    model: str = "bundled"
    prompts: Path | None = None
    num_envs: int = 16
    seed: int = 0
    settings: Annotated[EnvFlags, tyro.conf.arg(name="")] = field(default_factory=EnvFlags)


@dataclass(frozen=True)
class Corpus:
    """Fetch and clean the text that the bundled model was trained on.

    Attributes:
        out: Folder for general.jsonl, reviews-train.jsonl and reviews-validation.jsonl.
    """

    out: Path


@dataclass(frozen=True)
class Serve:
    """Answer score requests over HTTP, for the reward named "http" of a run elsewhere.

    Attributes:
        reward: Name of a reward, a JSON object with "name" and arguments, or package.module:attribute.
        host: Address to listen at. There is no password: keep to this machine, or put a proxy with one in front.
        port: Port to listen at; 0 for one that is free.
        max_megabytes: Size of a request, at most.
    """

    reward: str
    host: str = "127.0.0.1"
    port: int = 8900
    max_megabytes: int = 64


RewardCommand = Annotated[Serve, tyro.conf.subcommand("serve")] | Annotated[None, tyro.conf.Suppress]  # tyro wants two
Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[PretrainConfig, tyro.conf.subcommand("pretrain")]
    | Annotated[SftConfig, tyro.conf.subcommand("sft")]
    | Annotated[Corpus, tyro.conf.subcommand("corpus")]
    | Annotated[RewardCommand, tyro.conf.subcommand("reward", description="Serve a reward.")]
)


def main(args: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    keep_memory()
    command: Any = tyro.cli(Command, args=args, prog="textenv", description=__doc__)
    try:
        match command:
            case Train():
                world = connect(command.timeout)
                console.quiet = not world.first
                with world.watch():
                    train(command, world)
                world.close()
            case Sample():
                _sample(command)
            case Doctor():
                return _doctor(command)
            case PretrainConfig():
                console.print(f"The model is in {pretrain(command)}")
            case SftConfig():
                console.print(f"The model is in {sft(command)}")
            case Corpus():
                sizes = write_general_corpus(command.out / "general.jsonl")
                console.print(f"{command.out / 'general.jsonl'}: characters {sizes}")
                console.print(f"{command.out}: movie-review pairs {write_review_pairs(command.out)}")
            case Serve():
                _serve(command)
    except TextEnvError as error:
        console.quiet = False
        console.print(f"[bold red]error:[/] {escape(str(error))}", markup=True, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from the last checkpoint.")
        return 130
    return 0


def _sample(command: Sample) -> None:
    try:
        config = json.loads((command.run / "config.json").read_text("utf-8"))
    except OSError as error:
        raise TextEnvError(f"{command.run} is no run of 'textenv train' ({error}).") from error
    settings = {
        **config["settings"],
        "kl_mode": "lump",
        "max_prompt_tokens": command.max_prompt_tokens or config["settings"]["max_prompt_tokens"] or 128,
    }
    settings |= {"model": config["model"], "reward": parse_reward(config["reward"]), "prompts": ["(typed)"]}
    settings["chat"] = command.chat or settings.get("chat", False)
    settings["device"] = command.device or settings.get("device")
    envs: Any = gym.make_vec(config["env"], num_envs=command.samples, autoreset_mode=AutoresetMode.DISABLED, **settings)
    agent = PPO.load(command.run / "policy", envs)
    generator = None if command.greedy else torch.Generator(agent.policy.lm.device).manual_seed(command.seed)
    episodes: list[Episode] = []
    for prompt in command.prompt or _typed():
        for episode in sample_episodes(envs, agent.policy, generator, [prompt] * command.samples):
            sys.stdout.write(to_ansi(episode, color=sys.stdout.isatty()) + "\n")
            episodes.append(episode)
    if command.html is not None:
        save_html(command.html, episodes)


def _serve(command: Serve) -> None:
    from textenv.serving import serve  # noqa: PLC0415 (an optional dependency)

    reward = resolve_reward(parse_reward(command.reward))

    def announce(url: str) -> None:
        console.print(f"{reward_name(reward)} answers at {url}", markup=False, highlight=False, soft_wrap=True)

    serve(reward, host=command.host, port=command.port, max_bytes=command.max_megabytes * 10**6, announce=announce)


def _typed() -> Any:
    while True:
        try:
            line = input("prompt> ")
        except EOFError:
            return
        if line.strip():
            yield line


def _doctor(command: Doctor) -> int:
    table = Table("check", "", "figures", title=f"{command.env}, model {command.model}, reward {command.reward}")
    keywords = make_keywords(command.settings, reward=command.reward, model=command.model, prompts=command.prompts)
    healthy = True
    for finding in examine(command.env, keywords, num_envs=command.num_envs, seed=command.seed):
        healthy &= finding.ok
        table.add_row(finding.name, "[green]ok[/]" if finding.ok else "[bold red]FAILS[/]", finding.detail)
    console.print(table)
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
