"""``textenv sample``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from textenv.commands.base import Command, use_threads
from textenv.commands.flags import optional_watermark, parse_reward
from textenv.data.files import read_json
from textenv.data.outputs import OutputFile
from textenv.data.records import append_records, kind_of, write_records
from textenv.types import Conversation, Episode, Prompt, TextEnvError
from textenv.validation import Count, Positive, Seed, Threads

if TYPE_CHECKING:
    from textenv.env.dialogue import Dialogue
    from textenv.env.vector import TextVectorEnv
    from textenv.models.causal_lm import CausalLM
    from textenv.models.watermark import Watermark

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample(Command):
    """Continue prompts with a trained policy or any language model: those that are given, or every line that is typed.

    A model that has a chat template holds a conversation with whoever types: each line is a message that goes on from
    all before it, "/reset" begins anew, "/quit" ends. A run that was trained with a world plays episodes with it.

    Attributes:
        run_folder: Folder of a run of ``textenv train``, of its policy, or of any model in Hugging Face format; or
            "bundled" or "smollm2".
        prompt: Prompts to continue; none to read them from the terminal.
        samples: Completions a prompt; episodes, where a world begins them by itself.
        greedy: Take the likeliest token every time.
        temperature: Divides the logits; None for that of the run, else 1.
        max_new_tokens: Token budget of a completion; None for that of the run, else 12, and 256 in a conversation.
        seed: Seeds the tokens.
        html: File to write the episodes to, with every token colored by its KL.
        chat: "yes" takes prompts as messages of a user, and lines, typed or piped, as a conversation. "no" takes every
            line by itself. "auto" is a conversation where lines are typed in a terminal, the model has a chat template,
            and neither samples nor html nor reward ask for more than the answer.
        system: System message before a prompt, or at the beginning of a conversation.
        device: Where it runs; None for where it was trained.
        max_prompt_tokens: Room for a prompt; None for that of the run, else for the longest prompt that is given, or
            for 128 tokens where they are typed; where the environment makes the model, for that of its own prompts. In
            a conversation, room for all of it before an answer; None for what the model reads.
        reward: Reward to score with, as in "textenv train", or "run" for that of the run; None scores nothing.
        records: File to write the texts to, .jsonl, a record with prompt and completion each.
        watermark: Scheme to mark the texts with, so that "textenv detect" finds them: gumbel, green_list or synthid.
            Their KL is that of the tokens as the key lets them be drawn.
        watermark_key_file: File with the watermark's key; None for the environment variable TEXTENV_WATERMARK_KEY.
            It is written nowhere. A key on a command line would be seen by all users of the machine.
        watermark_settings: Settings of the scheme as a JSON object: "context", of green_list "delta" and "gamma", of
            synthid "layers".
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
    chat: Literal["auto", "yes", "no"] = "auto"
    system: str | None = None
    device: str | None = None
    max_prompt_tokens: Count | None = None
    reward: str | None = None
    records: OutputFile | None = None
    watermark: str | None = None
    watermark_key_file: Path | None = None
    watermark_settings: str = "{}"
    trust: bool = False
    threads: Threads | None = None

    def run(self) -> int:
        """Print the completions, or hold the conversation."""
        from textenv.env.render import color_is_shown, save_html, to_ansi  # noqa: PLC0415

        if self.records is not None:
            kind_of(self.records, (".jsonl",))
        watermark = self._watermark()
        loaded, generator, converses = self._load(watermark)
        if converses:
            _converse(_dialogue(loaded, generator, self.system))
            return 0
        base = loaded.base
        scored, episodes = self.reward is not None, list[Episode]()
        for starts in self._starts(base):
            for episode in loaded.sample(starts, generator):
                sys.stdout.write(to_ansi(episode, color=color_is_shown(), scored=scored) + "\n")
                episodes.append(episode)
        if self.html is not None:
            save_html(self.html, episodes, scored=scored)
        if self.records is not None and episodes:
            write_records(self.records, _records(episodes, watermark, base.reference.tokenizer))
        return 0

    def open_dialogue(self) -> Dialogue:
        """Return the conversation that ``run`` would hold in a terminal.

        Raises:
            TextEnvError: There can be none.
        """
        loaded, generator, _ = self._load(self._watermark())
        return _dialogue(loaded, generator, self.system)

    def _load(self, watermark: Watermark | None) -> tuple[_Loaded, Any, bool]:
        """Return what writes, what it draws with (None for the likeliest), and whether it is in a conversation."""
        import torch  # noqa: PLC0415 (takes long to load, as what is imported below)

        from textenv.env.registry import make_envs  # noqa: PLC0415

        use_threads(self.threads)
        writer = self._writer()
        settings, converses = self._settings(writer)
        envs: Any = make_envs(writer.env, self.samples, **settings)
        loaded = writer.load(envs, watermark)
        device = loaded.base.reference.device
        return loaded, None if self.greedy else torch.Generator(device).manual_seed(self.seed), converses

    def _watermark(self) -> Watermark | None:
        """Return the watermark to write with; None for none.

        Raises:
            TextEnvError: It cannot be made, or is not named, or there is nothing to mark.
        """
        if self.greedy and self.watermark is not None:
            raise TextEnvError("--greedy draws nothing that a watermark could be in; leave out one of the two.")
        return optional_watermark(self.watermark, self.watermark_key_file, self.watermark_settings)

    def _starts(self, base: TextVectorEnv) -> Iterator[list[Any]]:
        """Yield what episodes begin with, as many at a time as there are samples: prompts, or seeds of a world."""
        from textenv.rollouts.collect import episode_starts  # noqa: PLC0415

        if base.worlds is None or self.prompt:
            for text in self.prompt or _typed("prompt> "):
                yield [self._asked(text)] * self.samples
            return
        base.reset(seed=self.seed)  # of what worlds draw where they are given prompts
        yield episode_starts(base.prompts, self.samples, seed=self.seed)

    def _asked(self, text: str) -> str | Conversation:
        """Return a prompt that was typed, with the system message if there is one."""
        if self.system is None:
            return text
        return {"role": "system", "content": self.system}, {"role": "user", "content": text}

    def _converses(self, model: CausalLM | None, settings: dict[str, Any]) -> bool:
        """Tell whether lines are read as a conversation.

        Args:
            model: What writes; None where the environment makes it.
            settings: Of the environment.

        Raises:
            TextEnvError: A conversation was asked for, and there can be none.
        """
        if self.chat == "no" or self.prompt or (self.chat == "auto" and (self.samples > 1 or self.html or self.reward)):
            return False
        template = model is not None and bool(getattr(model.tokenizer, "chat_template", None))
        if self.chat == "auto":
            return template and settings.get("world") is None and sys.stdin.isatty() and sys.stdout.isatty()
        why = (
            "the model has no chat template"
            if not template
            else "the run's world answers"
            if settings.get("world") is not None
            else "a conversation has one answer a message, and is no episode"
            if self.samples > 1 or self.html is not None
            else ""
        )
        if why:
            raise TextEnvError(
                f"{str(self.run_folder)!r} holds no conversation: {why}. Continue texts with textenv sample --prompt."
            )
        return True

    def _writer(self) -> _Writer:
        """Return what writes: the policy of a run, or a model.

        Raises:
            TextEnvError: There is no such folder, or its run is not finished, or imports code and is not trusted.
        """
        from textenv.env.settings import unshaped  # noqa: PLC0415
        from textenv.env.trust import Source  # noqa: PLC0415
        from textenv.models.loading import NAMED, resolve_model  # noqa: PLC0415

        name = resolve_model(self.run_folder, hub=False)
        run = None if name in NAMED else _run_of(Path(name))
        if run is None:
            return _Writer("textenv/Text-v0", {"model": name}, None, None, None)
        path = run / "config.json"
        source = Source(path, self.trust)
        config = read_json(path, "settings", "env", "agent", "model", "reward")
        settings, env, agent = config["settings"], source.env(config["env"]), config["agent"]
        model, reward = config["model"], config["reward"]
        settings = source.settings(unshaped(settings) if isinstance(settings, dict) else settings)
        if settings.get("world") is not None and config.get("prompts") is not None:
            settings["prompts"] = config["prompts"]  # which its world is given
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

    def _settings(self, writer: _Writer) -> tuple[dict[str, Any], bool]:
        """Return the keywords of ``gymnasium.make`` to sample with, and whether lines are read as a conversation."""
        from textenv.env.reference import load_reference  # noqa: PLC0415
        from textenv.env.scoring import unscored  # noqa: PLC0415
        from textenv.env.settings import TextEnvSettings  # noqa: PLC0415

        given = {name: getattr(self, name) for name in ("temperature", "max_new_tokens", "max_prompt_tokens", "device")}
        settings = {**writer.settings, **{name: value for name, value in given.items() if value is not None}}
        settings["kl_mode"] = "lump"
        settings["chat"] = self.chat == "yes" or settings.get("chat", False)
        model = None
        if "model" in settings:  # else the environment makes it, and has prompts that it can read
            weights = {name: settings.pop(name, None) for name in ("model", "device", "torch_dtype")}
            settings["model"] = model = load_reference(TextEnvSettings.of(weights))
        converses = self._converses(model, settings)
        if model is not None:
            settings |= self._room(model, settings, converses=converses)
            if self.prompt or settings.get("world") is None:
                settings["prompts"] = [self._asked(text) for text in self.prompt or ("a",)]
        if self.reward != "run":
            settings["reward"] = unscored if self.reward is None else parse_reward(self.reward)
        elif writer.agent is None:
            raise TextEnvError(f"--reward run: {self.run_folder} is no run, and has no reward; name one.")
        elif writer.reward is None:
            settings.pop("reward", None)  # the environment makes it
        else:
            settings["reward"] = writer.reward
        return settings, converses

    def _room(self, model: CausalLM, settings: dict[str, Any], *, converses: bool) -> dict[str, int]:
        """Return the settings of tokens that follow from what the model takes, where lines are read.

        Raises:
            TextEnvError: A completion would take all that the model reads.
        """
        from textenv.env.settings import TextEnvSettings  # noqa: PLC0415

        if self.prompt or settings.get("world") is not None:
            return {}
        limit = model.max_positions
        new = settings.get("max_new_tokens")
        if new is None:
            most = _ANSWER if limit is None else min(_ANSWER, limit // 2)
            new = most if converses else TextEnvSettings.of({}).max_new_tokens
        if limit is not None and new >= limit:
            raise TextEnvError(f"max_new_tokens={new}, but the model takes {limit} in all; lower it.")
        room = self.max_prompt_tokens if converses else settings.get("max_prompt_tokens")
        if room is None:
            most = (limit or _CONVERSATION) if converses else _TYPED
            room = most if limit is None else min(most, limit - new)
        return {"max_new_tokens": new, "max_prompt_tokens": room}


_TYPED = 128
"""Tokens of a prompt that is typed, where nothing says otherwise and the model reads as many."""

_ANSWER = 256
"""Tokens of an answer in a conversation, where nothing says otherwise; half of what the model reads, at most."""

_CONVERSATION = 8192
"""Tokens of a conversation before an answer, with a model that reads any number."""


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

    def load(self, envs: Any, watermark: Watermark | None) -> _Loaded:
        """Return what writes in an environment, with a watermark if there is one.

        Raises:
            TextEnvError: What the agent writes cannot be marked.
        """
        from textenv.agents import find  # noqa: PLC0415
        from textenv.models.policy import TextPolicy  # noqa: PLC0415
        from textenv.models.watermarked import WatermarkedPolicy  # noqa: PLC0415
        from textenv.rollouts.collect import sample_episodes, text_env  # noqa: PLC0415

        base = text_env(envs)
        if self.agent is None:
            policy = TextPolicy.of_reference(base)
            policy = policy if watermark is None else WatermarkedPolicy(policy, watermark)
            return _Loaded(base, lambda starts, generator: sample_episodes(envs, policy, generator, starts), policy)
        agent: Any = find(self.agent).load(self.policy, envs)
        if watermark is not None:
            if not isinstance(getattr(agent, "policy", None), TextPolicy):
                raise TextEnvError(f"--watermark: the agent {self.agent!r} has no policy whose tokens could be marked.")
            agent.policy = WatermarkedPolicy(agent.policy, watermark)
        drawn, plain = getattr(agent, "policy", None), getattr(agent, "best_of", None) is None
        return _Loaded(
            base,
            lambda starts, generator: agent.sample(envs, starts, generator=generator),
            drawn if plain and type(drawn) in (TextPolicy, WatermarkedPolicy) else None,
            getattr(agent, "mask", None),
        )


@dataclass(frozen=True)
class _Loaded:
    """A policy or a model in an environment.

    Attributes:
        base: The environment.
        sample: Writes an episode from each of some prompts or seeds, given a generator.
        policy: What draws its tokens one by one; None for an agent that does more than draw.
        mask: Which tokens the policy may draw; None for all that the environment allows.
    """

    base: TextVectorEnv
    sample: Callable[[Sequence[Any], Any], list[Episode]]
    policy: Any
    mask: Any = None

    def write(self, prompt: Prompt, generator: Any) -> Iterator[int]:
        """Yield the tokens that follow a prompt, as long as they are asked for."""
        import numpy as np  # noqa: PLC0415

        if self.policy is None:
            (episode,) = self.sample([prompt], generator)
            yield from episode.completion_ids
            return
        ids = list(prompt.ids)
        while True:
            obs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int8)}
            masks = self.base.action_masks_at(obs)
            if self.mask is not None:
                masks = self.mask(obs, np.arange(1), masks)
            (token,), _ = self.policy.act(obs, generator=generator, masks=masks)
            ids.append(int(token))
            yield ids[-1]


