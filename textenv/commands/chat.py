"""``textenv chat``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from textenv.commands.base import Command
from textenv.commands.sample import Sample
from textenv.validation import Count, Positive, Seed, Threads

__all__ = ["Chat"]


@dataclass(frozen=True)
class Chat(Command):
    """Hold a conversation with a trained policy or any model that has a chat template, in the terminal.

    Each line is a message that goes on from all before it, and the answer appears token by token. "/reset" begins anew,
    "/save FILE" adds the conversation to a .jsonl file that "textenv sft" learns from, "/quit" ends.

    Attributes:
        run_folder: Folder of a run of ``textenv train``, of its policy, or of any model in Hugging Face format; or
            "smollm2", a small chat model that is fetched on first use.
        system: System message to begin with.
        greedy: Take the likeliest token every time.
        temperature: Divides the logits; None for that of the run, else 1.
        max_new_tokens: Tokens of an answer, at most; None for 256, or half of what the model reads.
        max_prompt_tokens: Room for all of the conversation before an answer; None for what the model reads.
        seed: Seeds the tokens.
        device: Where it runs; None for where it was trained.
        watermark: Scheme to mark the answers with, so that "textenv detect" finds them: gumbel, green_list or synthid.
        watermark_key_file: File with the watermark's key; None for the environment variable TEXTENV_WATERMARK_KEY.
        watermark_settings: Settings of the scheme as a JSON object.
        trust: Let the run's config.json import code and read environment variables: only for a run of your own.
        threads: Threads that torch computes with; None leaves that to torch.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    system: str | None = None
    greedy: bool = False
    temperature: Positive | None = None
    max_new_tokens: Count | None = None
    max_prompt_tokens: Count | None = None
    seed: Seed = 0
    device: str | None = None
    watermark: str | None = None
    watermark_key_file: Path | None = None
    watermark_settings: str = "{}"
    trust: bool = False
    threads: Threads | None = None

    def run(self) -> int:
        """Hold the conversation."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Sample(**given, chat="yes").run()
