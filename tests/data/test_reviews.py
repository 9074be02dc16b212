"""The movie reviews: who is in which split, and that the data is what was published or nothing."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from textenv import TextEnvError
from textenv.data import reviews
from textenv.data.reviews import Review, cache_folder, load_reviews, review_rankings, split_of

TEXTS = [f"A film, number {i}, that is good.  " for i in range(40)]


def archive(texts: list[str]) -> bytes:
    """An archive of the published form: each domain's texts, and ratings in another order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for domain, stem in reviews._FILES.items():
            truth = [f"{i}_1\t{i / 10 - 2}\t{domain[0].upper()}{text}" for i, text in enumerate(texts)]
            ratings = [f"{i}_1\t{i / 10}\t[{i % 5 - 4}, 0, {i % 5}]" for i in range(len(texts))][::-1]
            for name, lines in (("GroundTruth", truth), ("anonDataRatings", ratings)):
                data = b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode("latin-1")
                member = tarfile.TarInfo(f"hutto_ICWSM_2014/{stem}_{name}.txt")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[list[str]], Path]]:
    """``publish(texts)``: what pip would fetch; returns where it is cached."""
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))

    def make(texts: list[str]) -> Path:
        data = archive(texts)
        monkeypatch.setattr(reviews, "_ARCHIVE_SHA256", hashlib.sha256(data).hexdigest())
        monkeypatch.setattr(reviews, "_download", lambda: data)
        reviews._parse.cache_clear()
        return tmp_path / "cache" / reviews._ARCHIVE

    yield make
    reviews._parse.cache_clear()


# -- splits -------------------------------------------------------------------------------------------------------


def test_splits_never_change() -> None:
    """Frozen: figures on the test split mean nothing once a snippet moves into the training split."""
    texts = ["a masterpiece .", "the film is dull", "", "1", "a bore", "good", "fine acting", "so long , so dull"]
    splits = ["train", "train", "test", "train", "validation", "train", "test", "train"]
    assert [split_of(text) for text in texts] == splits


def test_splits_are_four_fifths_and_two_tenths() -> None:
    counts = Counter(split_of(f"film number {i}") for i in range(20_000))
    shares = {split: count / 20_000 for split, count in counts.items()}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.01)


@pytest.mark.parametrize(
    "variant", ["The film's DULL", " the film 's dull . ", "the film\x92s dull", "the-film: s dull!"]
)
def test_spelling_variants_fall_into_one_split(variant: str) -> None:
    for i in range(20):
        assert split_of(f"{variant} {i}") == split_of(f"the films dull {i}")


# -- the data -----------------------------------------------------------------------------------------------------


def test_reviews_are_read_and_split(publish: Callable[[list[str]], Path]) -> None:
    cached = publish(TEXTS)
    everything = load_reviews()
    assert everything[7] == Review("M" + TEXTS[7].strip(), 7 / 10 - 2, (-2, 0, 2))
    assert len(everything) == len(TEXTS)
    parts = [load_reviews(split) for split in ("train", "validation", "test")]
    assert sorted(review.text for part in parts for review in part) == sorted(review.text for review in everything)
    assert all(split_of(review.text) == "train" for review in parts[0])
    assert load_reviews(domain="tweet")[0].text == "T" + TEXTS[0].strip()
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == reviews._ARCHIVE_SHA256


def test_callers_cannot_change_what_others_read(publish: Callable[[list[str]], Path]) -> None:
    publish(TEXTS)
    load_reviews().clear()
    assert len(load_reviews()) == len(TEXTS)


def test_letters_beyond_ascii(publish: Callable[[list[str]], Path]) -> None:
    publish(["ovie à clef, café"])
    assert load_reviews()[0].text == "Movie à clef, café"


# -- comparisons --------------------------------------------------------------------------------------------------


def test_rankings_order_snippets_by_one_rating_each(publish: Callable[[list[str]], Path]) -> None:
    publish(TEXTS)
    rated = {review.text: review.ratings for review in load_reviews()}
    rankings = review_rankings("train", size=8)
    texts = [text for ranking in rankings if ranking.annotator == "movie-1" for text in ranking.completions]
    assert len(texts) == len(set(texts)) >= len(load_reviews("train")) - 1
    assert all(split_of(text) == "train" for text in texts)
    for ranking in rankings:
        rater = int(ranking.annotator.removeprefix("movie-"))
        ratings = [rated[text][rater] for text in ranking.completions]
        for better, worse, tied in ranking.pairs():
            assert ratings[better] - ratings[worse] == 0 if tied else ratings[better] > ratings[worse]


def test_rankings_of_one_person_stay_in_what_was_given_out_together(publish: Callable[[list[str]], Path]) -> None:
    publish(TEXTS)
    places = {review.text: number for number, review in enumerate(load_reviews())}
    rankings = review_rankings(same_person=True, size=30)
    assert {ranking.annotator for ranking in rankings} == {f"movie-{part}-{i}" for part in (0, 1) for i in range(3)}
    for ranking in rankings:
        assert {f"{places[text] // 30}" for text in ranking.completions} == {ranking.annotator.split("-")[1]}


