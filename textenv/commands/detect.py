"""``textenv detect``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.commands.flags import parse_watermark
from textenv.data.outputs import OutputFile

__all__ = ["Detect"]

_LOW = 0.01


@dataclass(frozen=True)
class Detect(Command):
    """Tell which texts carry a watermark: a p-value and a score for each text and each line, and a heat map.

    Attributes:
        file: Texts: parts of a .txt file between blank lines, or records with "completion" or "text" (.jsonl, .json,
            .csv, .parquet), such as "textenv sample --records" writes.
        watermark: Scheme that is looked for: gumbel, green_list or synthid.
        watermark_key_file: File with the key that the texts were written with; None for the environment variable
            TEXTENV_WATERMARK_KEY. A key on a command line would be seen by all users of the machine.
        watermark_settings: Settings of the scheme as a JSON object, the same as in writing; "context" is the number of
            tokens that a mark depends on.
        tokenizer: Model that wrote the texts, whose tokenizer they are read with: "bundled", "smollm2", a folder,
            or a Hugging Face id.
        html: File to write the heat map to.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    watermark: str
    watermark_key_file: Path | None = None
    watermark_settings: str = "{}"
    tokenizer: str = "bundled"
    html: OutputFile | None = None

    def run(self) -> int:
        """Print what was found."""
        from textenv.analysis.watermark import (  # noqa: PLC0415 (what takes long to load, here and below)
            check_origin,
            detect,
            read_suspects,
            save_heat_map,
            to_terminal,
        )
        from textenv.env.render import color_is_shown  # noqa: PLC0415
        from textenv.models.codec import TextCodec  # noqa: PLC0415
        from textenv.models.loading import load_tokenizer  # noqa: PLC0415

        watermark = parse_watermark(self.watermark, self.watermark_key_file, self.watermark_settings)
        suspects = read_suspects(self.file)
        tokenizer = load_tokenizer(self.tokenizer)
        codec = TextCodec(tokenizer)
        detections = []
        for suspect in suspects:
            check_origin(suspect, watermark, tokenizer)
            detections.append(detect(suspect, watermark, codec))
            sys.stdout.write(to_terminal(detections[-1], color=color_is_shown()) + "\n")
        found = sum((each.verdict.p_value or 0.0) < _LOW for each in detections)
        tell(f"{found} of {len(detections)} texts have p < {_LOW}; without a watermark {_LOW:.0%} of all texts have.")
        if self.html is not None:
            save_heat_map(self.html, detections, watermark)
        return 0
