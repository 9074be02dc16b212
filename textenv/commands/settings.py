"""Settings of the commands that train agents, apart from the commands so that both they and the training know them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from annotated_types import Ge, Interval

from textenv import plugins, recipes
from textenv.commands.flags import AgentFlags, TrainEnvFlags
from textenv.data.outputs import OutputFolder
from textenv.types import TextEnvError
from textenv.validation import Count, LearningRate, NonNegative, Seconds, Seed, Threads, validate

__all__ = ["RlhfSettings", "TrainSettings"]


def _agents(default: str) -> str:
    names = plugins.built_in("textenv.agents", suffixes=("", "Config"))
    return f"(default: {default}; one of {', '.join(names)})"


def _recipes(default: str) -> str:
    return f"(default: {default}; one of {', '.join(recipes.names())})"


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run.

    Attributes:
        out: Folder of the run: metrics, checkpoints, the trained policy, before/after samples, the picture.
        env: Registered id of the environment.
        agent: Algorithm, or package.module:Class for your own.
        agent_settings: Settings of the agent as a JSON object, in place of its flags.
        reward: Name of a reward, a JSON object with "name" and arguments, package.module:attribute, or a JSON list of
            these, which are added up; None for the
            environment's own.
        model: Reference model and starting point: "bundled", "smollm2", a folder, or a Hugging Face id; None for the
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
        settings: Settings of the environment that were given.
        agent_flags: Settings of the agent that were given as flags.
    """

    out: OutputFolder
    env: str = "textenv/MovieReview-v0"
    agent: Annotated[str, tyro.conf.arg(help_behavior_hint=_agents)] = "ppo"
    agent_settings: str = "{}"
    reward: str | None = None
    model: str | None = None
    prompts: Path | None = None
    eval_prompts: Path | None = None
    eval_episodes: Count = 1024
    total_steps: Count = 56_000
    num_envs: Count = 128
    seed: Seed = 0
    checkpoint_every: Count = 5
    threads: Threads | None = None
    timeout: Seconds = 600.0
    settings: TrainEnvFlags = field(default_factory=dict)
    agent_flags: AgentFlags = field(default_factory=dict)


@dataclass(frozen=True)
class RlhfSettings:
    """Settings of the whole of RLHF.

    Attributes:
        out: Folder of the run: models, the store of feedback, figures and the picture. A run in it goes on.
        recipe: System whose settings and data are taken where nothing else is given; None for none.
        quick: With a recipe, its smallest settings and a few rows of data that come with textenv.
        model: Pre-trained model: "bundled", "smollm2", a folder, or a Hugging Face id.
        sft: Files of records with prompt and completion to fine-tune the model on first, or feedback stores with
            demonstrations; none takes it as it is.
        sft_epochs: Passes of the fine-tuning over the demonstrations.
        sft_learning_rate: Its learning rate.
        sft_max_tokens: Longer demonstrations are cut after so many tokens, or as many as the model takes.
        gold: Reward that stands in for the people who rank, and that every policy is measured by; None for people.
        gold_temperature: Of the stand-in's choices, in units of its scores: 0 never errs.
        judged: "ranking" asks to rank the completions of a prompt, and "best" for the best of them alone, which the
            reward model then learns to choose.
        rounds: How often to go round.
        labels: Rankings to ask for, in all rounds together.
        samples: Completions of a prompt that are ranked at once, 2 to 9. From the second round on, half of them are the
            newest policy's and the rest its predecessor's.
        env: Registered id of the environment.
        prompts: File of prompts; None for the environment's own.
        eval_prompts: File of held-out prompts to measure on; None for the environment's own.
        eval_episodes: Completions to measure each policy on, two at least.
        total_steps: Tokens to write in the PPO training of each round.
        num_envs: Episodes written side by side.
        seed: Seeds everything.
        threads: Threads that torch computes with; None leaves that to torch.
        settings: Settings of the environment that were given.
        ppo: Settings of PPO that were given.
        reward_epochs: Passes of the reward model over the rankings.
        reward_learning_rate: Its learning rate.
        bias: Measure the bias of every stage at the end, as "textenv bias" does, into bias.json and bias.png; a run
            that is finished can be given this too.
    """

    out: OutputFolder
    recipe: Annotated[str | None, tyro.conf.arg(help_behavior_hint=_recipes)] = None
    quick: bool = False
    model: str = "bundled"
    sft: tuple[Path, ...] = ()
    sft_epochs: Count = 3
    sft_learning_rate: LearningRate = 5e-4
    sft_max_tokens: Count = 256
    gold: str | None = None
    gold_temperature: NonNegative = 0.0
    judged: Literal["ranking", "best"] = "ranking"
    rounds: Count = 3
    labels: Count = 900
    samples: Annotated[int, Interval(ge=2, le=9)] = 4
    env: str = "textenv/MovieReview-v0"
    prompts: Path | None = None
    eval_prompts: Path | None = None
    eval_episodes: Annotated[int, Ge(2)] = 512
    total_steps: Count = 56_000
    num_envs: Count = 128
    seed: Seed = 0
    threads: Threads | None = None
    settings: TrainEnvFlags = field(default_factory=dict)
    ppo: AgentFlags = field(default_factory=dict)
    reward_epochs: Count = 3
    reward_learning_rate: LearningRate = 2e-4
    bias: bool = False

    made_for: ClassVar[str | None] = None  # the recipe whose settings are the defaults

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TextEnvError: A value is not what is expected.
        """
        validate(self)
        if self.rounds > self.labels:
            raise TextEnvError(f"rounds={self.rounds}, labels={self.labels}: expected a label for each round at least.")
        if self.quick and self.recipe is None:
            raise TextEnvError("--quick is of recipes: name one with --recipe.")
        if self.recipe != self.made_for:
            raise TextEnvError(f"recipe={self.recipe!r}: make the settings with Rlhf.of_recipe({self.recipe!r}).")
        if self.gold is None and self.gold_temperature and self.made_for is None:
            raise TextEnvError("gold_temperature is that of a reward that stands in for people: name one with --gold.")

    @property
    def store(self) -> Path:
        """The file of the run's feedback."""
        return self.out / "feedback.db"

    def round(self, number: int) -> Path:
        """Return the folder of a round, from 1."""
        return self.out / f"round-{number}"
