"""The reference model: loading it, and what it says of each row's next token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from textenv.env.episodes import EpisodeBatch
from textenv.env.settings import TextEnvSettings
from textenv.models.causal_lm import CausalLM
from textenv.models.distributions import log_softmax
from textenv.models.loading import find_device
from textenv.types import IntArray, Observation, TextEnvError, short

__all__ = ["NextTokens", "likeliest", "load_reference"]


def load_reference(settings: TextEnvSettings) -> CausalLM:
    """Load the reference, or return the one that was given.

    Raises:
        TextEnvError: It cannot be loaded, or the one that was given is not on the device, or not of the data type, that
            the settings name.
    """
    lm = settings.model
    if not isinstance(lm, CausalLM):
        if not isinstance(lm, (str, Path)) or not str(lm):
            raise TextEnvError(
                f"model={short(lm)}: expected 'bundled', 'smollm2', a folder, a Hugging Face id, or a CausalLM, "
                "which holds a model and its tokenizer."
            )
        lm = CausalLM.from_pretrained(lm, device=settings.device or "cpu", dtype=settings.torch_dtype or "float32")
        lm.model.requires_grad_(False)
        return _rounded(lm, settings)
    if settings.device is not None:
        wanted = find_device(settings.device)
        if wanted.type != lm.device.type or wanted.index not in (None, lm.device.index or 0):
            raise TextEnvError(
                f"device={settings.device!r}, but the model that was given is on {str(lm.device)!r}; leave device out, "
                "or load the model there: CausalLM.from_pretrained(..., device=...)."
            )
    if settings.torch_dtype not in (None, "auto", str(lm.model.dtype).removeprefix("torch.")):
        raise TextEnvError(
            f"torch_dtype={settings.torch_dtype!r}, but the model that was given is of {lm.model.dtype}; leave it out, "
            "or load the model so: CausalLM.from_pretrained(..., dtype=...)."
        )
    return _rounded(lm, settings)


def _rounded(lm: CausalLM, settings: TextEnvSettings) -> CausalLM:
    """Return a reference in the precision that the settings name; one forward refuses a model that cannot be."""
    precision = settings.reference_precision
    if precision is None or precision == lm.precision:
        return lm
    lm = lm.at_precision(precision)
    lm.next_token_logits(np.zeros((1, 1), dtype=np.int64), np.ones(1, dtype=np.int64))
    return lm


class NextTokens:
    """The reference's log-probabilities of each row's next token, and the action masks that follow from them.

    Attributes:
        log_probs: Those of the whole vocabulary at the states last read, within the mask, in nats, shape ``(n, V)``;
            None as long as no whole distribution was needed.
        masks: Which tokens ``top_k``/``top_p`` leave at these states, shape ``(n, V)``; None before the first state,
            and without either setting.
    """

    def __init__(self, reference: CausalLM, settings: TextEnvSettings, num_envs: int) -> None:
        """Read nothing yet, for ``num_envs`` rows."""
        self.log_probs: NDArray[np.float32] | None = None
        self.masks: NDArray[np.bool_] | None = None
        self._reference, self._settings, self._num_envs = reference, settings, num_envs

    def log_prob_of(self, episodes: EpisodeBatch, rows: IntArray, tokens: IntArray) -> NDArray[np.float32]:
        """Return the log-probability of a token after each of some rows, in nats, shape ``(len(rows),)``."""
        settings = self._settings
        if not settings.masks_actions and settings.kl_estimator != "full":
            return self._reference.next_token_log_prob(
                episodes.ids[rows], episodes.lengths[rows], tokens, settings.temperature, rows=rows
            )
        if not settings.masks_actions:  # with masks, the last step or reset has read these states already
            self.read(episodes, rows)
        assert self.log_probs is not None
        return self.log_probs[rows, tokens]

    def read(self, episodes: EpisodeBatch, rows: IntArray) -> None:
        """Compute ``log_probs`` and ``masks`` at the present states of some rows."""
        logits = self._reference.next_token_logits(episodes.ids[rows], episodes.lengths[rows], rows=rows)
        log_probs = log_softmax(logits, self._settings.temperature)
        if self.log_probs is None:
            self.log_probs = np.zeros((self._num_envs, self._reference.vocab_size), dtype=np.float32)
        if self._settings.masks_actions:
            if self.masks is None:
                self.masks = np.ones(self.log_probs.shape, dtype=bool)
            allowed = likeliest(log_probs, self._settings.top_k, self._settings.top_p)
            self.masks[rows] = allowed
            # Within the mask the reference is normalized anew, as a masked policy is. A token outside stays legal and
            # keeps its plain log-probability, which is finite, so that its reward is finite too.
            mass = np.log(np.where(allowed, np.exp(log_probs), 0.0).sum(axis=1, keepdims=True))
            log_probs = np.where(allowed, log_probs - mass, log_probs)
        self.log_probs[rows] = log_probs

    def masks_at(self, obs: Observation, episodes: EpisodeBatch, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which tokens ``top_k``/``top_p`` leave after some texts, shape ``(batch, V)``.

        Args:
            obs: Observations, batched.
            episodes: The environment's own; a text that is that of the same row has the mask computed for the row.
            done: Which of its rows are over, and have none.
        """
        ids, mask = np.asarray(obs["input_ids"], dtype=np.int64), np.asarray(obs["attention_mask"])
        lengths = mask.sum(axis=1, dtype=np.int64)
        masks = np.zeros((len(ids), self._reference.vocab_size), dtype=bool)
        own = np.zeros(len(ids), dtype=bool)
        if self.masks is not None and ids.shape == episodes.ids.shape:
            own = (ids == episodes.ids).all(axis=1) & (lengths == episodes.lengths) & ~done
            masks[own] = self.masks[own]
        if len(rows := np.flatnonzero(~own)):
            logits = self._reference.next_token_logits(ids[rows], lengths[rows], rows=rows)
            log_probs = log_softmax(logits, self._settings.temperature)
            masks[rows] = likeliest(log_probs, self._settings.top_k, self._settings.top_p)
        return masks


def likeliest(log_probs: NDArray[np.float32], top_k: int | None, top_p: float | None) -> NDArray[np.bool_]:
    """Return the ``top_k`` likeliest tokens and, of them, the fewest that hold ``top_p`` of the probability.

    Args:
        log_probs: In nats, shape ``(n, V)``.
        top_k: How many tokens; None for all.
        top_p: Probability; None for all tokens.

    Returns:
        True at these tokens, shape ``(n, V)``.
    """
    order = np.argsort(-log_probs, axis=1, kind="stable")
    ranked = np.ones(log_probs.shape, dtype=bool)
    if top_k is not None:
        ranked[:, top_k:] = False
    if top_p is not None:
        probabilities = np.exp(np.take_along_axis(log_probs, order, axis=1).astype(np.float64))
        ranked &= np.cumsum(probabilities, axis=1) - probabilities < top_p
    allowed = np.zeros_like(ranked)
    np.put_along_axis(allowed, order, ranked, axis=1)
    return allowed
