"""Policies that browse: cloning, the best of several answers, RL, and both, on held-out questions of ``Browse-v0``.

    python -m benchmarks.browse --out runs/browse

The order of Nakano et al. 2021, on four splits of the questions, disjoint by a hash of what they are about. A model is
cloned from scripted demonstrations on the first, from which it also learns the same answers without a browser. Several
answers of the cloned policy to questions of the second, ranked by whether they are right, train a reward model, which
reads question, quotes and answer. GRPO learns on the third, paid 1 for an episode whose answer is right. All are
measured on the fourth.

The bundled model does not copy what it has read, and names have to be copied at each turn: before cloning it learns to
copy random words out of lines such as the browser shows.

The best of several answers is taken by the reward model, and by "gold", whether an answer is right, which no reward
model exceeds. What is finished in ``--out`` is not done again.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from gymnasium.vector import AutoresetMode

from benchmarks._measure import environment, show
from textenv.agents.grpo import GRPO, GRPOConfig
from textenv.data.files import read_json, write_json
from textenv.data.records import write_records
from textenv.env.ids.browse import browse_vector, browser_settings
from textenv.env.vector import TextVectorEnv
from textenv.feedback.agreement import Share
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy
from textenv.rewards import ExactMatch, Learned, Quoted
from textenv.rollouts.collect import sample_episodes
from textenv.training.browsing import demonstrate
from textenv.training.configs import RewardModelConfig, SftConfig
from textenv.training.reward_models import train_reward_model
from textenv.training.sft import sft
from textenv.types import Ranking
from textenv.worlds.browser import Browser, Quote, answering_prompt, quoted_answer

LINES = (
    ("{}\n", "{}"),
    ("What is {} a kind of?\n", "Search {}"),
    ("Which word means: {}?\n", "Search {}"),
    ("Kind of: 【0†{}】\n", "Quote: Kind of: {}"),
    ("Kind of: {}■", "{}"),
)
"""What is read, and what is to be written, with a place for random words."""

BROWSER = {"window": 160, "results": 2, "max_actions": 6}
"""Settings of the browser in which what the bundled model reads is short."""

Columns = Mapping[str, Any]
"""What the browser gives a reward at the end of an episode."""


@dataclass(frozen=True, slots=True)
class Config:
    """What to train and to measure.

    Attributes:
        out: Folder of what is trained and sampled.
        web: A file that ``textenv browse index`` has written, with questions; None for the web of WordNet.
        model: The model that is cloned.
        copies: Lines with random words that are learned to be copied before cloning, in each of several rounds. The
            learning rate rises and falls in each.
        demonstrations: Questions of which demonstrations are learned, in each of several rounds.
        same: Share of the turns that is learned of those that are nearly the same in each demonstration, such as
            ``End: Answer``.
        learning_rate: Of both.
        comparisons: Questions that the reward model is trained on; 0 for no reward model.
        samples: Answers to each of them.
        rl_steps: Tokens that GRPO writes; 0 for no RL.
        rl_learning_rate: Of GRPO.
        temperature: Of all policies.
        rows: Episodes side by side.
        questions: Held-out questions.
        best_of: Of how many answers the best is taken.
        seed: Seeds everything.
    """

    out: Path
    web: Path | None = None
    model: str = "bundled"
    copies: tuple[int, ...] = (9_600, 9_600)
    demonstrations: tuple[int, ...] = (500, 400, 450)
    same: float = 0.3
    learning_rate: float = 1e-3
    comparisons: int = 64
    samples: int = 4
    rl_steps: int = 16_000
    rl_learning_rate: float = 1e-4
    temperature: float = 0.5
    rows: int = 32
    questions: int = 100
    best_of: tuple[int, ...] = (1, 4, 16)
    seed: int = 0


# Training


def learn_to_copy(config: Config) -> str:
    """Fine-tune the model to copy random tokens out of lines; return its folder."""
    model = config.model
    for number, count in enumerate(config.copies):
        out = config.out / f"copying-{number + 1}"
        if not (out / "tokenizer.json").exists():
            lm, rng = CausalLM.from_pretrained(model), random.Random(config.seed + number)
            fine_tune(config, model, out, [copied(lm, rng) for _ in range(count)], batch_size=32)
        model = str(out)
    return model


def copied(lm: CausalLM, rng: random.Random) -> dict[str, str]:
    """Return a line of which random tokens are to be copied."""
    while True:
        words = " ".join(lm.decode(rng.choices(range(lm.vocab_size), k=rng.randint(2, 10))).split())
        if words and words.isprintable() and "�" not in words:
            read, written = (each.format(words) for each in rng.choice(LINES))
            return {"prompt": read, "completion": written}


def fine_tune(config: Config, model: str, out: Path, records: Sequence[Mapping[str, str]], *, batch_size: int) -> Path:
    config.out.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(".jsonl")
    write_records(path, records)
    settings = SftConfig(
        model,
        (path,),
        out,
        epochs=1,
        batch_size=batch_size,
        learning_rate=config.learning_rate,
        max_tokens=512,
        group_by_length=True,
        seed=config.seed,
    )
    return sft(settings)


def clone(config: Config, model: str) -> Path:
    """Fine-tune a model on demonstrations, and on the same answers without a browser; return its folder."""
    out, first = Path(model), 0
    for number, count in enumerate(config.demonstrations):
        out = config.out / f"cloned-{number + 1}"
        if not (out / "tokenizer.json").exists():
            rng, records = random.Random(config.seed + number), list[dict[str, str]]()
            for columns, turns in demonstrations(config, "demonstrations", count, first):
                same = ("Clicked", "Scrolled", "Back", "End")
                kept = [turn for turn in turns if not turn["completion"].startswith(same) or rng.random() < config.same]
                records += map(as_it_is_read, kept)
                records.append({"prompt": answering_prompt(columns["question"], ()), "completion": columns["answer"]})
            fine_tune(config, model, out, records, batch_size=8)
        model, first = str(out), first + count
    return out


def as_it_is_read(turn: Mapping[str, str]) -> dict[str, str]:
    """Return a turn that writes what it copies in the tokens in which it is read.

    A word has other tokens behind a blank than behind a line break or a mark of a link, and a small model does not know
    that they are the same word. So quotes keep the marks of links, which the browser takes away; what is read behind a
    line break stands behind a tab, which the browser takes as a blank; and an answer begins with a blank if it is read
    behind one.
    """
    read, written = turn["prompt"], turn["completion"]
    command, colon, words = written.partition("Quote: ")
    words, text = (words, read.partition("♦Text\n")[2]) if colon else (written, read.partition("■")[2])
    letters = (r"\s+" if each == " " else rf"(?:【\d+†)?{re.escape(each)}(?:(?:†[^】]*)?】)?" for each in words)
    found = re.search("(.?)(" + "".join(letters) + ")", text, re.DOTALL)
    if (colon and command) or found is None or found[2].count("【") != found[2].count("】"):
        return dict(turn)
    blank = " " if found[1].isspace() and found[1] != "\n" else "\t" if colon else ""
    return {"prompt": read, "completion": f"Quote:{blank}{found[2]}" if colon else blank + found[2]}


def demonstrations(
    config: Config, split: str, count: int, first: int = 0
) -> Iterator[tuple[Columns, list[dict[str, str]]]]:
    """Yield what the script's episodes ended with, and their turns, of those that it answered."""
    world = Browser(**browser_settings(config.web, split, BROWSER))
    for number in range(first, first + count):
        found = demonstrate(world, seed=seed_of(config, number))
        if found.answered:
            yield found.columns, found.records()