def _records(episodes: Sequence[Episode], watermark: Watermark | None, tokenizer: Any) -> list[dict[str, Any]]:
    """Return episodes as records, with what a detector needs to know of the watermark: all but its key."""
    from textenv.analysis.watermark import origin  # noqa: PLC0415

    about = {} if watermark is None else {"watermark": origin(watermark, tokenizer)}
    return [
        {
            "prompt": episode.prompt if episode.start.given is None else episode.start.given,
            "completion": episode.completion,
            **about,
        }
        for episode in episodes
    ]


def _run_of(folder: Path) -> Path | None:
    """Return the run that a folder is, or that it is the policy of; None for a folder of something else."""
    for run in (folder, folder.parent):
        known = run == folder or ((folder / "agent.json").is_file() and folder.name == "policy")
        path = run / "config.json"
        if known and path.is_file() and {"settings", "agent"} <= read_json(path).keys():
            return run
    return None


def _dialogue(loaded: _Loaded, generator: Any, system: str | None) -> Dialogue:
    """Return a conversation with what writes."""
    from textenv.env.dialogue import Dialogue  # noqa: PLC0415

    return Dialogue(
        loaded.base.reference,
        lambda prompt: loaded.write(prompt, generator),
        endings=loaded.base.endings,
        max_tokens=loaded.base.width,
        system=system,
    )


