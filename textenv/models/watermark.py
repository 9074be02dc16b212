"""Watermarks of text: a secret key steers which of the likely tokens are drawn, so that whoever has it can tell.

The random numbers of all schemes are a keyed function of the token ids in front of a token (its *window*) and of the
token: HMAC-SHA256 of the window seeds a counter-based generator, whose number ``v`` is that of token ``v``. They do not
depend on the size of the vocabulary, on the device or on torch. Without the key they are independent and uniform, so
that the p-values of text that was written without it are those of the tests below, whatever the text says; that holds
where every pair of a window and a token is counted once, which ``counted_places`` takes care of.

A token is marked where its whole window was written by the same writer, which a detector then needs no prompt for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
import torch
from annotated_types import Interval
from numpy.typing import NDArray
from scipy import optimize, special, stats

from textenv.types import TextEnvError
from textenv.validation import Count, Positive, build, unknown_name, validate

__all__ = [
    "KEY_VARIABLE",
    "SCHEMES",
    "GreenList",
    "Gumbel",
    "SynthID",
    "Verdict",
    "Watermark",
    "check_name",
    "make_watermark",
    "read_key",
]

KEY_VARIABLE = "TEXTENV_WATERMARK_KEY"
"""The environment variable that a key is read from where no file is named."""

_SHORTEST_KEY = 16
_MAKE_KEY = "'head -c 32 /dev/urandom | base64 > watermark.key' makes one"

Values: TypeAlias = NDArray[np.float64]
Share = Annotated[float, Interval(gt=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a test for a watermark says.

    Attributes:
        p_value: How often text that was written without the key scores as high; None where no token counts.
        score: The statistic of the scheme.
        counted: Number of tokens that count.
    """

    p_value: float | None
    score: float
    counted: int


