"""Somebody who looks at the page: what they do, and what they see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.support.photos.geometry import overlap
from tests.support.photos.pictures import encode

NAMES = ["coffee.png", "chelsea.png", "astronaut.png"]
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)
TOUCHED = {"width": 360, "height": 740}


class Visitor:
    """Somebody with a browser of their own, who hears every complaint of it.

    Attributes:
        complaints: errors on the console, exceptions, violations of the policy, requests that leave
            the origin, dialogs that a script opened.
        requests: method and path of each.
    """

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        options = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"} | options
        self.context: BrowserContext = browser.new_context(base_url=url, **options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.open_page()

    def leave(self) -> None:
        """Close the browser, when what answers in the place of the service has done so.

        An answer that is still being made up would fail when its page is gone, in the test that
        comes next.
        """
        for page in self.context.pages:
            page.unroute_all(behavior="wait")
        self.context.unroute_all(behavior="wait")
        self.context.close()

    def open_page(self) -> Page:
        page = self.context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._note)
        page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        return page

    def _hear(self, message: Any) -> None:
        # That an answer is an error, the browser says of each; whether it should be, the tests say.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def _note(self, request: Any) -> None:
        if not request.url.startswith((f"{self.url}/", f"blob:{self.url}/")):
            self.complaints.append(f"a request to {request.url}")
        self.requests.append(f"{request.method} {request.url.removeprefix(self.url)}")


def the_cup(library: dict) -> tuple[dict[str, Any], list[int]]:
    """The record of coffee.png, and the box of the cup in it."""
    record = library["coffee.png"]
    (box,) = [chunk["box"] for chunk in record["chunks"] if chunk["label"] == "cup"]
    return record, box


def crop_of(photos: Path, name: str, box: list[float]) -> bytes:
    """A part of a photo, cut out, made smaller and compressed."""
    with Image.open(photos / name) as photo:
        crop = photo.convert("RGB").crop(tuple(map(round, box)))
    return encode(crop.resize((crop.width * 2 // 3, crop.height * 2 // 3)), "JPEG", quality=70)


def upload(data: bytes, name: str = "crop.jpg", type: str = "image/jpeg") -> dict[str, Any]:
    return {"name": name, "mimeType": type, "buffer": data}


# Of an SVG rectangle or polygon: its bounds, and the size of the photo, as they are written in the
# SVG; and where it is on the screen, in the photo's pixels, measured from the picture beneath it.
MEASURE = """(rect) => {
  const svg = rect.ownerSVGElement;
  const {width, height} = svg.viewBox.baseVal;
  const image = svg.parentElement.querySelector("img:not([hidden])");
  const seen = image.getBoundingClientRect();
  // As object-fit: contain lays it out; elsewhere the picture fills its element.
  const scale = Math.min(seen.width / width, seen.height / height);
  const left = seen.left + (seen.width - width * scale) / 2;
  const top = seen.top + (seen.height - height * scale) / 2;
  const box = rect.getBoundingClientRect();
  const bounds = rect.getBBox();
  return {
    size: [width, height],
    box: [bounds.x, bounds.y, bounds.x + bounds.width, bounds.y + bounds.height],
    seen: [box.left - left, box.top - top, box.right - left, box.bottom - top].map(
      (at) => at / scale),
  };
}"""


def expect_box(locator: Any, record: dict[str, Any], box: list[float], least: float) -> None:
    """Check that a rectangle or polygon is where it should be, in the SVG and on the screen."""
    measured = locator.evaluate(MEASURE)
    assert measured["size"] == [record["width"], record["height"]]
    assert overlap(measured["box"], box) >= least
    assert overlap(measured["seen"], measured["box"]) > 0.97


# What was found, and what looks alike.
RESULTS = "#found-grid, #results-grid"
PHOTO = "#canvas > img:not([hidden])"


def cards(page: Page) -> Any:
    return page.locator(RESULTS).locator(".card")


def names(locator: Any) -> list[str]:
    return locator.locator(".name").all_text_contents()


def open_photo(page: Page, name: str, grid: str) -> None:
    """Open a photo by its card, and wait until it is there."""
    page.locator(grid).locator(".card", has_text=name).locator("a").click()
    expect(page.locator(PHOTO)).to_have_attribute("alt", name)


def drag(page: Page, record: dict[str, Any], box: list[float], holder: str) -> None:
    """Drag a rectangle on a photo with the mouse; `box` in its pixels."""
    seen = page.locator(f"{holder} > img:not([hidden])").last.bounding_box()
    scale = seen["width"] / record["width"]
    x1, y1, x2, y2 = [
        at * scale + seen[side] for at, side in zip(box, ["x", "y", "x", "y"], strict=True)
    ]
    page.mouse.move(x1, y1)
    page.mouse.down()
    page.mouse.move((x1 + x2) / 2, (y1 + y2) / 2)
    page.mouse.move(x2, y2)
    page.mouse.up()


def drop(page: Page, target: str, folder: Path) -> None:
    """Drop a folder as the browser does with what comes from the desktop."""
    expect(page.locator(target)).to_be_visible()
    box = page.locator(target).bounding_box()
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    devtools = page.context.new_cdp_session(page)
    for type in ("dragEnter", "dragOver", "drop"):
        event = {"type": type, "x": box["x"] + 50, "y": box["y"] + 50, "data": data}
        devtools.send("Input.dispatchDragEvent", event)


def asked_box(page: Page) -> list[int]:
    return [int(at) for at in re.search(r"box=([\d,]+)", page.url)[1].split(",")]