def _converse(dialogue: Dialogue) -> None:
    """Answer every line that is typed or piped as a message of a conversation.

    Raises:
        TextEnvError: A line that was piped cannot be answered; one that was typed may be typed again.
    """
    typed = sys.stdin.isatty()
    if typed:
        sys.stdout.write("A conversation: /reset begins anew, /save FILE keeps it, /quit ends it.\n")
    for line in _typed("you> "):
        command, _, argument = line.strip().partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            dialogue.reset()
            continue
        try:
            if command == "/save":
                _save(dialogue, argument.strip())
            else:
                _print_answer(dialogue, line)
        except TextEnvError as error:
            if not typed:
                raise
            sys.stdout.write(f"{error} (/reset begins anew.)\n")


def _print_answer(dialogue: Dialogue, line: str) -> None:
    """Print the answer to a line, token by token, and say so if it was cut."""
    from textenv.env.render import visible  # noqa: PLC0415

    for piece in dialogue.say(line):
        sys.stdout.write(visible(piece, keep="\n"))
        sys.stdout.flush()
    cut = " [cut: --max-new-tokens gives longer answers]" if dialogue.end == "length" else ""
    sys.stdout.write(f"{cut}\n")


def _save(dialogue: Dialogue, name: str) -> None:
    """Add a conversation to a file, as a record with its messages.

    Raises:
        TextEnvError: No file is named, nothing has been said, or the file is of another kind or cannot be written.
    """
    if not name:
        raise TextEnvError("/save names no file; expected one that ends in .jsonl, such as /save talks.jsonl.")
    if not dialogue.ids:
        raise TextEnvError("/save: nothing has been said yet.")
    append_records(Path(name), [{"messages": [dict(message) for message in dialogue.messages]}])
    sys.stdout.write(f"{len(dialogue.messages)} messages added to {name}\n")


def _typed(ask: str) -> Iterator[str]:
    """Yield the lines that are typed or piped, less those that are empty; ``ask`` stands before each."""
    while True:
        try:
            line = input(ask)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise TextEnvError(f"What was typed is not {error.encoding} ({error}); type or pipe UTF-8.") from error
        if line.strip():
            yield line
