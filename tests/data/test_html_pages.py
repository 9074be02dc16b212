"""What is read of pages of HTML, however they are written."""

from __future__ import annotations

import pytest

from textenv.data.html_pages import decode_html, read_html

PAGE = """<!DOCTYPE html><html><head><title>Herons &amp;
  others</title><style>p { color: red }</style><script>document.write("<a href='x'>no</a>")</script></head>
<body><h1>The <i>heron</i></h1><p>A heron is a wading <a href="bird.html#top">bird
</a>. <!-- <a href="hidden">hidden</a> --> It eats <a href='fish.html'>f<b>ish</b></a>&hellip;</p>
<ul><li>one<li>two</ul><pre>a  b

c</pre><table><tr><td>1</td><td>2</td></tr></table><svg><text>drawn</text></svg></body></html>"""


def test_a_page() -> None:
    title, text, links = read_html(PAGE)
    assert title == "Herons & others"
    assert text == "The heron\nA heron is a wading bird . It eats fish…\none\ntwo\na b\n\nc\n1 2"
    assert [(text[start:end], href) for start, end, href in links] == [("bird", "bird.html#top"), ("fish", "fish.html")]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("1 < 2 and 3 > 2, 4 <5", "1 < 2 and 3 > 2, 4 <5"),
        ("a <b", "a"),
        ("a<!-- b", "a"),
        ("a <script>b", "a"),
        ("a<script src=x></script >b", "a b"),
        ("a<SCRIPT>if (1 < 2) '<!--'</SCRIPT>b<!-- c --><style-x>d", "a bd"),
        ("a<template>b<p>c</template>d", "ad"),
        ("a<svg/>b", "ab"),
        ("a</svg></template>b", "ab"),
        ("<p>a<br>b<p>\n c", "a\nb\nc"),
        ("&#65;&#0;&#xD800;&notanentity;", "A\ufffd\ufffd&notanentity;".replace("&not", "¬")),
        ("", ""),
    ],
)
def test_markup_that_is_broken_or_odd(markup: str, text: str) -> None:
    assert read_html(markup).text == text


def test_links_do_not_overlap_and_are_not_empty() -> None:
    _, text, links = read_html("<a href=1>a<a href=2>b</a> c</a> <a href=3> </a><a>d</a><a name=x>e</a><a href=4>f")
    assert [(text[start:end], href) for start, end, href in links] == [("a", "1"), ("b", "2"), ("f", "4")]


def test_a_page_without_a_title_is_called_by_its_first_heading() -> None:
    assert read_html("<p>a<h1>One <b>two</b></h1><h1>Three</h1>").title == "One two"
    assert read_html("<p>a").title == ""


@pytest.mark.parametrize(
    "evil",
    ["<", "<a ", "<!--", "<![CDATA[", '<a href="', "<a b=\"'", "<?", "</", "<!", "<a a='", "&#", "<script ", "</a "],
)
@pytest.mark.parametrize("end", ["", ">", "'>"])
def test_a_page_that_closes_nothing_takes_no_longer_than_another(evil: str, end: str) -> None:
    text = read_html("before " + evil * (200_000 // len(evil)) + end).text  # minutes, if each were searched to the end
    assert text.startswith("before")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("ä".encode(), "ä"),
        (b"\xef\xbb\xbfa", "a"),
        ("ä".encode("utf-16"), "ä"),
        (b'<meta charset="iso-8859-1">\xe4', '<meta charset="iso-8859-1">ä'),
        (b"<meta http-equiv=x content='text/html; charset=windows-1252'>\x80", None),
        (b"<meta charset=rot13>a\xff", "<meta charset=rot13>a\ufffd"),
        (b"<meta charset=unicode_escape>\\x41", "<meta charset=unicode_escape>\\x41"),
    ],
)
def test_encodings(data: bytes, text: str | None) -> None:
    assert decode_html(data) == text if text else decode_html(data).endswith("€")