def test_rankings_are_put_together_by_the_seed(publish: Callable[[list[str]], Path]) -> None:
    publish(TEXTS)
    assert review_rankings(seed=3) == review_rankings(seed=3) != review_rankings(seed=4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 1}, "size=1"),
        ({"domain": "tweet", "same_person": True}, "domain 'movie'"),
        ({"split": "dev"}, "split='dev'"),
    ],
)
def test_rankings_refuse(publish: Callable[[list[str]], Path], wrong: dict[str, Any], message: str) -> None:
    publish(TEXTS)
    with pytest.raises(TextEnvError, match=message):
        review_rankings(**wrong)


def test_the_cache_is_used(publish: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(TEXTS)
    load_reviews()

    def refuse() -> bytes:
        raise AssertionError("downloaded twice")

    monkeypatch.setattr(reviews, "_download", refuse)
    reviews._parse.cache_clear()
    assert len(load_reviews()) == len(TEXTS)


def test_other_data_is_refused(publish: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cached = publish(TEXTS)
    monkeypatch.setattr(reviews, "_download", lambda: b"something else")
    with pytest.raises(TextEnvError, match=r"vaderSentiment==3\.3\.2: the reviews' SHA-256 is .*, expected"):
        load_reviews()
    assert not cached.exists(), "what is wrong is not cached"
    cached.parent.mkdir()
    cached.write_bytes(b"half")
    with pytest.raises(TextEnvError, match=rf"{cached}: the reviews' SHA-256 .* Delete {cached}"):
        load_reviews()


@pytest.mark.parametrize("timeout", [False, True])
def test_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, timeout: bool) -> None:
    def run(command: list[str], **_: Any) -> Any:
        if timeout:
            raise subprocess.TimeoutExpired(command, 600)
        return subprocess.CompletedProcess(command, 1, "", "No route to host")

    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    reviews._parse.cache_clear()
    with pytest.raises(TextEnvError, match=rf"(?s){'timed out' if timeout else 'No route to host'}.*put hutto.* into"):
        load_reviews()


@pytest.mark.parametrize("content", [["vaderSentiment-3.3.2/README"], ["x/hutto_ICWSM_2014.tar.gz"]])
def test_the_archive_is_taken_out_of_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: list[str]
) -> None:
    def run(command: list[str], **_: Any) -> Any:
        with tarfile.open(Path(command[command.index("--dest") + 1]) / "vaderSentiment-3.3.2.tar.gz", "w:gz") as tar:
            member = tarfile.TarInfo(content[0])
            member.size = 5
            tar.addfile(member, io.BytesIO(b"inner"))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    if content[0].endswith("README"):
        with pytest.raises(TextEnvError, match="does not hold hutto"):
            reviews._download()
    else:
        assert reviews._download() == b"inner"


def test_arguments_are_checked() -> None:
    with pytest.raises(TextEnvError, match="split='dev': expected 'train', 'validation', 'test'"):
        load_reviews("dev")  # type: ignore[arg-type]
    with pytest.raises(TextEnvError, match=r"domain='book': expected one of \['editorial', 'movie'"):
        load_reviews(domain="book")  # type: ignore[arg-type]


def test_where_downloads_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXTENV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/textenv")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "textenv"
    monkeypatch.setenv("TEXTENV_CACHE", "/y")
    assert cache_folder() == Path("/y")


# -- as published -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> None:
    reviews._parse.cache_clear()
    try:
        load_reviews()
    except TextEnvError as error:
        if "Could not fetch" not in str(error):
            raise
        pytest.skip(f"the movie reviews are neither cached nor in reach: {error}")


@pytest.mark.usefixtures("published")
def test_the_published_numbers() -> None:
    sizes = {domain: len(load_reviews(domain=domain)) for domain in ("movie", "product", "editorial", "tweet")}
    assert sizes == {"movie": 10605, "product": 3708, "editorial": 5190, "tweet": 4200}
    counts = {split: len(load_reviews(split)) for split in ("train", "validation", "test")}
    assert counts == {"train": 8458, "validation": 1116, "test": 1031}


@pytest.mark.usefixtures("published")
def test_ratings_are_those_of_people() -> None:
    for review in load_reviews():
        assert review.text == review.text.strip() != ""
        assert all(-4 <= rating <= 4 for rating in review.ratings)
        assert len(review.ratings) >= 10
        assert review.rating_mean == pytest.approx(sum(review.ratings) / len(review.ratings), abs=0.3)


@pytest.mark.usefixtures("published")
def test_no_snippet_is_in_two_splits() -> None:
    seen: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        for review in load_reviews(split):
            key = "".join(c for c in review.text.lower() if c.isascii() and c.isalnum())
            assert seen.setdefault(key, split) == split
