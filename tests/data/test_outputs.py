"""What cannot be written is refused before any work, and nothing is left behind."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from textenv.data.outputs import OutputFile, OutputFolder, check_outputs
from textenv.types import TextEnvError


@dataclass(frozen=True)
class Writer:
    out: OutputFolder | None = None
    page: OutputFile | None = None
    source: Path | None = None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return tmp_path


BAD_FOLDERS = {
    "a file": ("file", "'file' is no folder"),
    "below a file": ("file/x/y", "is no folder"),
    "a link to nothing": ("link", "a link to something that is not there"),
    "below a link to nothing": ("link/x", "a link to something that is not there"),
    "a link to itself": ("circle", ""),
    "in /proc": ("/proc/x", "the system says"),
    "a long name": ("x" * 300, "File name too long"),
    "a long name below": ("new/" + "é" * 150 + "/x", "takes 300 bytes"),
    "a long path": ("x/" * 3000 + "x", "File name too long"),
    "NUL": ("a\0b", "null"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_folder_that_cannot_be_written(kind: str, here: Path) -> None:
    path, reason = BAD_FOLDERS[kind]
    before = sorted(here.rglob("*"))
    with pytest.raises(TextEnvError) as caught:
        check_outputs(Writer(out=Path(path)))
    assert str(caught.value).startswith(f"out={path!r}: expected a folder that can be written; ")
    assert reason in str(caught.value)
    assert sorted(here.rglob("*")) == before


BAD_FILES = {
    "a folder": ("folder", "it is a folder"),
    "in no folder": ("no/x.html", "there is no folder"),
    "below a file": ("file/x.html", "is no folder"),
    "in /proc": ("/proc/x.html", "the system says"),
    "a long name": ("x" * 300, "File name too long"),
    "a link to itself": ("circle", ""),
    "NUL": ("a\0b", "null"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_cannot_be_written(kind: str, here: Path) -> None:
    path, reason = BAD_FILES[kind]
    before = sorted(here.rglob("*"))
    with pytest.raises(TextEnvError) as caught:
        check_outputs(Writer(page=Path(path)))
    assert str(caught.value).startswith(f"page={path!r}: expected a file that can be written; ")
    assert reason in str(caught.value)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("path", ["folder", "new", "new/below", ".", "x" * 200])
def test_a_folder_that_can_be_written(path: str, here: Path) -> None:
    before = sorted(here.rglob("*"))
    check_outputs(Writer(out=Path(path)))
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("path", ["file", "new.html", "folder/new.html", "link"])
def test_a_file_that_can_be_written(path: str, here: Path) -> None:
    check_outputs(Writer(page=Path(path)))
    assert (here / "file").read_text() == "x"


def test_what_is_read_is_not_checked(here: Path) -> None:
    check_outputs(Writer(source=Path("no/such/file")))
