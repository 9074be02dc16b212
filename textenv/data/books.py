"""Reading books: plain text, Markdown, HTML and EPUB. Nothing in them is run, fetched or unpacked to a disk."""

from __future__ import annotations

import posixpath
import re
import zipfile
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from textenv.data.records import kind_of, read_text
from textenv.types import TextEnvError, short

__all__ = ["BOOK_KINDS", "read_book"]

BOOK_KINDS = (".txt", ".md", ".markdown", ".html", ".htm", ".xhtml", ".epub")

_LARGEST = 200_000_000  # bytes of the texts in an EPUB, unpacked
_HIDDEN = {"head", "script", "style", "template", "noscript", "svg", "math", "iframe", "object"}
_BLOCKS = {
    *("address", "article", "aside", "blockquote", "br", "caption", "dd", "div", "dl", "dt", "figcaption", "figure"),
    *("footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section"),
    *("table", "td", "th", "tr", "ul"),
}
_VOID = {"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "source", "track", "wbr"}
_FONT_ALGORITHMS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"


def read_book(path: Path) -> str:
    """Return the text of a book.

    Args:
        path: A file of UTF-8 text, of HTML, or an EPUB without copy protection; its suffix says which.

    Raises:
        TextEnvError: There is no such file, it is of another kind or damaged, protected, or holds no text.
    """
    kind = kind_of(path, BOOK_KINDS)
    if kind == ".epub":
        text = _read_epub(path)
    else:
        text = read_text(path)
        if "\0" in text:
            raise TextEnvError(f"{path}: holds NUL bytes, which no text does; expected a book as text, HTML or EPUB.")
        if kind in (".html", ".htm", ".xhtml"):
            text = _text_of(text)
    if not text.strip():
        raise TextEnvError(f"{path}: no text in it; expected a book.")
    return text


class _Text(HTMLParser):
    """Collects what a page shows, a line break around each block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden or tag in _HIDDEN:
            if tag == (self._hidden or [tag])[0]:
                self._hidden.append(tag)
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self._hidden and tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            if tag == self._hidden[0]:
                self._hidden.pop()
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(re.sub(r"\s+", " ", data))


def _text_of(page: str) -> str:
    """Return what a page of HTML shows: paragraphs with an empty line between them."""
    reader = _Text()
    reader.feed(page)
    reader.close()
    lines = (line.strip() for line in "".join(reader.parts).split("\n"))
    return "\n\n".join(line for line in lines if line)


class _Tags(HTMLParser):
    """Collects the attributes of all tags, by their names without the prefix of a namespace."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag.rpartition(":")[2], {name: value or "" for name, value in attrs}))


def _tags_of(text: str, name: str) -> list[dict[str, str]]:
    """Return the attributes of the tags of a name. Entities are not expanded, so that none can grow."""
    reader = _Tags()
    reader.feed(text)
    reader.close()
    return [attributes for tag, attributes in reader.found if tag == name]


def _read_epub(path: Path) -> str:
    """Return the text of the documents of an EPUB, in the order in which they are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            documents = _documents(archive, path)
            _check_protection(archive, documents, path)
            return "\n\n".join(filter(None, (_text_of(each) for each in _read_all(archive, documents, path))))
    except FileNotFoundError as error:
        raise TextEnvError(f"{path}: no such file (looked in {Path.cwd()}).") from error
    except (
        OSError,
        EOFError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if isinstance(error, TextEnvError):
            raise
        raise TextEnvError(f"{path}: not an EPUB that can be read ({short(str(error))}); it may be damaged.") from error


def _documents(archive: zipfile.ZipFile, path: Path) -> list[str]:
    """Return the names of the documents of the spine."""
    (container,) = _read_all(archive, [_CONTAINER], path)
    packages = [attributes["full-path"] for attributes in _tags_of(container, "rootfile") if "full-path" in attributes]
    if not packages:
        raise TextEnvError(f"{path}: its {_CONTAINER} names no package; it may be damaged.")
    (package,) = _read_all(archive, packages[:1], path)
    items = {item["id"]: item.get("href", "") for item in _tags_of(package, "item") if "id" in item}
    folder = posixpath.dirname(packages[0])
    names = [items.get(each.get("idref", "")) for each in _tags_of(package, "itemref")]
    return [posixpath.normpath(posixpath.join(folder, unquote(name.partition("#")[0]))) for name in names if name]


def _check_protection(archive: zipfile.ZipFile, documents: Sequence[str], path: Path) -> None:
    """Refuse a book whose documents are encrypted; fonts may be obfuscated."""
    if _ENCRYPTION not in archive.namelist():
        return
    (encryption,) = _read_all(archive, [_ENCRYPTION], path)
    locked = {unquote(each.get("uri", "")) for each in _tags_of(encryption, "cipherreference")}
    others = [
        each for each in _tags_of(encryption, "encryptionmethod") if each.get("algorithm") not in _FONT_ALGORITHMS
    ]
    if locked & set(documents) or (others and not locked):
        raise TextEnvError(f"{path}: its text is encrypted (DRM); expected a book without copy protection.")


def _read_all(archive: zipfile.ZipFile, names: Sequence[str], path: Path) -> list[str]:
    """Return files of an archive as texts, if they are not too large together."""
    left, texts = _LARGEST, []
    for name in names:
        with archive.open(name) as file:
            data = file.read(left + 1)
        left -= len(data)
        if left < 0:
            raise TextEnvError(f"{path}: unpacked, its text has more than {_LARGEST:,} bytes; expected a book.")
        texts.append(data.decode("utf-8-sig"))
    return texts
