"""How many tokens a model can read, found by running it (configs count unused positions), and attend to at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["attention_window", "longest_input"]

_PROBE = 3  # tokens


def longest_input(model: Any) -> int | None:
    """Return the most tokens that a model reads, or None where it has no limit.

    That is what its config says, or less where its table of learned positions has fewer rows from that of the first
    token on: RoBERTa's begin behind the row of padding, those of OPT and BioGPT at the third. A short text is read to
    see which rows are taken.

    Args:
        model: A language model or a sequence classifier.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    limits = [int(limit)] if isinstance(limit, int) and limit > 0 else []  # some write -1 for none
    words = model.get_input_embeddings()
    padding = {getattr(config, "pad_token_id", None), getattr(words, "padding_idx", None)}  # which may have no place
    token = next((token for token in range(len(words.weight) - 1, 0, -1) if token not in padding), 0)
    ids = torch.full((1, _PROBE), token, device=model.device)  # all the same, so that they are not taken for places
    with torch.no_grad(), _Tables() as tables:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return min([*limits, *tables.limits], default=None)


class _Tables(TorchDispatchMode):
    """Notes how many tokens the tables have rows for that are read at consecutive places.

    Attributes:
        limits: Rows from the first that was read on, of each such table.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limits: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at a lookup, and do it."""
        if func is torch.ops.aten.embedding.default:
            table, places = args[:2]
            # others are read by pairs of tokens, such as buckets of distances: (time, time)
            if places.ndim == 1 or (places.ndim == 2 and places.shape[0] == 1):
                rows = places.flatten()[:_PROBE].tolist()
                if rows == list(range(rows[0], rows[0] + _PROBE)):
                    self.limits.append(int(table.shape[0]) - rows[0])
        return func(*args, **(kwargs or {}))


def attention_window(config: Any) -> int | None:
    """Return how many tokens the layer with the shortest window attends to, or None where all attend to the whole text.

    Args:
        config: A configuration of transformers.
    """
    if getattr(config, "use_sliding_window", True) is False:
        return None
    names = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
    sizes = [getattr(config, name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)
