"""Commands of textenv: train, compare, sample, doctor, pretrain, sft, corpus, reward, feedback, label, clips, rlhf.

With ``textenv.commands.experiment`` it stands above the layers: only these know agents and rewards.
"""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import torch
import tyro
from gymnasium.vector import AutoresetMode
from rich.table import Table
from rich.text import Text

from textenv.agents import find
from textenv.analysis.doctor import examine
from textenv.clips.clips_config import ClipsConfig
from textenv.commands.compare import compare
from textenv.commands.experiment import EnvFlags, Train, console, make_keywords, parse_reward, train
from textenv.commands.feedback import (
    AnnotateFeedback,
    FeedbackStatus,
    Label,
    annotate_feedback,
    feedback_status,
    label,
)
from textenv.commands.rlhf import Rlhf, rlhf
from textenv.compare.plan import Compare
from textenv.data.corpora import write_general_corpus, write_review_pairs
from textenv.data.files import to_json, write_atomically, write_json
from textenv.data.reviews import review_rankings
from textenv.env.render import save_html, to_ansi
from textenv.env.scoring import resolve_reward, reward_name, unscored
from textenv.env.settings import check_counts
from textenv.env.trust import Source
from textenv.feedback.exchange import ExportFeedback, ImportFeedback, export_feedback, import_feedback
from textenv.feedback.formats import read_rankings
from textenv.feedback.sampling import AddTasks, add_tasks
from textenv.models.reward_model import RewardModel
from textenv.rollouts.distributed import connect
from textenv.rollouts.runtime import keep_memory, stopped_by_signals
from textenv.training.language_models import PretrainConfig, SftConfig, pretrain, read_pairs, sft
from textenv.training.reward_evaluation import Evaluation, evaluate, plot_evaluations, reward_bench
from textenv.training.reward_models import RewardModelConfig, train_reward_model
from textenv.types import Episode, Ranking, TextEnvError

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
        max_prompt_tokens: Room for a prompt; None for what the run was told, or 128; where the
            environment makes the model, for that of its own prompts.
        reward: Reward to score with, as in "textenv train", or "run" for that of the run; None scores nothing.
        trust: Let the run's config.json import code and read environment variables: only for a run of your own.
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
    reward: str | None = None
    trust: bool = False


