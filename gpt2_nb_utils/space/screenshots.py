"""Pictures of the Space's page as visitors see it, taken in a real browser."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.space.hf_format import needed
from gpt2_nb_utils.space.serve import serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SEED = 1337
"""Of the text in the pictures: with the same run and the same machine they show the same."""
_DESKTOP = {"viewport": {"width": 1280, "height": 860}, "device_scale_factor": 1.5}
_PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
_PICTURES = (
    ("page.png", _DESKTOP, False),
    ("generation.png", _DESKTOP, True),
    ("phone.png", _PHONE, True),
)
"""Of each picture the file, what shows the page, and whether with an answer."""
_PATIENCE = 300_000
"""Milliseconds for an answer, on a busy machine."""


def take_screenshots(folder: Path, to: Path) -> list[Path]:
    """Start the app of a Space's folder, and take pictures of its page.

    Args:
        folder: as the command `space` writes it.
        to: a folder, made if missing; files of the same names in it are replaced.

    Returns:
        page.png as it opens, generation.png with an answer, and phone.png with one on a phone.

    Raises:
        UserError: no browser, no playwright, a folder that cannot be written, or whatever `serving` raises.
    """
    playwright = needed("playwright.sync_api")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(
            f"the pictures need a browser, and none of {', '.join(BROWSERS)} is installed: install Chromium"
        )

    def pictures(url: str) -> list[Path]:
        with (
            playwright.sync_playwright() as running,
            running.chromium.launch(executable_path=browser) as started,
        ):
            return [
                _picture(started.new_context(**screen).new_page(), url, to / name, answer)
                for name, screen, answer in _PICTURES
            ]

    try:
        to.mkdir(parents=True, exist_ok=True)
        # In a thread of its own: playwright refuses one in which an event loop runs, as in a notebook.
        with serving(folder) as served, ThreadPoolExecutor(1) as thread:
            return thread.submit(pictures, served.url).result()
    except OSError as error:
        raise NotWritten(to, error, flag="--screenshots") from None
    except playwright.Error as error:
        raise UserError(
            f"the browser {browser} failed ({str(error).splitlines()[0]}): see that it starts"
        ) from None


def _picture(page: Any, url: str, path: Path, answer: bool) -> Path:
    page.goto(url)
    page.locator("#write").wait_for(timeout=_PATIENCE)
    if answer:
        page.get_by_role("button", name="Settings").click()
        # The fields appear only now, and undo what is typed in their first milliseconds.
        page.wait_for_timeout(500)
        page.get_by_label("Seed").fill(str(SEED))
        page.get_by_role("button", name="Settings").click()
        page.locator("#write").click()
        page.get_by_role("status").filter(has_text="Written").wait_for(timeout=_PATIENCE)
        page.locator("body").click(position={"x": 1, "y": 1})  # nothing has the focus
    page.wait_for_timeout(500)  # what moves comes to rest
    page.screenshot(path=path, full_page=answer)
    return path
