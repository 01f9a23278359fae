"""Take the documents' pictures of the page: what is found, what is not, and the two compared.

    scripts/screenshots.py

Starts a service of its own with the free photos in scikit-image's wheel. It writes
`scripts/pictures/`: `page-desktop.webp` is the README's.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.chromium import chromium
from common.indexing import index_files
from common.own_service import OwnService
from common.paths import SCRIPTS
from common.photos import free_photos
from common.serve_run import ServiceFailed
from PIL import Image
from playwright.sync_api import Browser, Page

FOLDER = SCRIPTS / "pictures"
PATIENCE_MS = 30_000
# In coffee.png, the corners of a picture of the cup that is turned, from the top left clockwise.
CUP = [(131, 59), (387, 4), (449, 297), (193, 352)]
QUERY = (175, 200)  # its size, pixels
ROCKET = (100, 40, 400, 265)  # in rocket.jpg, which is not indexed

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
LOW = {"viewport": {"width": 1280, "height": 620}}
PHONE = {
    "viewport": {"width": 390, "height": 780},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}


def cut_queries(photos: Path, folder: Path) -> tuple[Path, Path]:
    """Write a picture of the cup, turned, and one that is in no photo; return their files."""
    cup, rocket = folder / "cup.jpg", folder / "rocket.jpg"
    with Image.open(photos / "coffee.png") as photo:
        top_left, top_right, bottom_right, bottom_left = CUP
        quad = (*top_left, *bottom_left, *bottom_right, *top_right)
        turned = photo.convert("RGB").transform(
            QUERY, Image.Transform.QUAD, quad, Image.Resampling.BICUBIC
        )
    turned.save(cup, quality=70)
    with Image.open(photos / "rocket.jpg") as photo:
        photo.convert("RGB").crop(ROCKET).save(rocket, quality=70)
    return cup, rocket


@contextmanager
def searching(browser: Browser, url: str, query: Path, device: dict[str, Any]) -> Iterator[Page]:
    """Open the page on a device, and search by a file; yield when the answer is drawn."""
    context = browser.new_context(base_url=url, **device)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto("/")
    page.set_input_files("#search-file", query)
    page.wait_for_selector("#found-title:visible")
    page.wait_for_selector("#state[data-state=ready]")
    page.wait_for_load_state("networkidle")
    yield page
    context.close()


def take(browser: Browser, url: str, query: Path, device: dict[str, Any]) -> bytes:
    """Return the picture of a search: PNG."""
    with searching(browser, url, query, device) as page:
        return page.screenshot()


def take_compared(browser: Browser, url: str, query: Path, device: dict[str, Any]) -> bytes:
    """Return the picture of the photo that was found, with the query laid over it: PNG."""
    with searching(browser, url, query, device) as page:
        page.locator("#found-grid .card a").first.click()
        page.wait_for_selector("#canvas > img:not([hidden])[alt='coffee.png']")
        page.wait_for_selector("#canvas .laid")
        page.wait_for_load_state("networkidle")
        return page.screenshot()


def main() -> int:
    photos = free_photos()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, OwnService(Path(temporary)) as service:
        try:
            service.start()
            asyncio.run(index_files(service.url, sorted(photos.glob("*.png"))))
            cup, rocket = cut_queries(photos, Path(temporary))
            with chromium() as browser:
                pictures = {
                    "page-desktop.webp": take(browser, service.url, cup, LOW),
                    "page-compared.webp": take_compared(browser, service.url, cup, DESKTOP),
                    "page-not-found.webp": take(browser, service.url, rocket, DESKTOP),
                    "page-phone.webp": take_compared(browser, service.url, cup, PHONE),
                }
        except (ServiceFailed, FileNotFoundError) as error:
            print(error, file=sys.stderr)
            return 1
    for name, data in pictures.items():
        Image.open(io.BytesIO(data)).save(FOLDER / name, quality=85, method=6)
        print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
