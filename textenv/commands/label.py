"""``textenv label``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.data.records import read_text
from textenv.types import TextEnvError
from textenv.validation import NonEmpty, Port, Seconds

__all__ = ["Label"]


@dataclass(frozen=True)
class Label(Command):
    """Open the page on which people compare and write what a file of feedback asks for; several can at once.

    Attributes:
        store: File of the feedback; "textenv feedback add" and "textenv feedback import" make one.
        guidelines: Text file that tells annotators what to go by: paragraphs, "# headings" and "- lists".
        host: Address to listen at. Where other machines can reach it, the page asks for a password.
        port: Port to listen at; 0 for one that is free.
        allow_host: Other names that the page answers by, such as a proxy's.
        lease_seconds: How long a comparison, and a name, is one annotator's after the last sign of life.
        password_file: File with the password to ask for; None for one that is made up and shown, where other machines
            can reach the page, and for none where they cannot.
        clip_folders: Folders that clips may lie in, besides that of the store.
    """

    store: Annotated[Path, tyro.conf.Positional]
    guidelines: Path | None = None
    host: NonEmpty = "127.0.0.1"
    port: Port = 8901
    allow_host: tuple[str, ...] = ()
    lease_seconds: Seconds = 600.0
    password_file: Path | None = None
    clip_folders: tuple[Path, ...] = ()

    after_signal: ClassVar[str] = (
        "Every judgement that was acknowledged is stored; the same command opens the page again."
    )
    keeps_memory: ClassVar[bool] = False

    def run(self) -> int:
        """Serve the page until a signal ends it."""
        from textenv.feedback.label_server import serve_label_page  # noqa: PLC0415 (an optional dependency)
        from textenv.feedback.sign_in import made_password, only_here, owner_key, page_key  # noqa: PLC0415
        from textenv.feedback.store import FeedbackStore  # noqa: PLC0415

        guidelines = "" if self.guidelines is None else _text_of(self.guidelines, "--guidelines")
        password = "" if self.password_file is None else _text_of(self.password_file, "--password-file").strip()
        if self.password_file is not None and not password:
            raise TextEnvError(f"--password-file {self.password_file}: expected a password, found an empty file.")

        def announce(url: str) -> None:
            tell(f"Compare at {url}")
            tell(f"Figures for you alone, since they would tell annotators who wrote what: {url}state?owner={owner}")
            if not only_here(self.host):
                tell(
                    "Warning: other machines can reach this page, and what is sent to it is not encrypted. Keep it to "
                    "a network that you trust, or put a proxy with HTTPS in front. Names that it is reached by need "
                    "--allow-host."
                )
            if password and self.password_file is None:
                tell(f"Password for annotators: {password}")

        with FeedbackStore(self.store, create=False) as store:
            key = page_key(self.store)
            owner = owner_key(key)
            if not password and not only_here(self.host):
                password = made_password(key)
            serve_label_page(
                store,
                key=key,
                host=self.host,
                port=self.port,
                guidelines=guidelines,
                hosts=self.allow_host,
                lease_seconds=self.lease_seconds,
                password=password,
                clip_folders=self.clip_folders,
                announce=announce,
            )
        return 0


def _text_of(path: Path, flag: str) -> str:
    try:
        return read_text(path)
    except TextEnvError as error:
        raise TextEnvError(f"{flag}: expected a file of text; {error}") from error