def seed_of(config: Config, number: int) -> int:
    return 100_000 * config.seed + number


def reinforce(config: Config, cloned: Path) -> Path:
    """Train the cloned policy by GRPO; return the folder of the agent."""
    out = config.out / "grpo"
    if not (out / "agent.json").exists():
        settings = GRPOConfig(seed=config.seed, samples=8, learning_rate=config.rl_learning_rate)
        agent = GRPO(make_env(config, cloned, "train", kl_coef=0.02), settings)
        agent.learn(config.rl_steps, progress=tell_progress)
        agent.save(out)
    return out


def tell_progress(steps: int, metrics: Mapping[str, float]) -> bool:
    print(f"GRPO: {steps:,} tokens, right {metrics['objective/score']:.3f}, KL {metrics['objective/kl']:.2f}")
    return True


def judge(config: Config, cloned: Path, episodes: Sequence[Columns]) -> Path | None:
    """Train a reward model on answers of the cloned policy.

    Returns:
        Its folder; None if too few questions have both right and wrong ones.
    """
    out = config.out / "reward-model"
    found = list(rankings(episodes, config.samples))
    held_out = len(found) // 5
    if not held_out:
        return None
    settings = RewardModelConfig(str(cloned), epochs=3, batch_size=16, learning_rate=3e-4, seed=config.seed)
    report = train_reward_model(settings, found[held_out:], validation=found[:held_out], out=out)
    accuracy = "-" if report.accuracy is None else f"{report.accuracy:.1%}"
    print(f"Reward model: {report.rankings} rankings; of {held_out} others it orders {accuracy} of the pairs.")
    return out