@dataclass(frozen=True)
class Watermark(ABC):
    """A scheme with its key.

    Attributes:
        key: The secret; never shown, and never part of ``settings``.
        context: Tokens of the window.
    """

    name: ClassVar[str]
    marks_repeats: ClassVar[bool]
    """Whether a token is marked too whose window has been there before in the same text."""

    key: bytes = field(repr=False)
    context: Count = 4

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TextEnvError: One is not what is expected.
        """
        if not isinstance(self.key, bytes) or len(self.key) < _SHORTEST_KEY:
            raise TextEnvError(f"The watermark key: expected at least {_SHORTEST_KEY} bytes; {_MAKE_KEY}.")
        validate(self, owner=self.name)

    @property
    def settings(self) -> dict[str, Any]:
        """What a detector needs to know besides the key."""
        names = [each.name for each in dataclasses.fields(self) if each.name != "key"]
        return {"name": self.name, **{name: getattr(self, name) for name in names}}

    @abstractmethod
    def mark(self, log_probs: torch.Tensor, windows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the log-probabilities to draw the next tokens with, ``(n, vocab_size)``.

        Args:
            log_probs: Those of the model, after temperature and masks, normalized, ``(n, vocab_size)``.
            windows: The last ``context`` token ids of each text.
        """

    @abstractmethod
    def evidence(self, windows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Values:
        """Return what each of ``n`` tokens says for the watermark, shape ``(n,)``; greater is more.

        Args:
            windows: The ``context`` token ids before each token.
            tokens: The tokens.
        """

    @abstractmethod
    def quantiles(self, evidence: Values) -> Values:
        """Return which share of tokens without the watermark says less, from 0 to 1, same shape."""

    @abstractmethod
    def test(self, evidence: Values) -> Verdict:
        """Test the tokens that count, given their evidence, shape ``(n,)``."""

    def counted_places(self, ids: Sequence[int]) -> list[int]:
        """Return the places of the tokens of a text that count, in order.

        These are the ones with a whole window in front of them, each window once, or each pair of a window and a token
        where the scheme marks windows that come again.

        Args:
            ids: Token ids of the text.
        """
        seen, places = set(), []
        for place in range(self.context, len(ids)):
            window = tuple(ids[place - self.context : place])
            key = (*window, ids[place]) if self.marks_repeats else window
            if key not in seen:
                seen.add(key)
                places.append(place)
        return places

    def next_window(self, written: Sequence[int]) -> tuple[int, ...] | None:
        """Return the window that the next token is marked by; None where it is left unmarked.

        Args:
            written: The token ids that the writer has written so far.
        """
        size = self.context
        if len(written) < size:
            return None
        window = tuple(written[-size:])
        if not self.marks_repeats:
            ids = np.asarray(written, dtype=np.int64)
            before = np.lib.stride_tricks.sliding_window_view(ids, size)[:-1]
            if len(before) and bool((before == ids[-size:]).all(axis=1).any()):
                return None
        return window

    def _raw(self, window: Sequence[int], count: int) -> NDArray[np.uint64]:
        """Return 64 random bits for each of the tokens ``0 ... count - 1`` behind a window, shape ``(count,)``."""
        message = self.name.encode() + b"\0" + np.asarray(window, dtype="<i8").tobytes()
        seed = hmac.digest(self.key, message, hashlib.sha256)[:16]
        # The raw numbers of a bit generator are the same in every version of NumPy; those of Generator need not be.
        return np.asarray(np.random.Philox(key=int.from_bytes(seed, "little")).random_raw(count), dtype=np.uint64)

    def _raw_rows(self, windows: Sequence[Sequence[int]], count: int) -> NDArray[np.uint64]:
        """Return ``_raw`` of each window, shape ``(n, count)``."""
        return np.stack([self._raw(window, count) for window in windows])

    def _raw_of(self, windows: Sequence[Sequence[int]], tokens: Sequence[int]) -> NDArray[np.uint64]:
        """Return the random bits of one token behind each window, shape ``(n,)``."""
        found = [self._raw(window, int(token) + 1)[-1] for window, token in zip(windows, tokens, strict=True)]
        return np.array(found, dtype=np.uint64)


def _uniform(raw: NDArray[np.uint64]) -> Values:
    """Return random bits as numbers between 0 and 1, neither of which occurs."""
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


@dataclass(frozen=True)
class Gumbel(Watermark):
    """Exponential minimum sampling (Aaronson, "My AI safety lecture for UT Effective Altruism", 2022).

    The token is the one with the greatest ``r_v^(1 / p_v)``, or the least ``-log(r_v) / p_v``, ``r_v`` being uniform.
    Over the keys, tokens are distributed as ``p``. The score is the mean of ``-log(1 - r)`` over the tokens; without a
    watermark their sum is Gamma(n, 1), so the p-value is exact.
    """

    name: ClassVar[str] = "gumbel"
    marks_repeats: ClassVar[bool] = False

    def mark(self, log_probs: torch.Tensor, windows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return 0 for the token that the key chooses, ``-inf`` for all others; see ``Watermark.mark``."""
        uniform = _uniform(self._raw_rows(windows, log_probs.shape[-1]))
        # argmin -log(r) / p = argmax log p - log(-log r), in logarithms so that no small p vanishes
        gumbel = torch.from_numpy(-np.log(-np.log(uniform))).to(log_probs.device, torch.float32)
        chosen = (log_probs.float() + gumbel).argmax(dim=-1, keepdim=True)
        return torch.full_like(log_probs, -torch.inf).scatter_(-1, chosen, 0.0)

    def evidence(self, windows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Values:
        """Return ``-log(1 - r)`` of each token; see ``Watermark.evidence``."""
        return -np.log1p(-_uniform(self._raw_of(windows, tokens)))

    def quantiles(self, evidence: Values) -> Values:
        """Return ``r``; see ``Watermark.quantiles``."""
        return -np.expm1(-evidence)

    def test(self, evidence: Values) -> Verdict:
        """Test the sum against a Gamma distribution; see ``Watermark.test``."""
        count = len(evidence)
        if not count:
            return Verdict(None, 0.0, 0)
        return Verdict(float(special.gammaincc(count, evidence.sum())), float(evidence.mean()), count)


@dataclass(frozen=True)
class GreenList(Watermark):
    """A bias towards a random part of the vocabulary (Kirchenbauer et al. 2023, arXiv 2301.10226, algorithm 2).

    ``delta`` is added to the logits of the green tokens. Each token is green by itself with probability ``gamma``
    (in the paper exactly ``gamma * V`` of them are), so that the number of green ones among those that count is exactly
    binomial without a watermark; the p-value is that of the binomial test. The score is z of the paper's equation 3.
    Unlike the other two schemes it changes the distribution, the more so the greater ``delta`` is.

    Attributes:
        gamma: Share of the vocabulary that is green.
        delta: What is added to logits, in nats.
    """

    name: ClassVar[str] = "green_list"
    marks_repeats: ClassVar[bool] = True

    context: Count = 1
    gamma: Share = 0.25
    delta: Positive = 2.0

    def green(self, window: Sequence[int], vocab_size: int) -> NDArray[np.bool_]:
        """Return which tokens are green behind a window, shape ``(vocab_size,)``."""
        return np.asarray(_uniform(self._raw(window, vocab_size)) < self.gamma)

    def mark(self, log_probs: torch.Tensor, windows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the log-probabilities with ``delta`` on the green tokens; see ``Watermark.mark``."""
        green = np.stack([self.green(window, log_probs.shape[-1]) for window in windows])
        return torch.log_softmax(log_probs + self.delta * torch.from_numpy(green).to(log_probs), dim=-1)

    def evidence(self, windows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Values:
        """Return 1 for green tokens, 0 for others; see ``Watermark.evidence``."""
        return (_uniform(self._raw_of(windows, tokens)) < self.gamma).astype(np.float64)

    def quantiles(self, evidence: Values) -> Values:
        """Return 1 for green tokens, 0 for others; see ``Watermark.quantiles``."""
        return evidence

    def test(self, evidence: Values) -> Verdict:
        """Test the number of green tokens against a binomial distribution; see ``Watermark.test``."""
        count, green = len(evidence), float(evidence.sum())
        if not count:
            return Verdict(None, 0.0, 0)
        z = (green - self.gamma * count) / np.sqrt(count * self.gamma * (1 - self.gamma))
        return Verdict(float(stats.binom.sf(green - 1, count, self.gamma)), float(z), count)


@dataclass(frozen=True)
class SynthID(Watermark):
    """Tournament sampling with two leaves (Dathathri et al. 2024, doi 10.1038/s41586-024-08025-4).

    Every token has a random bit g in each of ``layers`` layers. A layer makes ``p(v) * (1 + g(v) - sum_u g(u) p(u))``
    of ``p(v)`` (supplement, two-leaf tournament): of two tokens drawn from ``p``, the one with the greater g. Over the
    keys, tokens are distributed as ``p``. The score is the mean of g, its layers weighted from 10 down to 1 (the
    weighted mean detector); 0.5 is expected without a watermark. The p-value is the saddlepoint approximation of its
    tail (Lugannani & Rice 1980), and exact, binomial, where ``weighted`` is False.

    Attributes:
        layers: Depth of the tournament.
        weighted: Weigh the layers.
    """

    name: ClassVar[str] = "synthid"
    marks_repeats: ClassVar[bool] = False

    layers: Annotated[int, Interval(ge=1, le=64)] = 30
    weighted: bool = True

    @property
    def weights(self) -> Values:
        """Weights of the layers, 1 on average, shape ``(layers,)``."""
        weights = np.linspace(10.0, 1.0, self.layers) if self.weighted else np.ones(self.layers)
        return np.asarray(weights / weights.mean())

    def g_values(self, window: Sequence[int], vocab_size: int) -> NDArray[np.uint64]:
        """Return g of each token and layer behind a window, 0 or 1, shape ``(vocab_size, layers)``."""
        return self._bits(self._raw(window, vocab_size))

    def mark(self, log_probs: torch.Tensor, windows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the log-probabilities of the tournament's winner; see ``Watermark.mark``."""
        raw = self._raw_rows(windows, log_probs.shape[-1])
        p = log_probs.float().exp()
        for layer in range(self.layers):
            g = torch.from_numpy(((raw >> np.uint64(layer)) & np.uint64(1)).astype(np.float32)).to(p.device)
            p = p * (1 + g - (g * p).sum(dim=-1, keepdim=True))
        p = p.clamp(min=0.0)
        return (p / p.sum(dim=-1, keepdim=True)).log().to(log_probs.dtype)

    def evidence(self, windows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Values:
        """Return the mean of g over the layers, weighted; see ``Watermark.evidence``."""
        return np.asarray((self._bits(self._raw_of(windows, tokens)) * self.weights).mean(axis=-1))

    def quantiles(self, evidence: Values) -> Values:
        """Return the normal approximation; see ``Watermark.quantiles``."""
        deviation = np.sqrt((self.weights**2).sum()) / (2 * self.layers)
        return np.asarray(special.ndtr((evidence - 0.5) / deviation))

    def test(self, evidence: Values) -> Verdict:
        """Test the mean of all g-values; see ``Watermark.test``."""
        count = len(evidence)
        if not count:
            return Verdict(None, 0.5, 0)
        mean = float(evidence.mean())
        if self.weighted:
            p_value = _upper_tail_of_signs(self.weights / self.layers, (2 * mean - 1) * count, count)
        else:
            ones = round(mean * count * self.layers)
            p_value = float(stats.binom.sf(ones - 1, count * self.layers, 0.5))
        return Verdict(p_value, mean, count)

    def _bits(self, raw: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return (raw[..., None] >> np.arange(self.layers, dtype=np.uint64)) & np.uint64(1)


def _upper_tail_of_signs(weights: Values, total: float, count: int) -> float:
    """Return ``P(S >= total)``, S being the sum of ``count`` times all weights with random signs.

    The saddlepoint s solves K'(s) = total, where K(s) = count * sum log cosh(w s); then (Lugannani & Rice 1980)
    P = 1 - Phi(r) + phi(r) (1 / u - 1 / r) with r = sign(s) sqrt(2 (s total - K(s))) and u = s sqrt(K''(s)).
    """
    most, deviation = count * weights.sum(), np.sqrt(count * (weights**2).sum())
    if total < 0:
        return 1.0 - _upper_tail_of_signs(weights, -total, count)
    if total < 1e-3 * deviation:  # where 1 / u - 1 / r is a difference of great numbers
        return float(stats.norm.sf(total / deviation))
    if total >= most * (1 - 1e-9):
        return float(2.0 ** -(count * len(weights)))

    def slope(s: float) -> float:
        return float(count * (weights * np.tanh(weights * s)).sum() - total)

    upper = 1.0 / deviation
    while slope(upper) < 0:
        upper *= 2
    root: Any = optimize.brentq(slope, 0.0, upper)
    s = float(root)
    x = weights * s
    log_cosh = np.logaddexp(x, -x) - np.log(2.0)
    r = np.sqrt(2 * (s * total - count * log_cosh.sum()))
    u = s * np.sqrt(count * (weights**2 * (1 - np.tanh(x) ** 2)).sum())
    return float(np.clip(stats.norm.sf(r) + stats.norm.pdf(r) * (1 / u - 1 / r), 0.0, 1.0))


SCHEMES: Mapping[str, type[Watermark]] = {scheme.name: scheme for scheme in (Gumbel, GreenList, SynthID)}
"""The watermarks by name."""


def check_name(name: str) -> None:
    """Refuse a name that is none of ``SCHEMES``.

    Raises:
        TextEnvError: It is not.
    """
    if name not in SCHEMES:
        raise unknown_name("There is no watermark named", name, SCHEMES)


def make_watermark(name: str, key: bytes, **settings: Any) -> Watermark:
    """Return a watermark.

    Args:
        name: One of ``SCHEMES``.
        key: The secret, at least 16 bytes.
        settings: Those of the scheme; None stands for the default.

    Raises:
        TextEnvError: The name or a setting is unknown, or a value is not what is expected.
    """
    check_name(name)
    given = {setting: value for setting, value in settings.items() if value is not None}
    return build(SCHEMES[name], {"key": key, **given}, what=f"The watermark {name!r} has no setting")


def read_key(file: Path | None = None) -> bytes:
    """Return a watermark key from a file, or from the environment variable ``KEY_VARIABLE``.

    White space around it is no part of it. It is never taken from the command line, which all users of a machine see.

    Args:
        file: The file; None for the variable.

    Raises:
        TextEnvError: There is no key, or it is too short. No message shows it.
    """
    if file is None:
        where, text = f"The environment variable {KEY_VARIABLE}", os.environ.get(KEY_VARIABLE, "").encode()
        if not text.strip():
            raise TextEnvError(
                f"The watermark has no key: name a file that holds one, --watermark-key-file FILE ({_MAKE_KEY}), or "
                f"set the environment variable {KEY_VARIABLE}."
            )
    else:
        where = str(file)
        try:
            text = file.read_bytes()
        except (OSError, ValueError) as error:
            raise TextEnvError(
                f"The watermark key {where!r} cannot be read ({type(error).__name__}); {_MAKE_KEY}."
            ) from error
    key = text.strip()
    if len(key) < _SHORTEST_KEY:
        raise TextEnvError(f"{where}: its key has {len(key)} bytes; expected at least {_SHORTEST_KEY}; {_MAKE_KEY}.")
    return key
