"""A language model that acts: token-level policy and value function over the environment's observations."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.checkpoint import checkpoint

from textenv.models import acting, distributions
from textenv.models.causal_lm import CausalLM
from textenv.models.distributions import divide_by_temperature, draw, log_softmax, token_log_prob
from textenv.models.loading import quiet
from textenv.models.lora import Lora, add_adapter, load_adapter, save_adapter
from textenv.models.rounding import Precision
from textenv.models.value_function import apply_value_head, load_values, new_value_head, save_values
from textenv.types import FloatArray, IntArray, Observation, TextEnvError

__all__ = ["Evaluation", "HasReference", "TextPolicy", "observation_arrays"]


_MAX_LOGITS = 2**28  # numbers, 1 GiB in float32: what a training forward computes at a time on a GPU
_MAX_CPU_LOGITS = 2**24  # the same on a CPU


class Evaluation(NamedTuple):
    """What a training forward gives of every token written, packed row by row, each of shape ``(tokens,)``.

    Attributes:
        log_probs: log pi of the tokens.
        entropy: Of the distributions that they were drawn from.
        values: ``V(s)``.
        candidates: log pi of other tokens in their place, ``(tokens, candidates)``.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor
    candidates: torch.Tensor


class _LastAct(NamedTuple):
    """The states that a policy has acted in last; a tuple, because setting an attribute of a module is slow.

    Attributes:
        batch: Number of rows.
        act: What it has read and drawn, with log-probabilities; None before it has acted.
        logits: The logits that it drew from, shape ``(n, vocab_size)``.
    """

    batch: int
    act: acting.Act | None
    logits: torch.Tensor


class _HasTemperature(Protocol):
    @property
    def temperature(self) -> float: ...


class HasReference(Protocol):
    """What the policy of a reference needs of its vector environment."""

    @property
    def reference(self) -> CausalLM:
        """The reference model."""
        ...

    @property
    def settings(self) -> _HasTemperature:
        """Its settings."""
        ...


def observation_arrays(obs: Observation) -> tuple[IntArray, IntArray]:
    """Return token ids ``(batch, time)`` and lengths ``(batch,)`` of an observation, single ones as a batch of one.

    Raises:
        TextEnvError: They are no whole numbers.
    """
    ids, mask = np.asarray(obs["input_ids"]), np.asarray(obs["attention_mask"])
    if ids.dtype.kind not in "iu" or mask.dtype.kind not in "iub":
        raise TextEnvError(
            f"Observations are token ids, and these are of type {ids.dtype} with a mask of type {mask.dtype}: expected "
            "whole numbers, as the environment gives them. With Stable-Baselines3's VecNormalize use norm_obs=False."
        )
    if ids.ndim == 1:
        ids, mask = ids[None], mask[None]
    return ids.astype(np.int64, copy=False), mask.sum(axis=1, dtype=np.int64)


