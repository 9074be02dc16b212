"""``textenv browse compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.data.outputs import OutputFile
from textenv.types import TextEnvError
from textenv.validation import Count, Seed, Temperature

if TYPE_CHECKING:
    from textenv.feedback.browse_comparisons import Answers

__all__ = ["Compare"]


@dataclass(frozen=True)
class Compare(Command):
    """Ask annotators which of two answers to a question is better, each with its quotes: afterwards, textenv label.

    Answers are those of files, and those that policies give in textenv/Browse-v0. What was compared is exported, and a
    reward model trained on it, as any other rankings: the prompt is the question, the completion quotes and answer.

    Attributes:
        store: The store of feedback; made if it is missing.
        answers: Each NAME=FILE: turns that "textenv browse demonstrate" or "textenv browse record" has written.
        policies: Each NAME=FOLDER: a run of textenv train, a model's folder or Hugging Face id, or "bundled".
        web: File that "textenv browse index" has written, with the questions of policies; None for the web of WordNet.
        split: Share of the questions that policies are asked.
        questions: Number of questions that policies are asked, drawn with replacement, the same for all.
        samples: Episodes of each policy for a question.
        browser: Settings of the browser as a JSON object, in place of those of textenv/Browse-v0.
        temperature: Temperature of the samples; None for the run's, else 1.
        judgements: From how many annotators a judgement of each comparison is wanted.
        seed: Seeds the questions, the tokens, and which answers are compared.
    """

    store: Annotated[OutputFile, tyro.conf.Positional]
    answers: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    web: Path | None = None
    split: Literal["all", "demonstrations", "comparisons", "train", "heldout"] = "comparisons"
    questions: Count = 100
    samples: Count = 2
    browser: str = "{}"
    temperature: Temperature | None = None
    judgements: Count = 1
    seed: Seed = 0

    def run(self) -> int:
        """Read and sample answers, add the tasks, and say how many there are."""
        from textenv.feedback.browse_comparisons import add_comparisons, pair_answers  # noqa: PLC0415 (slow)
        from textenv.feedback.store import FeedbackStore  # noqa: PLC0415

        found = self._answers()
        if not found:
            raise TextEnvError("Name files of answers (--answers NAME=FILE), or policies (--policies NAME=FOLDER).")
        pairs = pair_answers(found, self.seed)
        with FeedbackStore(self.store) as store:
            added = add_comparisons(store, found, pairs, judgements=self.judgements)
        questions = len({prompt for each in found for prompt, _ in each.found})
        known = f" {len(pairs) - added} were there already." if added < len(pairs) else ""
        tell(f"{self.store}: {added} comparisons added, of {questions} questions that were answered.{known}")
        return 0

    def _answers(self) -> Sequence[Answers]:
        """Return the answers in files, and those that policies give."""
        from textenv.data.files import parse_json  # noqa: PLC0415
        from textenv.feedback.browse_comparisons import Answers, read_answers, sample_answers  # noqa: PLC0415
        from textenv.feedback.sampling import named, named_folders  # noqa: PLC0415

        files = named("--answers", self.answers, "FILE")
        read = [Answers(name, str(Path(file).resolve()), read_answers(Path(file))) for name, file in files.items()]
        folders = named_folders(self.policies) if self.policies else {}
        if both := [name for name in folders if name in files]:
            raise TextEnvError(f"{both[0]!r} names both answers and a policy; give them names that differ.")
        settings: dict[str, Any] = {"temperature": self.temperature} if self.temperature is not None else {}
        settings |= {"web": self.web, "split": self.split, "browser": parse_json(self.browser, "--browser")}
        counts = {"questions": self.questions, "samples": self.samples, "seed": self.seed}
        return [
            *read,
            *(Answers(name, folder, sample_answers(folder, **counts, **settings)) for name, folder in folders.items()),
        ]
