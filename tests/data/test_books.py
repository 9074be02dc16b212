"""Books of all kinds, whole and damaged."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from textenv import TextEnvError
from textenv.data import books
from textenv.data.books import read_book

CONTAINER = '<?xml version="1.0"?><container><rootfiles><rootfile full-path="OEBPS/b.opf"/></rootfiles></container>'
PACKAGE = """<opf:package xmlns:opf="http://www.idpf.org/2007/opf"><opf:manifest>
<opf:item id="two" href="two.xhtml"/><opf:item id="one" href="text/one%20a.xhtml"/><opf:item id="css" href="a.css"/>
</opf:manifest><opf:spine><opf:itemref idref="one"/><opf:itemref idref="two"/></opf:spine></opf:package>"""
ONE = "<html><head><title>no</title></head><body><h1>Chapter&nbsp;1</h1><p>It <i>was</i>\na day.</p></body></html>"
TWO = "<html><body><p>And a night &lt;b&gt;.</p><script>alert('no')</script><p/><p>The end.</p></body></html>"
PAGE = "Chapter 1\n\nIt was a day."
FILES = {
    "META-INF/container.xml": CONTAINER,
    "OEBPS/b.opf": PACKAGE,
    "OEBPS/text/one a.xhtml": ONE,
    "OEBPS/two.xhtml": TWO,
}


def epub(folder: Path, **changes: str | None) -> Path:
    path = folder / "book.epub"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**FILES, **changes}.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def test_an_epub_is_read_in_the_order_of_its_spine(tmp_path: Path) -> None:
    assert read_book(epub(tmp_path)) == f"{PAGE}\n\nAnd a night <b>.\n\nThe end."


def test_plain_text_and_markdown_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("a.txt", "a.MD"):
        (tmp_path / name).write_bytes("\ufeffA *book*.\r\n\r\nIts <end>.\n".encode())
        assert read_book(tmp_path / name) == "A *book*.\n\nIts <end>.\n"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (ONE, PAGE.replace("\xa0", " ")),
        ("a<br>b<br/>c<div>d</div>e", "a\n\nb\n\nc\n\nd\n\ne"),
        ("<style>x</style>a<script>if (1 < 2) {'</p>'}</script>b", "ab"),
        ("a<!-- <p>no</p> -->b &amp; <b>c", "ab & c"),
        ("<svg><text>no</text><svg></svg>no</svg>yes", "yes"),
    ],
    ids=["page", "breaks", "scripts", "comments", "nested"],
)
def test_html_is_what_a_page_shows(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(page)
    assert read_book(path) == text


FONTS = '<EncryptedData><EncryptionMethod Algorithm="{}"/><CipherReference URI="{}"/></EncryptedData>'
OBFUSCATED = "http://www.idpf.org/2008/embedding"


def test_fonts_may_be_obfuscated_and_texts_may_not(tmp_path: Path) -> None:
    encryption = "META-INF/encryption.xml"
    read_book(epub(tmp_path, **{encryption: FONTS.format(OBFUSCATED, "OEBPS/font.otf")}))
    for locked in (FONTS.format("aes", "OEBPS/two.xhtml"), '<EncryptionMethod Algorithm="aes"/>'):
        with pytest.raises(TextEnvError, match=r"book\.epub: its text is encrypted \(DRM\)"):
            read_book(epub(tmp_path, **{encryption: locked}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"META-INF/container.xml": None}, "not an EPUB that can be read"),
        ({"META-INF/container.xml": "<x/>"}, "names no package"),
        ({"OEBPS/two.xhtml": None}, "not an EPUB that can be read"),
        ({"OEBPS/b.opf": "<package/>"}, "no text in it; expected a book"),
        ({"OEBPS/two.xhtml": "x" * 3000}, "unpacked, its text has more than 2,000 bytes"),
    ],
    ids=["container", "package", "document", "spine", "bomb"],
)
def test_a_damaged_epub_is_one_line(
    changes: dict[str, str | None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "_LARGEST", 2000)
    with pytest.raises(TextEnvError) as refused:
        read_book(epub(tmp_path, **changes))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cut", [10, 200, 600])
def test_half_an_epub_is_one_line(cut: int, tmp_path: Path) -> None:
    path = epub(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(TextEnvError, match="not an EPUB that can be read"):
        read_book(path)


def test_bytes_that_were_changed_are_noticed(tmp_path: Path) -> None:
    path = epub(tmp_path)
    data = bytearray(path.read_bytes())
    for place in range(60, len(data) // 2):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(TextEnvError, match="not an EPUB that can be read"):
        read_book(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.txt", b"text\0text", "holds NUL bytes"),
        ("a.txt", b" \n", "no text in it"),
        ("a.html", b"<p></p>", "no text in it"),
        ("a.pdf", b"%PDF", r"expected a file of kind .txt, .md"),
        ("none.epub", None, "no such file"),
        ("none.txt", None, "no such file"),
    ],
    ids=["bytes", "NUL", "empty", "empty page", "kind", "no epub", "no text"],
)
def test_what_is_refused(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TextEnvError, match=message):
        read_book(tmp_path / name)