def rankings(episodes: Sequence[Columns], samples: int) -> Iterator[Ranking]:
    """Yield a ranking of the different answers to each question, right ones first, where there are right and wrong."""
    for at in range(0, len(episodes), samples):
        answered = [each for each in episodes[at : at + samples] if each["answer"] is not None]
        group = {compared(each): is_right(each) for each in answered}
        if len(set(group.values())) == 2:
            (prompt,) = {prompt for prompt, _ in group}
            completions = tuple(completion for _, completion in group)
            yield Ranking(prompt, completions, tuple(int(not right) for right in group.values()))


def compared(episode: Columns) -> tuple[str, str]:
    """Return what the reward model reads of an episode: the question, and the quotes with the answer."""
    quotes = [Quote(**quote) for quote in episode["quotes"]]
    return quoted_answer(answering_prompt(episode["question"], quotes), str(episode["answer"]))


# Sampling


def make_env(config: Config, model: Path, split: str, **settings: Any) -> TextVectorEnv:
    return browse_vector(
        config.rows,
        web=config.web,
        split=split,
        browser=BROWSER,
        model=str(model),
        temperature=config.temperature,
        kl_mode="lump",
        autoreset_mode=AutoresetMode.DISABLED,
        **settings,
    )


def sample(  # noqa: PLR0917
    config: Config, name: str, cloned: Path, split: str, questions: int, samples: int, *, agent: Path | None = None
) -> list[Columns]:
    """Let the cloned policy, or an agent, answer questions several times each; return what the episodes ended with."""
    path = config.out / f"{name}.json"
    if not questions:
        return []
    if not path.exists():
        env = make_env(config, cloned, split)
        policy = TextPolicy.of_reference(env) if agent is None else GRPO.load(agent, env).policy
        seeds = [seed_of(config, number) for number in range(questions) for _ in range(samples)]
        episodes = sample_episodes(env, policy, torch.Generator().manual_seed(config.seed), seeds)
        env.close()
        write_json(path, {"episodes": [episode.start.columns for episode in episodes]})
    return list(read_json(path, "episodes")["episodes"])


