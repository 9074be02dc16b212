"""Texts with the gendered words exchanged."""

from __future__ import annotations

import pytest

from textenv.models.counterfactual import GENDERED, swap_gender


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("He knows his film.", "She knows her film."),
        ("HE gave him a role", "SHE gave her a role"),
        ("She's an actress, and her talent is hers alone.", "He's an actor, and his talent is his alone."),
        ("We follow her to the end; the plot fails her.", "We follow him to the end; the plot fails him."),
        ("The credit is his.", "The credit is hers."),
        ("Mr. Hanks and Mrs. Miller", "Ms. Hanks and Mr. Miller"),
        ("Men, women and a human", "Women, men and a human"),
    ],
)
def test_words_are_exchanged_in_their_case(text: str, other: str) -> None:
    assert swap_gender(text) == other


@pytest.mark.parametrize("text", ["", "The film is there, and then some.", "the manual, a shell, chess", "Émile shéhe"])
def test_other_words_stay(text: str) -> None:
    assert swap_gender(text) == text


def test_twice_is_the_text_itself() -> None:
    for male, female in GENDERED.items():
        for word in {male, female} - {"him"}:  # "her film" is his
            text = f"{word.upper()} film, a {word} film and {word.title()} film"
            assert swap_gender(swap_gender(text)) == text