class TextPolicy(nn.Module):
    """A causal language model as ``pi(a|s)``, with ``V(s)`` computed from its last hidden state.

    Both are computed at the same position: the token before the action. The value head starts at zero, so that the
    first advantages are the returns.

    Attributes:
        lm: The language model that acts.
        value_lm: The trunk of a value model of its own, or None where the value head sits on the policy's trunk.
        value_head: Maps hidden states to values, ``(hidden_size) -> 1``.
        temperature: Divides the logits, when acting and when training alike.
    """

    def __init__(
        self,
        lm: CausalLM,
        *,
        value: Literal["head", "model", "none"] = "head",
        temperature: float = 1.0,
        lora: Lora | None = None,
        gradient_checkpointing: bool = False,
        trainable: bool = True,
    ) -> None:
        """Make a policy that starts as a copy of ``lm``.

        Args:
            lm: The model to start from; it gives the same numbers as before.
            value: ``"head"`` on the policy's trunk, ``"model"`` of its own, or ``"none"``: values are 0.
            temperature: That of the environment.
            lora: Share the network and its weights with ``lm`` and learn an adapter; None for a copy that learns in
                all its weights.
            gradient_checkpointing: Keep only the inputs of layers for the backward pass, and compute the rest again.
            trainable: Whether it is to learn; else it acts with ``lm`` itself.

        Raises:
            TextEnvError: The model is not made for the adapter, or for checkpoints of gradients.
        """
        super().__init__()
        if lora is not None and value == "model":
            raise TextEnvError("value='model' makes a second copy of the weights, which LoRA avoids: use 'head'.")
        self.lm = lm if not trainable else _trainable_copy(lm) if lora is None else add_adapter(lm, lora)
        self.model = self.lm.model  # registers the parameters
        self.value_lm = _trainable_copy(lm) if value == "model" else None
        self.value_model = self.value_lm.model.base_model if self.value_lm is not None else None
        self.value_head = new_value_head(lm.hidden_size, lm.device) if value != "none" else None
        self.temperature = temperature
        if gradient_checkpointing:
            for each in (self.lm, self.value_lm):
                if each is not None:
                    each.enable_gradient_checkpointing()
        self._last_act = _LastAct(0, None, torch.zeros(0))

    @classmethod
    def of_reference(cls, env: HasReference) -> Self:
        """Return the reference of an environment as a policy: its own weights, not copied, and no value function.

        Args:
            env: The vector environment, without wrappers; the policy acts at its temperature.
        """
        return cls(env.reference, value="none", temperature=env.settings.temperature, trainable=False)

    @property
    def learned(self) -> nn.Module:
        """What training changes: all of it, or the adapter and the value head, under their names."""
        if self.lm.adapter is None:
            return self
        adapter = f".{self.lm.adapter}."
        learned = {name: p for name, p in self.named_parameters() if adapter in name or "value_head" in name}
        return nn.ParameterDict({name.replace(".", "/"): p for name, p in learned.items()})

    def train(self, mode: bool = True) -> TextPolicy:
        """Do nothing: dropout stays off, or the ratio of new to old policy would not start at 1."""
        return self

    @torch.no_grad()
    def act(
        self,
        obs: Observation,
        *,
        generator: torch.Generator | None = None,
        rows: IntArray | None = None,
        masks: NDArray[np.bool_] | None = None,
        uniform: torch.Tensor | None = None,
    ) -> tuple[IntArray, FloatArray]:
        """Choose the next token of each row.

        Args:
            obs: Observations, batched.
            generator: Source of randomness; None for the likeliest token.
            rows: The rows to act in; the others get token 0, cost hardly anything, and have log pi = 0.
            masks: Which tokens may be drawn, shape ``(batch, vocab_size)``; the rest is renormalized.
            uniform: Numbers from 0 to 1 to draw with, in place of the generator's, shape ``(len(rows), 1)``.

        Returns:
            Actions and the values of the states, both of shape ``(batch,)``.

        Raises:
            TextEnvError: A mask allows no token, or the probabilities are not finite.
        """
        ids, lengths = observation_arrays(obs)
        rows = np.arange(len(lengths)) if rows is None else rows
        batch, ids, lengths = len(lengths), ids[rows], lengths[rows]
        logits, hidden = self._next(ids, lengths, rows, masks)
        probabilities = torch.softmax(logits, dim=-1)
        tokens = _choose(probabilities, generator, uniform)
        # Of probabilities that are NaN, one past the last is drawn.
        chosen = probabilities.gather(1, tokens[:, None].clamp(max=probabilities.shape[1] - 1))[:, 0].log()
        found = _to_host(tokens, chosen, self._value(ids, lengths, rows, hidden))
        if not np.isfinite(found[1]).all():
            raise TextEnvError(
                "The policy's probabilities are not finite: its weights are not, or its logits overflow. Lower "
                "learning_rate, or raise temperature; the run's last checkpoint is from before."
            )
        actions, values = np.zeros(batch, dtype=np.int64), np.zeros(batch, dtype=np.float32)
        actions[rows], values[rows] = found[0], found[2]
        log_probs = np.asarray(found[1], dtype=np.float32)
        act = acting.Act(rows, ids, lengths, actions[rows], log_probs, self.temperature, masks is not None)
        self._last_act = _LastAct(batch, act, logits)
        acting.record(act, self)
        return actions, values

    def _next(
        self, ids: IntArray, lengths: IntArray, rows: IntArray, masks: NDArray[np.bool_] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits it draws from, ``(n, vocab_size)``, and the hidden states that they are computed from."""
        logits, hidden = self.lm.next_token(ids, lengths, rows=rows)
        if masks is not None:
            allowed = masks[rows].astype(bool)
            if not allowed.any(axis=1).all():
                raise TextEnvError(f"masks allow no token in rows {rows[~allowed.any(axis=1)].tolist()}.")
            logits = logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)
        logits = divide_by_temperature(logits, self.temperature)
        logits = self.steer(logits, ids, lengths, rows)
        return logits, hidden

    @torch.no_grad()
    def next_log_probs(self, obs: Observation, rows: IntArray, *, masks: NDArray[np.bool_] | None = None) -> FloatArray:
        """Return log pi of the whole vocabulary in ``rows``, shape ``(len(rows), vocab_size)``, without acting.

        Args:
            obs: Observations, batched.
            rows: Which of them.
            masks: Which tokens may be drawn, shape ``(batch, vocab_size)``; the rest is renormalized.

        Raises:
            TextEnvError: A mask allows no token.
        """
        ids, lengths = observation_arrays(obs)
        logits, _ = self._next(ids[rows], lengths[rows], rows, masks)
        return log_softmax(logits)

    def steer(self, logits: torch.Tensor, ids: IntArray, lengths: IntArray, rows: IntArray) -> torch.Tensor:
        """Return the logits it draws from: those of its language model; a subclass may return others.

        Args:
            logits: After masks and temperature, shape ``(n, vocab_size)``.
            ids: Token ids so far, padded on the right, shape ``(n, time)``.
            lengths: Tokens of each, shape ``(n,)``.
            rows: Their rows in the batch, shape ``(n,)``.
        """
        return logits

    def draw_again(self, count: int, generator: torch.Generator) -> IntArray:
        """Draw tokens from the first state that it has acted in last, as ``act`` does, without reading it again.

        Args:
            count: How many; as many probabilities of the whole vocabulary are in memory.
            generator: Source of randomness.

        Returns:
            Token ids, shape ``(count,)``.
        """
        probabilities = torch.softmax(self._last_act.logits[:1], dim=-1).expand(count, -1)
        return cast(IntArray, _choose(probabilities, generator, None).cpu().numpy())

    def action_log_prob(self, actions: IntArray) -> FloatArray:
        """Return log pi of ``actions`` at the states it has just acted in, shape ``(batch,)``."""
        batch, act, logits = self._last_act
        result = np.zeros(batch, dtype=np.float32)
        if act is None:
            return result
        tokens, chosen = np.asarray(actions, dtype=np.int64)[act.rows], act.log_probs
        if (tokens != act.tokens).any():
            other_tokens = torch.from_numpy(tokens).to(logits.device)
            chosen = torch.log_softmax(logits, dim=-1).gather(1, other_tokens[:, None])[:, 0].cpu().numpy()
        result[act.rows] = chosen
        return result

    def action_log_probs(self) -> FloatArray:
        """Return log pi of the whole vocabulary at those states, shape ``(batch, vocab_size)``."""
        batch, act, logits = self._last_act
        result = np.zeros((batch, self.lm.vocab_size), dtype=np.float32)
        if act is not None:
            result[act.rows] = log_softmax(logits)
        return result

    @property
    def acted(self) -> acting.Act | None:
        """What it has read and drawn last; None before it has acted."""
        return self._last_act.act

    @torch.no_grad()
    def values(self, obs: Observation, rows: IntArray) -> FloatArray:
        """Return ``V(s)`` of ``rows``, shape ``(len(rows),)``."""
        ids, lengths = observation_arrays(obs)
        hidden = self.lm.last_hidden(ids[rows], lengths[rows], rows=rows)
        found: FloatArray = self._value(ids[rows], lengths[rows], rows, hidden).cpu().numpy()
        return found

    def evaluate(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        places: torch.Tensor,
        masks: torch.Tensor | None = None,
        *,
        entropy: bool = True,
        candidates: torch.Tensor | None = None,
        temperature: float | None = None,
    ) -> Evaluation:
        """Evaluate tokens in texts, each of which takes one forward, with gradients; logits at these tokens only.

        Args:
            input_ids: Texts, padded on the right, shape ``(batch, time)``.
            lengths: Tokens of each text, shape ``(batch,)``.
            places: Where the tokens are, none of them the first of a text, as places in ``input_ids.flatten()``, shape
                ``(tokens,)``.
            masks: Which tokens could be drawn, packed, shape ``(tokens, vocab_size)``.
            entropy: Compute entropies; without, they are 0 and two passes over the vocabulary are saved.
            candidates: Other tokens to evaluate in the place of each that was written, ``(tokens, candidates)``.
            temperature: Divides the logits; None for the policy's own.

        Returns:
            Log-probabilities and entropies in nats, and values, each ``(tokens,)``.
        """
        before = places - 1
        hidden = self.lm.hidden_states(input_ids, lengths, before)
        chosen, entropies, others = self._scores_of(
            hidden,
            input_ids.flatten()[places],
            masks,
            candidates,
            entropy=entropy,
            temperature=self.temperature if temperature is None else temperature,
        )
        if self.value_lm is not None:
            hidden = self.value_lm.hidden_states(input_ids, lengths, before)
        values = torch.zeros_like(chosen) if self.value_head is None else apply_value_head(self.value_head, hidden)
        return Evaluation(chosen, entropies, values, others)

    def _scores_of(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        masks: torch.Tensor | None,
        candidates: torch.Tensor | None,
        *,
        entropy: bool,
        temperature: float,
    ) -> tuple[torch.Tensor, ...]:
        """Return log pi of tokens ``(tokens,)``, entropies ``(tokens,)`` and log pi of candidates from hidden states.

        Where the logits are many, they are computed a part at a time, and again on the way back: no more than those of
        one part are in memory.
        """
        score = functools.partial(self._scores_of_part, entropy=entropy, temperature=temperature)
        most = _MAX_CPU_LOGITS if hidden.is_cpu else _MAX_LOGITS
        parts = math.ceil(len(tokens) * self.lm.vocab_size / most)
        if parts <= 1:
            return score(hidden, tokens, masks, candidates)
        found: list[tuple[torch.Tensor, ...]] = []
        for part in torch.arange(len(tokens)).tensor_split(min(parts, len(tokens))):
            at = slice(int(part[0]), int(part[-1]) + 1)
            given: list[Any] = [None if each is None else each[at] for each in (hidden, tokens, masks, candidates)]
            if torch.is_grad_enabled():
                found.append(checkpoint(score, *given, use_reentrant=False, preserve_rng_state=False))
            else:
                found.append(score(*given))
        return tuple(torch.cat(each) for each in zip(*found, strict=True))

    def _scores_of_part(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        masks: torch.Tensor | None,
        candidates: torch.Tensor | None,
        *,
        entropy: bool,
        temperature: float,
    ) -> tuple[torch.Tensor, ...]:
        """Return what ``_scores_of`` does, with all logits at once."""
        logits = self.lm.head(hidden)
        if masks is not None:
            logits = logits.masked_fill(~masks, -torch.inf)
        logits = divide_by_temperature(logits, temperature)
        chosen = token_log_prob(logits, tokens)
        entropies = distributions.entropy(logits) if entropy else torch.zeros_like(chosen)
        others = chosen.new_zeros(len(chosen), 0)
        if candidates is not None:
            others = torch.log_softmax(logits, dim=-1).gather(1, candidates)
        return chosen, entropies, others

    def forget(self) -> None:
        """Empty the prefix caches, so that what follows does not depend, in its last bits, on what was asked before."""
        for lm in (self.lm, self.value_lm):
            if lm is not None:
                lm.forget()

    def release(self) -> None:
        """Free what acting has left in memory, packed weights and caches; the next act computes them again."""
        for lm in (self.lm, self.value_lm):
            if lm is not None:
                lm.release()

    def rounded(self, precision: Precision) -> contextlib.AbstractContextManager[None]:
        """Act with rounded weights inside: what is drawn, and its log pi, are those of the rounded policy.

        Forwards with gradients are not rounded, and a value model of its own is not.

        Args:
            precision: What the linear layers of its language model are rounded to.
        """
        return self.lm.rounded(precision)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Act without looking for changed weights at every token; nobody may write to them inside."""
        with self.lm.unchanged(), contextlib.nullcontext() if self.value_lm is None else self.value_lm.unchanged():
            yield

    def save(self, folder: Path) -> None:
        """Save the language model in Hugging Face format, and the value function beside it, as safetensors.

        Of a policy with LoRA that is the adapter, in the format of peft, which names the model it belongs to.
        """
        with quiet():
            if self.lm.adapter is None:
                self.model.save_pretrained(folder)
            else:
                save_adapter(self.lm, folder)
        self.lm.tokenizer.save_pretrained(folder)
        if self.value_head is not None:
            save_values(self._value_parameters(), folder)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote.

        Raises:
            TextEnvError: It is not there or does not fit.
        """
        if self.lm.adapter is None:
            lm = CausalLM.from_pretrained(folder, device=str(self.lm.device))
            if lm.vocab_size != self.lm.vocab_size:
                raise TextEnvError(
                    f"The agent in {folder} has a vocabulary of {lm.vocab_size}, the environment one of "
                    f"{self.lm.vocab_size}; make the environment with the model it was trained from."
                )
            self.model.load_state_dict(lm.model.state_dict())
        else:
            load_adapter(self.lm, folder)
        self.load_values(folder)

    def load_values(self, folder: Path) -> None:
        """Read the value function that ``save`` wrote.

        Raises:
            TextEnvError: It is not there or does not fit.
        """
        if self.value_head is not None:
            load_values(self._value_parameters(), folder)

    def _value_parameters(self) -> dict[str, torch.Tensor]:
        parts = {"value_head": self.value_head, "value_model": self.value_model}
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            if module is not None
            for name, parameter in module.named_parameters()
        }

    def _value(self, ids: IntArray, lengths: IntArray, rows: IntArray, hidden: torch.Tensor) -> torch.Tensor:
        if self.value_head is None:
            return hidden.new_zeros(len(lengths), dtype=torch.float32)
        if self.value_lm is not None:
            hidden = self.value_lm.last_hidden(ids, lengths, rows=rows)
        return apply_value_head(self.value_head, hidden)


def _trainable_copy(lm: CausalLM) -> CausalLM:
    model: Any = copy.deepcopy(lm.model)
    return CausalLM(model.requires_grad_(True), lm.tokenizer)


def _choose(
    probabilities: torch.Tensor, generator: torch.Generator | None, uniform: torch.Tensor | None
) -> torch.Tensor:
    """Return a token of each row ``(rows, vocab_size)``: by numbers, by those of a generator, or the likeliest."""
    if uniform is None and generator is None:
        return probabilities.argmax(dim=-1)
    if uniform is None:
        uniform = torch.rand(len(probabilities), 1, generator=generator, device=probabilities.device)
    return draw(probabilities, uniform)


def _to_host(*results: torch.Tensor) -> list[NDArray[Any]]:
    """Return what a token led to, each ``(rows,)``, as arrays: from a GPU in one transfer, which waits for it once."""
    if all(result.is_cpu for result in results):
        return [result.numpy() for result in results]
    return list(torch.stack([result.double() for result in results]).cpu().numpy())
