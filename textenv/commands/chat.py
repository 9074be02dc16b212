"""``textenv chat``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.commands.sample import Sample
from textenv.data.outputs import OutputFile
from textenv.types import TextEnvError
from textenv.validation import Count, NonEmpty, Port, Positive, Seed, Threads

__all__ = ["Chat"]


@dataclass(frozen=True)
class Chat(Command):
    """Hold a conversation with a trained policy or any model that has a chat template, in the terminal or on a page.

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
        web: Hold it on a page of this machine instead, in a browser.
        port: Port of the page; 0 for one that is free, None for 8902.
        store: File of feedback that the page keeps thumbs in, made if it is missing; None for a page without thumbs.
            An answer with a thumb up and another to the same messages with a thumb down are a comparison, which
            "textenv reward train" learns from.
        name: Who gives the thumbs; None for "me".
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
    web: bool = False
    port: Port | None = None
    store: OutputFile | None = None
    name: NonEmpty | None = None

    keeps_memory: ClassVar[bool] = False

    def run(self) -> int:
        """Hold the conversation."""
        shared = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _PAGE}
        sample = Sample(**shared, chat="yes")
        if given := [name for name in ("port", "store", "name") if getattr(self, name) is not None and not self.web]:
            raise TextEnvError(f"--{given[0]} is a setting of the page: give --web too.")
        if self.name is not None and self.store is None:
            raise TextEnvError(f"--name {self.name}: names who gives thumbs, which are kept in a --store; name one.")
        if not self.web:
            return sample.run()
        from textenv.feedback.chat_server import Thumbs, serve_chat_page  # noqa: PLC0415 (an optional dependency)
        from textenv.feedback.store import FeedbackStore  # noqa: PLC0415
        from textenv.models.loading import resolve_model  # noqa: PLC0415

        dialogue = sample.open_dialogue()

        def serve(thumbs: Thumbs | None) -> None:
            serve_chat_page(
                dialogue,
                thumbs,
                title=str(self.run_folder),
                port=_PORT if self.port is None else self.port,
                announce=lambda url: tell(f"Chat at {url}"),
            )

        if self.store is None:
            serve(None)
            return 0
        with FeedbackStore(self.store) as store:
            serve(Thumbs(store, annotator=self.name or "me", policy=resolve_model(self.run_folder)))
        return 0


_PORT = 8902
_PAGE = ("web", "port", "store", "name")
"""The fields of the page alone."""
