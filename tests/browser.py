"""The browser that pages are tested in."""

from __future__ import annotations

import shutil

__all__ = ["find_chromium"]


def find_chromium() -> str:
    """Return the path of Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the page is tested in Chromium: install it (Debian: apt-get install chromium)"
    return chromium