def answer_directly(config: Config, cloned: Path, episodes: Sequence[Columns]) -> list[Columns]:
    """Let the cloned policy answer the questions of episodes without a browser."""
    prompts = [
        {"prompt": answering_prompt(each["question"], ()), "question": each["question"], "answers": each["answers"]}
        for each in episodes
    ]
    env = TextVectorEnv(
        config.rows, model=str(cloned), prompts=prompts, reward="exact_match", stop=("\n",), max_new_tokens=32,
        temperature=config.temperature, kl_mode="lump", autoreset_mode=AutoresetMode.DISABLED,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(config.seed)
    found = sample_episodes(env, TextPolicy.of_reference(env), generator, list(env.prompts))
    env.close()
    return [{**episode.start.columns, "answer": episode.completion} for episode in found]


# Measures


def is_right(episode: Columns) -> bool:
    return bool(of_reward(ExactMatch(said="answer"), episode))


def of_reward(reward: Callable[..., list[float]], episode: Columns) -> float:
    return reward(prompts=[""], completions=[""], completion_ids=[[]], **{name: [episode[name]] for name in episode})[0]


def best_of(episodes: Sequence[Columns], samples: int, count: int, score: Callable[[Columns], float]) -> list[Columns]:
    """Return of each question the best of the first ``count`` of its ``samples`` episodes, the first of equals."""
    return [max(episodes[at : at + count], key=score) for at in range(0, len(episodes), samples)]


def percent(share: Share) -> str:
    if share.value is None or share.interval is None:
        return "-"
    low, high = share.interval
    return f"{share.value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def row(name: str, episodes: Sequence[Columns], *, browsed: bool = True) -> tuple[str, ...]:
    """Return a line of the table: shares with Wilson's 95 % intervals, and actions an episode."""
    right = percent(Share(sum(map(is_right, episodes)), len(episodes)))
    if not browsed:
        return name, right, "-", "-", "-"
    answered = [each for each in episodes if each["answer"] is not None]
    supported = Share(sum(of_reward(Quoted(), each) for each in answered), len(answered))
    actions = sum(each["actions"] for each in episodes)
    invalid = Share(sum(each["invalid_actions"] for each in episodes), actions)
    return name, right, percent(supported), percent(invalid), f"{actions / len(episodes):.1f}"


def kind_of(episode: Columns) -> str:
    """Return the kind of a question: its first two words, which do not name what it asks about."""
    return " ".join(episode["question"].split()[:2])


def rows(
    config: Config, name: str, episodes: Sequence[Columns], scores: Mapping[str, Callable[[Columns], float]]
) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a policy: its first answers, and the best of several by each score."""
    samples = max(config.best_of)
    for count in config.best_of:
        for by, score in scores.items() if count > 1 else {"": lambda _: 0.0}.items():
            yield row(f"{name}, best of {count} by {by}" if by else name, best_of(episodes, samples, count, score))


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    with timed("copying"):
        model = learn_to_copy(config)
    with timed("cloning"):
        cloned = clone(config, model)
    samples = max(config.best_of)
    with timed("sampling of the cloned policy"):
        policies = {"cloning": sample(config, "cloning", cloned, "heldout", config.questions, samples)}
    with timed("reward model"):
        compared = sample(config, "comparisons", cloned, "comparisons", config.comparisons, config.samples)
        trained = judge(config, cloned, compared)
    if config.rl_steps:
        with timed("RL"):
            agent = reinforce(config, cloned)
        with timed("sampling of the policy of RL"):
            policies["RL"] = sample(config, "rl", cloned, "heldout", config.questions, samples, agent=agent)
    scores: dict[str, Callable[[Columns], float]] = {"gold": is_right}
    if trained is not None:
        scores["reward model"] = scorer(Learned(str(trained)))
    direct = answer_directly(config, cloned, best_of(policies["cloning"], samples, 1, is_right))
    report(config, direct, policies, scores)


def report(
    config: Config,
    direct: Sequence[Columns],
    policies: Mapping[str, Sequence[Columns]],
    scores: Mapping[str, Callable[[Columns], float]],
) -> None:
    """Print the tables."""
    script = Share(sum(1 for _ in demonstrations(config, "heldout", config.questions)), config.questions)
    alone = "cloning, without a browser"
    show(
        f"{config.questions} held-out questions, shares with 95 % intervals",
        ("policy", "right", "answers that quotes support", "invalid actions", "actions"),
        [
            row(alone, direct, browsed=False),
            *(line for name, episodes in policies.items() for line in rows(config, name, episodes, scores)),
        ],
        f"The script answers {percent(script)}, knowing a right answer when it sees it.",
    )
    samples = max(config.best_of)
    firsts = {alone: direct, **{name: best_of(each, samples, 1, is_right) for name, each in policies.items()}}
    kinds = sorted({kind_of(each) for each in direct})
    show(
        "right, by kind of question",
        ("policy", *(f"{kind} …" for kind in kinds)),
        [(name, *(percent(shared(episodes, kind)) for kind in kinds)) for name, episodes in firsts.items()],
    )


def shared(episodes: Sequence[Columns], kind: str) -> Share:
    of_kind = [each for each in episodes if kind_of(each) == kind]
    return Share(sum(map(is_right, of_kind)), len(of_kind))


def scorer(model: Learned) -> Callable[[Columns], float]:
    """Return the score of a reward model for an episode; one without an answer is below all others."""

    def score(episode: Columns) -> float:
        if episode["answer"] is None:
            return -math.inf
        prompt, completion = compared(episode)
        return model(prompts=[prompt], completions=[completion], completion_ids=[[]])[0]

    return score


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long something took."""
    started = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