@dataclass(frozen=True)
class Doctor:
    """Check that an environment, its reference model and a policy measure what they claim to.

    Attributes:
        env: Registered id of the environment.
        reward: Name of a reward, a JSON object with "name" and arguments, or package.module:attribute; None for the
            environment's own.
        model: Reference model: "bundled", a folder, or a Hugging Face id; None for the environment's own.
        prompts: File of prompts; None for the environment's own.
        num_envs: Rows of the vector environment.
        seed: Seeds prompts and tokens.
        settings: The environment's other settings.
    """

    env: str = "textenv/MovieReview-v0"
    reward: str | None = None
    model: str | None = None
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
        allow_host: Other names that the server answers by, such as a proxy's.
    """

    reward: str
    host: str = "127.0.0.1"
    port: int = 8900
    max_megabytes: int = 8
    allow_host: tuple[str, ...] = ()


@dataclass(frozen=True)
class RewardTrain:
    """Train a reward model on rankings; a run that was cut off goes on where it was.

    Attributes:
        files: Rankings, .jsonl: an object a line with prompt, completions, ranks, annotator and margin.
        out: Folder of the reward model; checkpoints go into its "checkpoints".
        validation: Rankings to measure the accuracy on after each epoch.
        reference: Texts on which scores get mean 0 and variance 1 (.jsonl with prompt and completion, or text); by
            default those of the rankings.
        limit: Learn from so many rankings, drawn at random, for a learning curve; None for all.
        threads: Threads that torch computes with; None leaves that to torch.
        settings: The settings of the training.
    """

    files: tuple[Path, ...]
    out: Path
    validation: tuple[Path, ...] = ()
    reference: tuple[Path, ...] = ()
    limit: int | None = None
    threads: int | None = None
    settings: Annotated[RewardModelConfig, tyro.conf.arg(name="")] = field(default_factory=RewardModelConfig)


@dataclass(frozen=True)
class RewardEval:
    """Measure reward models on rankings beside the human ceiling, or on pairs as RewardBench does.

    Attributes:
        model: Folders of reward models, or "bundled"; several that learnt from ever more give a learning curve.
        files: Rankings, .jsonl, as for "textenv reward train".
        trained_on: Rankings that the models learnt from: prompts and annotators are reported by whether they are new.
        reward_bench: Pairs, records with prompt, chosen, rejected and subset.
        out: Folder for report.json and reward.png.
        device: Where the models run.
    """

    model: tuple[str, ...] = ("bundled",)
    files: tuple[Path, ...] = ()
    trained_on: tuple[Path, ...] = ()
    reward_bench: Path | None = None
    out: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class RewardData:
    """Write the rankings that the bundled reward model was trained and measured on, from real people's ratings.

    Attributes:
        out: Folder for train.jsonl, validation.jsonl and test.jsonl.
        domains: Snippets of other kinds to add to train.jsonl.
        seed: Seeds which snippets are put together.
    """

    out: Path
    domains: tuple[Literal["product", "editorial", "tweet"], ...] = ()
    seed: int = 0


RewardCommand = (
    Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[RewardTrain, tyro.conf.subcommand("train")]
    | Annotated[RewardEval, tyro.conf.subcommand("eval")]
    | Annotated[RewardData, tyro.conf.subcommand("data")]
)
FeedbackCommand = (
    Annotated[AddTasks, tyro.conf.subcommand("add")]
    | Annotated[ImportFeedback, tyro.conf.subcommand("import")]
    | Annotated[ExportFeedback, tyro.conf.subcommand("export")]
    | Annotated[AnnotateFeedback, tyro.conf.subcommand("annotate")]
    | Annotated[FeedbackStatus, tyro.conf.subcommand("status")]
)
ClipsCommand = Annotated[ClipsConfig, tyro.conf.subcommand("train")] | Annotated[None, tyro.conf.Suppress]
Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[PretrainConfig, tyro.conf.subcommand("pretrain")]
    | Annotated[SftConfig, tyro.conf.subcommand("sft")]
    | Annotated[Corpus, tyro.conf.subcommand("corpus")]
    | Annotated[Rlhf, tyro.conf.subcommand("rlhf")]
    | Annotated[RewardCommand, tyro.conf.subcommand("reward", description="Train, measure or serve a reward.")]
    | Annotated[FeedbackCommand, tyro.conf.subcommand("feedback", description="Collect, import and export rankings.")]
    | Annotated[Label, tyro.conf.subcommand("label")]
    | Annotated[ClipsCommand, tyro.conf.subcommand("clips", description="Learn a task from preferences on clips.")]
)


_GO_ON = {
    Compare: "What is finished is kept, and the same command goes on with the rest.",
    Serve: "The same command serves again.",
    Label: "Every judgement that was acknowledged is stored; the same command opens the page again.",
    AnnotateFeedback: "The judgements made so far are stored; the same command goes on with the rest.",
    **dict.fromkeys(
        (Train, Rlhf, PretrainConfig, SftConfig, RewardTrain, ClipsConfig),
        "The same command goes on from the last checkpoint.",
    ),
}
"""How to go on with a command that a signal has ended; the others start anew."""


def main(args: list[str] | None = None) -> int:
    """Run the command line; return its exit status: 128 and the signal's number where SIGTERM or SIGINT ended it."""
    command: Any = None
    try:
        with stopped_by_signals():
            command = tyro.cli(Command, args=args, prog="textenv", description=__doc__)
            if not isinstance(command, Serve | Label):  # a server would stay as large as its largest request made it
                keep_memory()
            return _run(command)
    except TextEnvError as error:
        console.quiet = False
        console.print(Text("error:", style="bold red"), str(error), highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt as error:
        console.print("\nStopped.", _GO_ON.get(type(command), "The same command starts anew."), soft_wrap=True)
        return 128 + getattr(error, "number", int(signal.SIGINT))


def _run(command: Any) -> int:
    match command:
        case Train():
            world = connect(command.timeout)
            console.quiet = not world.first
            with world.watch():
                train(command, world)
            world.close()
        case Compare():
            compare(command, console)
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
        case Rlhf():
            rlhf(command)
        case Serve():
            _serve(command)
        case RewardTrain():
            _reward_train(command)
        case RewardEval():
            _reward_eval(command)
        case RewardData():
            _reward_data(command)
        case AddTasks():
            _tell(add_tasks(command))
        case ImportFeedback():
            _tell(import_feedback(command))
        case ExportFeedback():
            _tell(export_feedback(command))
        case AnnotateFeedback():
            _tell([annotate_feedback(command)])
        case FeedbackStatus():
            console.print(*feedback_status(command), sep="\n")
        case Label():
            label(command, lambda line: _tell([line]))
        case ClipsConfig():
            _clips(command)
    return 0


def _sample(command: Sample) -> None:
    check_counts(command, "samples", "max_prompt_tokens")
    path = command.run / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        source = Source(path, command.trust)
        settings, env, agent_name = source.settings(config["settings"]), source.env(config["env"]), config["agent"]
        settings["kl_mode"] = "lump"
        if config["model"] is not None:  # else the environment makes it, and has prompts that it can read
            settings |= {"model": config["model"], "prompts": ["(typed)"]}
        own = config["reward"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise TextEnvError(f"{command.run} is no run of 'textenv train' ({error!r}).") from error
    room = None if config["model"] is None else 128
    settings["max_prompt_tokens"] = command.max_prompt_tokens or settings.get("max_prompt_tokens") or room
    settings["chat"] = command.chat or settings.get("chat", False)
    settings["device"] = command.device or settings.get("device")
    if command.reward == "run" and own is None:
        settings.pop("reward", None)  # the environment makes it
    elif command.reward == "run":
        settings["reward"] = source.reward(parse_reward(own) if isinstance(own, str) else own)
    else:
        settings["reward"] = unscored if command.reward is None else parse_reward(command.reward)
    agent_class = find(source.agent(agent_name))
    envs: Any = gym.make_vec(env, num_envs=command.samples, autoreset_mode=AutoresetMode.DISABLED, **settings)
    agent = agent_class.load(command.run / "policy", envs)
    generator = None if command.greedy else torch.Generator(envs.unwrapped.reference.device).manual_seed(command.seed)
    episodes: list[Episode] = []
    for prompt in command.prompt or _typed():
        for episode in agent.sample(envs, [prompt] * command.samples, generator=generator):
            sys.stdout.write(to_ansi(episode, color=sys.stdout.isatty(), scored=command.reward is not None) + "\n")
            episodes.append(episode)
    if command.html is not None:
        save_html(command.html, episodes, scored=command.reward is not None)


def _serve(command: Serve) -> None:
    from textenv.web.reward_server import serve  # noqa: PLC0415 (an optional dependency)

    check_counts(command, "max_megabytes")
    reward = resolve_reward(parse_reward(command.reward))

    def announce(url: str) -> None:
        console.print(f"{reward_name(reward)} answers at {url}", markup=False, highlight=False, soft_wrap=True)

    serve(
        reward,
        host=command.host,
        port=command.port,
        max_bytes=command.max_megabytes * 10**6,
        hosts=command.allow_host,
        announce=announce,
    )


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _reward_train(command: RewardTrain) -> None:
    check_counts(command, "threads")
    if command.threads is not None:
        torch.set_num_threads(command.threads)
    rankings = _rankings(command.files)
    if command.limit is not None:
        if not 1 <= command.limit <= len(rankings):
            raise TextEnvError(f"--limit {command.limit}: the files hold {len(rankings)} rankings; give 1 to that.")
        rankings = random.Random(command.settings.seed).sample(rankings, command.limit)
    reference = [pair for path in command.reference for pair in read_pairs(path)]
    report = train_reward_model(
        command.settings, rankings, validation=_rankings(command.validation), reference=reference, out=command.out
    )
    accuracy = "" if report.accuracy is None else f", validation accuracy {report.accuracy:.1%}"
    console.print(f"The reward model of {report.comparisons:,} comparisons is in {command.out}{accuracy}.")


def _reward_eval(command: RewardEval) -> None:
    if not command.files and command.reward_bench is None:
        raise TextEnvError("Nothing to measure on; give --files with rankings, or --reward-bench with pairs.")
    rankings, trained_on = _rankings(command.files), _rankings(command.trained_on)
    results: dict[str, Any] = {}
    evaluations: dict[str, tuple[int, Evaluation]] = {}
    for name in command.model:
        model = RewardModel.load(name, device=command.device)
        results[name] = {"learnt_from": model.about.get("report", {}).get("comparisons", 0)}
        if rankings:
            found = evaluate(model.scores, rankings, scale=model.scale, trained_on=trained_on)
            evaluations[name] = (results[name]["learnt_from"], found)
            results[name] |= dataclasses.asdict(found)
        if command.reward_bench is not None:
            results[name]["reward_bench"] = reward_bench(model.scores, command.reward_bench)
    for title, rows in _figures(evaluations, results):
        table = Table("", *(Path(name).name for name in command.model), title=title)
        for name, cells in rows.items():
            table.add_row(name, *cells)
        console.print(table)
    if command.out is not None:
        command.out.mkdir(parents=True, exist_ok=True)
        write_json(command.out / "report.json", results)
        if evaluations:
            plot_evaluations(evaluations, command.out / "reward.png")


def _figures(
    evaluations: Mapping[str, tuple[int, Evaluation]], results: Mapping[str, Any]
) -> list[tuple[str, dict[str, list[str]]]]:
    """Return title and rows of each table of ``textenv reward eval``; a cell a model."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    tables = []
    if evaluations:
        each = [one for _, one in evaluations.values()]
        rows = {
            "comparisons learnt from": [f"{count:,}" for count, _ in evaluations.values()],
            "accuracy against a person": [share(one.accuracy) for one in each],
            "  another person": [share(one.person) for one in each],
            "accuracy against the majority": [share(one.majority) for one in each],
            "  a person, against that of the others": [share(one.person_majority) for one in each],
            **{
                f"accuracy, {name} ({count:,})": [share(one.groups[name][0]) for one in each]
                for name, (_, count) in each[0].groups.items()
            },
            "expected calibration error": [f"{one.calibration.ece:.3f}" for one in each],
            "Brier score": [f"{one.calibration.brier:.3f}" for one in each],
            "prefers the longer text": [share(one.longer) for one in each],
            "  people do": [share(one.longer_people) for one in each],
        }
        tables.append((f"{each[0].comparisons:,} comparisons", rows))
    benches = [result["reward_bench"] for result in results.values() if "reward_bench" in result]
    if benches:
        tables.append(("RewardBench", {name: [share(bench[name]) for bench in benches] for name in benches[0]}))
    return tables


def _reward_data(command: RewardData) -> None:
    command.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        rankings = review_rankings(split, seed=command.seed)
        for domain in command.domains if split == "train" else ():
            rankings += review_rankings(domain=domain, seed=command.seed)
        lines = [to_json(dataclasses.asdict(ranking)) + "\n" for ranking in rankings]
        write_atomically(command.out / f"{split}.jsonl", "".join(lines))
        console.print(f"{command.out / f'{split}.jsonl'}: {len(rankings):,} rankings")


def _rankings(files: Sequence[Path]) -> list[Ranking]:
    return [ranking for path in files for ranking in read_rankings(path)]


def _clips(command: ClipsConfig) -> None:
    from textenv.clips.training import train  # noqa: PLC0415 (Stable-Baselines3 takes seconds to load)

    results = train(command)
    console.print(
        f"True return of {command.eval_episodes} episodes: {results['true_return']:.1f}, from "
        f"{results['labels_judged']} comparisons. The learning curve is {command.out / 'returns.png'}"
    )


def _typed() -> Any:
    while True:
        try:
            line = input("prompt> ")
        except EOFError:
            return
        if line.strip():
            yield line


def _doctor(command: Doctor) -> int:
    check_counts(command, "num_envs")
    given = {"model": command.model, "reward": command.reward}
    console.print(", ".join([command.env, *(f"{name} {value}" for name, value in given.items() if value)]))
    keywords = make_keywords(command.settings, reward=command.reward, model=command.model, prompts=command.prompts)
    healthy = True
    for finding in examine(command.env, keywords, num_envs=command.num_envs, seed=command.seed):
        healthy &= finding.ok
        told = Text("ok   ", style="green") if finding.ok else Text("FAILS", style="bold red")
        console.print(told, f"{finding.name}: {finding.detail}")  # at once: a check may take minutes
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
