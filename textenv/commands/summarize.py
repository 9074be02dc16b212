"""``textenv summarize``."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from annotated_types import Ge

from textenv.commands.base import FROM_CHECKPOINT, Command, use_threads
from textenv.commands.console import tell
from textenv.data.outputs import OutputFolder
from textenv.types import TextEnvError
from textenv.validation import Count, NonNegative, Seed, Threads

if TYPE_CHECKING:
    from textenv.models.causal_lm import CausalLM

__all__ = ["Summarize"]


@dataclass(frozen=True)
class Summarize(Command):
    """Summarize a book of any length: its passages, groups of their summaries, and so on up to one summary.

    The folder gets summary.txt, and summary.html, on which each sentence can be followed down to the book.

    Attributes:
        book: The book: plain text or Markdown (.txt, .md), HTML (.html) or an EPUB without copy protection.
        out: Folder of the summaries. A run in it goes on.
        model: What writes them: "bundled", "smollm2", the folder of a model, or a Hugging Face id.
        leaf_tokens: Tokens of a passage; None for 600, or a quarter of the window. Summaries are in proportion: of 600
            tokens 128, of summaries 192 and then 384.
        window: Tokens that the model reads at once, with the summaries of what came before and what it writes; a model
            that takes fewer reads as many as it takes.
        chat: Ask in messages, by the chat template; auto does where the model has one.
        temperature: Divides the logits; 0 takes the likeliest token.
        seed: Seeds what is drawn.
        device: Where the model runs.
        threads: Threads that torch computes with; None leaves that to torch.
    """

    book: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BOOK")]
    out: OutputFolder
    model: str = "bundled"
    leaf_tokens: Count | None = None
    window: Annotated[int, Ge(64)] = 2048
    chat: Literal["auto", "yes", "no"] = "auto"
    temperature: NonNegative = 0.0
    seed: Seed = 0
    device: str = "cpu"
    threads: Threads | None = None

    after_signal: ClassVar[str] = FROM_CHECKPOINT

    def run(self) -> int:
        """Write the summaries that are missing, and the page."""
        from textenv.analysis.book_summary import Reader, summarize_book  # noqa: PLC0415 (what takes long to load)
        from textenv.data.book_tree import TreeSettings  # noqa: PLC0415
        from textenv.data.books import read_book  # noqa: PLC0415
        from textenv.data.files import locked, write_atomically, write_json  # noqa: PLC0415
        from textenv.models.causal_lm import CausalLM  # noqa: PLC0415
        from textenv.models.loading import resolve_model  # noqa: PLC0415
        from textenv.rollouts.runs import check_settings  # noqa: PLC0415
        from textenv.web.book_page import book_page  # noqa: PLC0415

        text = read_book(self.book)
        use_threads(self.threads)
        model = resolve_model(self.model)
        lm = CausalLM.from_pretrained(model, device=self.device)
        reader = Reader(lm, chat=self._asks_in_messages(lm), temperature=self.temperature, seed=self.seed)
        sizes = TreeSettings.of_window(
            min(self.window, lm.max_positions or self.window), reader.tokens.frame, self.leaf_tokens
        )
        settings: dict[str, Any] = {
            "command": "summarize",
            "book_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "model": model,
            "leaf_tokens": sizes.leaf_tokens,
            "window": sizes.window,
            "chat": reader.tokens.chat,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        with locked(self.out):
            check_settings(self.out, settings)
            write_json(self.out / "config.json", settings)
            with _Progress() as progress:
                nodes = summarize_book(text, reader, sizes, self.out / "nodes.jsonl", progress=progress.show)
            write_atomically(self.out / "summary.txt", nodes[-1].summary + "\n")
            page = self.out / "summary.html"
            write_atomically(page, book_page(self.book.stem, self.model, text, nodes))
        tell(nodes[-1].summary, f"{len(nodes):,} summaries; {progress.took()}. The page: {page}")
        return 0

    def _asks_in_messages(self, lm: CausalLM) -> bool:
        template = bool(getattr(lm.tokenizer, "chat_template", None))
        if self.chat == "yes" and not template:
            raise TextEnvError(f"--chat yes: the model {self.model!r} has no chat template; leave it out.")
        return template if self.chat == "auto" else self.chat == "yes"


class _Progress:
    """A bar of the summaries that are done."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        from textenv.rollouts.console import SafeConsole  # noqa: PLC0415

        columns = (TextColumn("summaries"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=SafeConsole())
        self._task = self._bar.add_task("", total=None)
        self._began = time.monotonic()
        self._before: int | None = None
        self._done = 0

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Show how many are done."""
        self._before, self._done = done if self._before is None else self._before, done
        self._bar.update(self._task, completed=done, total=total)

    def took(self) -> str:
        """Return how many were made now, and in which time."""
        return f"{self._done - (self._before or 0):,} made now, in {time.monotonic() - self._began:.0f} s"
