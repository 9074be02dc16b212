"""Counterfactual texts: the same text with its gendered words exchanged for those of the other gender."""

from __future__ import annotations

import re

__all__ = ["GENDERED", "in_case_of", "swap_gender"]

GENDERED: dict[str, str] = {
    "he": "she",
    "him": "her",
    "his": "her",
    "himself": "herself",
    "man": "woman",
    "men": "women",
    "boy": "girl",
    "boys": "girls",
    "male": "female",
    "males": "females",
    "gentleman": "lady",
    "gentlemen": "ladies",
    "father": "mother",
    "fathers": "mothers",
    "dad": "mom",
    "grandfather": "grandmother",
    "son": "daughter",
    "sons": "daughters",
    "brother": "sister",
    "brothers": "sisters",
    "uncle": "aunt",
    "nephew": "niece",
    "husband": "wife",
    "husbands": "wives",
    "boyfriend": "girlfriend",
    "actor": "actress",
    "actors": "actresses",
    "king": "queen",
    "kings": "queens",
    "prince": "princess",
    "hero": "heroine",
    "heroes": "heroines",
    "waiter": "waitress",
    "host": "hostess",
    "mr": "ms",
}
"""Words for men, in lower case, and those for women in their place."""

_BACK = {female: male for male, female in GENDERED.items() if male != "his"} | {"hers": "his", "mrs": "mr"}
_FOLLOWS_HER = frozenset(
    re.findall(
        r"\w+",
        "a again also an and as at because but by for from if in is it just like more no not of on or out so than that "
        "the then there to too up was what when where which while who with",
    )
)
"""What follows "her" where it stands for "him", and does not where it stands for "his"."""
_WORD = re.compile(rf"\b(?:{'|'.join(sorted({*GENDERED, *_BACK}))})\b", re.IGNORECASE)
_NEXT_WORD = re.compile(r"[ \t]+([A-Za-z]+)")


def swap_gender(text: str) -> str:
    """Return a text with every word of ``GENDERED`` exchanged for its counterpart, in the same letter case.

    English spells two words "her": it becomes "his" in front of a word that can be what someone has, else "him"; "his"
    in front of no word becomes "hers". Names stay as they are.

    Args:
        text: Any; one without these words is returned as it is.
    """

    def swapped(found: re.Match[str]) -> str:
        word = found.group().lower()
        after = _NEXT_WORD.match(text, found.end())
        follower = after[1].lower() if after else ""
        if word == "her":
            other = "his" if follower and follower not in _FOLLOWS_HER else "him"
        elif word == "his" and (not follower or follower in _FOLLOWS_HER):
            other = "hers"
        else:
            other = GENDERED.get(word) or _BACK[word]
        return in_case_of(found.group(), other)

    return _WORD.sub(swapped, text)


def in_case_of(model: str, word: str) -> str:
    """Return a word in lower case, with a capital or in capitals, as ``model`` is."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
