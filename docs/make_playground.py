"""Draw docs/playground.webp: the playground in a real browser, asked its fourth example.

    python docs/make_playground.py [docs/playground.webp]

Needs the extra `play`, playwright and Chromium (`make test-play` sets up .venv-play with the first two).
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1280, 1000
MOST = 200_000
"""Bytes of the file."""

EXAMPLE = 3  # a caption: of five examples the one whose answers name several objects and differ
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def address(process: subprocess.Popen[str]) -> str:
    """Return where the playground is, once it is open."""
    lines = ""
    for line in process.stdout or ():
        lines += line
        if line.rstrip() == "}":
            return str(json.loads(lines)["rows"][0]["url"])
    raise SystemExit("the playground ended before it was open")


def shot(url: str) -> Image.Image:
    """Return the page with its answers."""
    where = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=where, args=ARGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.set_default_timeout(120_000)
        page.goto(url)
        page.locator("#gallery button").nth(EXAMPLE).click()
        page.locator("#view img.base").wait_for()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_text("Done:").wait_for()
        page.locator("#view img.map").wait_for()
        page.wait_for_timeout(1000)
        answers = page.locator("#answers").bounding_box() or {"y": 0, "height": HEIGHT}
        height = answers["y"] + answers["height"] + 24
        drawn = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()
    return Image.open(io.BytesIO(drawn)).convert("RGB")


def main(path: str = "docs/playground.webp") -> None:
    """Write the picture, as well as its size allows."""
    command = [sys.executable, "-m", "lvlm_guard", "play", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            drawn = shot(address(process))
        finally:
            process.terminate()
    for quality in (92, 85, 75, 60):
        drawn.save(path, quality=quality, method=6)
        if Path(path).stat().st_size <= MOST:
            return
    raise SystemExit(f"{path} has more than {MOST} bytes.")


if __name__ == "__main__":
    main(*sys.argv[1:])
