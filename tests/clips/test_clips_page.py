"""A person looks at clips in a browser, and the agent learns from what was seen there."""

import threading
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.browser import find_chromium
from tests.clips.test_clips_training import config
from tests.label_site import serving
from textenv.clips.training import train
from textenv.rollouts.checkpoint import latest_checkpoint, read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

# Where the black column of the walk's picture stands in the first frame of each clip, from 0 to 1.
PLACES = """async () => {
  const pictures = [...document.querySelectorAll("img.clip")];
  await Promise.all(pictures.map(picture => picture.decode()));
  return pictures.map(picture => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.naturalWidth, 1];
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const row = context.getImageData(0, 0, canvas.width, 1).data.filter((_, index) => index % 4 === 0);
    const dark = [...row.keys()].filter(column => row[column] < 128);
    return dark.reduce((sum, column) => sum + column, 0) / dark.length / canvas.width;
  });
}"""


def look(page: Page, url: str) -> None:
    """Judge what there is: the better clip is the one that begins further to the right."""
    page.goto(url)
    while page.locator("img.clip").count() == 2:
        left, right = page.evaluate(PLACES)
        with page.expect_navigation():
            page.keyboard.press("1" if left > right else "2")
            page.keyboard.press("Enter")
    page.wait_for_timeout(100)


def test_what_is_seen_is_what_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textenv.clips.preference_run._POLL_SECONDS", 0.05)
    chromium = find_chromium()
    results: list[dict[str, Any]] = []
    settings = config(tmp_path / "run", store=tmp_path / "store.db", lag=0.0)
    with serving(tmp_path / "store.db") as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(site.url)
        page.get_by_label("Your name").fill("ann")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        training = threading.Thread(target=lambda: results.append(train(settings, progress=False)))
        training.start()
        while training.is_alive():
            look(page, site.url)
        browser.close()
    assert results[0]["labels_judged"] == results[0]["labels_asked"] == 16
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    tensors, _ = read_checkpoint(checkpoint)
    lead = tensors["comparisons/clips"][:, :, 0, 0].diff(dim=1)[:, 0]  # how far the second begins to the right
    clear = lead.abs() > 0.1
    assert clear.sum() > 8
    assert ((lead < 0) == (tensors["comparisons/preferred"] == 1))[clear].all()
