"""Take the README's pictures of the page: a search on a desktop, an open photo on a phone.

    scripts/screenshots.py

Starts a service of its own with the free photos in scikit-image's wheel.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from pathlib import Path

import httpx
from common.chromium import chromium
from common.client import index_files
from common.own_service import OwnService
from common.paths import SCRIPTS
from common.photos import free_photos
from common.serve_run import ServiceFailed
from PIL import Image
from playwright.sync_api import Browser, Page

FOLDER = SCRIPTS / "pictures"
PATIENCE_MS = 30_000


def cut_cup(client: httpx.Client, photos: Path, folder: Path) -> tuple[str, Path]:
    """Cut the cup out of coffee.png, scaled down; return the photo's id, and the crop's file."""
    records = client.get("/images", params={"limit": 1000}).json()["images"]
    (record,) = [record for record in records if record["filename"] == "coffee.png"]
    (box,) = [chunk["box"] for chunk in record["chunks"] if chunk["label"] == "cup"]
    with Image.open(photos / "coffee.png") as photo:
        crop = photo.convert("RGB").crop(box)
    query = folder / "cup.jpg"
    crop.resize((crop.width * 2 // 3, crop.height * 2 // 3)).save(query, quality=70)
    return record["id"], query


def search(page: Page, query: Path) -> None:
    """Search by a file on the page, and return when its answer is drawn."""
    page.goto("/")
    page.set_input_files("#search-file", query)
    page.wait_for_selector("#results-grid .card")
    page.wait_for_selector("#state[data-state=ready]")
    page.wait_for_load_state("networkidle")


def desktop(browser: Browser, url: str, query: Path) -> bytes:
    """Return the picture of a search on a desktop: PNG."""
    context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    search(page, query)
    return page.screenshot()


def phone(browser: Browser, url: str, query: Path, id: str) -> bytes:
    """Return the picture of a photo that was found, open on a phone with dark colours: PNG."""
    context = browser.new_context(
        base_url=url,
        viewport={"width": 390, "height": 780},
        device_scale_factor=2,
        is_mobile=True,
        has_touch=True,
        color_scheme="dark",
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    search(page, query)
    page.locator(f"#results-grid [data-id='{id}'] a").tap()
    page.wait_for_selector("#canvas img:not([hidden])[alt='coffee.png']")
    return page.screenshot()


def main() -> int:
    photos = free_photos()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, OwnService(Path(temporary)) as service:
        folder = Path(temporary)
        try:
            service.start()
            asyncio.run(index_files(service.url, sorted(photos.glob("*.png"))))
            with httpx.Client(base_url=service.url, timeout=60) as client:
                id, query = cut_cup(client, photos, folder)
            with chromium() as browser:
                pictures = {
                    "page-desktop.webp": desktop(browser, service.url, query),
                    "page-phone.webp": phone(browser, service.url, query, id),
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
