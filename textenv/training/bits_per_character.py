"""How well a language model predicts text, in a unit that models with different tokenizers share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from rich.progress import track
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textenv.models.positions import longest_input
from textenv.types import TextEnvError

__all__ = ["bits_per_character"]

_IGNORE = -100  # the target that cross_entropy leaves out


@torch.no_grad()
def bits_per_character(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    progress: bool = False,
) -> float:
    r"""Return the cross-entropy of texts under a causal language model, each text coded alone and its end included.

    With ``x_1 .. x_n`` the tokens of one text, ``x_0`` the token that begins it and ``x_{n+1}`` the one that ends it:

    .. math:: \frac{\sum_{text} \sum_{t=1}^{n+1} -\log_2 p(x_t \mid x_0 \ldots x_{t-1})}{\sum_{text} (characters + 1)}

    The end counts as one character; a character is a Unicode code point. A text has many spellings in tokens and only
    the tokenizer's own is counted, so the figure is an upper bound. It doesn't depend on ``batch_size``.

    Args:
        model: A causal language model. Dropout is off while it is measured.
        tokenizer: Its tokenizer; it encodes each text once, without special tokens.
        texts: What to predict; an empty text is an end alone.
        batch_size: Texts a forward pass.
        bos_token_id: The token that begins a text. By default the tokenizer's, or ``eos_token_id`` where it has none.
        eos_token_id: The token that ends a text. By default the tokenizer's.
        progress: Whether to show a progress bar.

    Returns:
        Bits per character, at least 0; lower is better.

    Raises:
        TextEnvError: There are no texts, one of them exceeds the model's context, ``batch_size`` is below 1, no token
            ends a text, or the model gives no finite probability.
    """
    if not texts or batch_size < 1:
        raise TextEnvError(f"{len(texts)} texts, batch_size={batch_size}: expected at least 1 of both.")
    eos = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    if not isinstance(eos, int):
        raise TextEnvError(
            f"The tokenizer's eos_token_id is {eos!r}; expected the id of the token that ends a text: pass one."
        )
    bos = tokenizer.bos_token_id if bos_token_id is None else bos_token_id
    start = bos if isinstance(bos, int) else eos
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    sequences = sorted(([start, *ids, eos] for ids in encoded), key=len, reverse=True)  # little padding, longest first
    _check_context(model, longest=len(sequences[0]) - 1)
    starts = track(range(0, len(sequences), batch_size), "bits per character", transient=True, disable=not progress)
    training = model.training
    model.train(False)
    try:
        nats = sum(_nats(model, sequences[first : first + batch_size], padding=eos) for first in starts)
    finally:
        model.train(training)
    if not math.isfinite(nats):
        name = model.config.name_or_path or type(model).__name__
        raise TextEnvError(f"{name} gives the texts {nats} nats; expected a finite number. Check its weights.")
    return nats / math.log(2) / sum(len(text) + 1 for text in texts)


def _check_context(model: PreTrainedModel, longest: int) -> None:
    limit = longest_input(model)
    if limit is not None and longest > limit:
        raise TextEnvError(
            f"The longest text takes {longest} tokens, its beginning included; the model's context is {limit}. Cut the "
            "text, or leave it out."
        )


def _nats(model: PreTrainedModel, sequences: Sequence[Sequence[int]], padding: int) -> float:
    """Return the nats of all tokens but the first of each sequence; ``sequences`` begin with the longest."""
    inputs = torch.full((len(sequences), len(sequences[0]) - 1), padding)
    targets = torch.full_like(inputs, _IGNORE)
    mask = torch.zeros_like(inputs)
    for row, ids in enumerate(sequences):  # from lengths: the padding token may stand in the text as well
        length = len(ids) - 1
        inputs[row, :length] = torch.tensor(ids[:-1])
        targets[row, :length] = torch.tensor(ids[1:])
        mask[row, :length] = 1
    logits = model(input_ids=inputs.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.to(model.device).flatten(), ignore_index=_IGNORE, reduction="none"
    )
    return float(losses.double().sum())
