"""The page, in a real browser, with the real service: what a person does, and what they see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import MISSING, chromium, find_chromium
from conftest import LIMITS, Service, encode, picture, pixels, wait_until
from http_client import PNG, index
from PIL import Image

if find_chromium() is None:
    pytest.skip(MISSING, allow_module_level=True)

from playwright.sync_api import Browser, BrowserContext, Page, expect

NAMES = ["coffee.png", "chelsea.png", "astronaut.png"]
PATIENCE_MS = 15_000
expect.set_options(timeout=PATIENCE_MS)
TOUCHED = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Service]:
    """A service of this module's own: it starts empty, and one test stops it. With fewer tiles, so
    that storing is quick.
    """
    args = {"limits": LIMITS, "segmenter": {"tiles": [2]}}
    service = Service(tmp_path_factory.mktemp("page"), args)
    try:
        service.start()
        yield service
    finally:
        service.kill_everything()


@pytest.fixture(scope="module")
def client(service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


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


@pytest.fixture
def visit(service, browser) -> Iterator[Any]:
    """Makes visitors; at the end none of them may have had anything to complain of."""
    visitors = []

    def visit(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, service.url, **options))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.context.close()
    assert [complaint for visitor in visitors for complaint in visitor.complaints] == []


@pytest.fixture
def page(visit) -> Page:
    return visit().page


@pytest.fixture(scope="module")
def library(service, browser, client, photos) -> dict[str, dict[str, Any]]:
    """Records of three photos by name, which were stored through the page."""
    visitor = Visitor(browser, service.url)
    page = visitor.page
    page.goto("/?view=add")
    page.set_input_files("#add-files", [photos / name for name in NAMES])
    expect(page.locator("#add-title")).to_have_text("Done: 3 of 3 photos")
    expect(page.locator("#add-numbers")).to_have_text("3 stored")
    expect(page.locator("#state-text")).to_contain_text("Ready · 3 photos · ")
    assert visitor.complaints == []
    visitor.context.close()
    records = client.get("/images").json()["images"]
    assert sorted(record["filename"] for record in records) == sorted(NAMES)
    return {record["filename"]: record for record in records}


# Where things are


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


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union."""

    def area(box: list[float]) -> float:
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    both = [max(a, b) for a, b in zip(one[:2], other[:2], strict=True)]
    both += [min(a, b) for a, b in zip(one[2:], other[2:], strict=True)]
    return area(both) / (area(one) + area(other) - area(both))


# Of an SVG rectangle: its corners, and the size of the photo, as they are written in the SVG; and
# where the rectangle is on the screen, in the photo's pixels, measured from the picture beneath it.
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
  const number = (name) => Number(rect.getAttribute(name));
  const [x, y] = [number("x"), number("y")];
  return {
    size: [width, height],
    box: [x, y, x + number("width"), y + number("height")],
    seen: [box.left - left, box.top - top, box.right - left, box.bottom - top].map(
      (at) => at / scale),
  };
}"""


def expect_box(locator: Any, record: dict[str, Any], box: list[float], least: float) -> None:
    """Check that a rectangle is where it should be, in the SVG and on the screen."""
    measured = locator.evaluate(MEASURE)
    assert measured["size"] == [record["width"], record["height"]]
    assert overlap(measured["box"], box) >= least
    assert overlap(measured["seen"], measured["box"]) > 0.97


def cards(page: Page) -> Any:
    return page.locator("#results-grid .card")


def names(locator: Any) -> list[str]:
    return locator.locator(".name").all_text_contents()


def open_photo(page: Page, name: str, grid: str) -> None:
    """Open a photo by its card, and wait until it is there."""
    page.locator(f"{grid} .card", has_text=name).locator("a").click()
    expect(page.locator("#canvas img:not([hidden])")).to_have_attribute("alt", name)


def drag(page: Page, record: dict[str, Any], box: list[float], holder: str) -> None:
    """Drag a rectangle on a photo with the mouse; `box` in its pixels."""
    seen = page.locator(f"{holder} img:not([hidden])").last.bounding_box()
    scale = seen["width"] / record["width"]
    x1, y1, x2, y2 = [
        at * scale + seen[side] for at, side in zip(box, ["x", "y", "x", "y"], strict=True)
    ]
    page.mouse.move(x1, y1)
    page.mouse.down()
    page.mouse.move((x1 + x2) / 2, (y1 + y2) / 2)
    page.mouse.move(x2, y2)
    page.mouse.up()


def asked_box(page: Page) -> list[int]:
    return [int(at) for at in re.search(r"box=([\d,]+)", page.url)[1].split(",")]


# Storing


def test_what_is_stored_already_and_what_failed_is_said(page, library, photos, client):
    page.goto("/")
    page.get_by_role("link", name="Add photos").first.click()
    broken = upload(picture("broken on the page")[:300], "broken.png", "image/png")
    files = [upload((photos / name).read_bytes(), name, "image/png") for name in NAMES]
    page.set_input_files("#add-files", [*files, broken, upload(b"no image", "notes.txt", "")])
    expect(page.locator("#add-title")).to_have_text("Done: 5 of 5 photos")
    expect(page.locator("#add-numbers")).to_have_text("3 already stored · 2 failed")
    failures = sorted(page.locator("#add-failures-list li").all_text_contents())
    details = [
        client.post("/index", content=data, headers=PNG).json()["detail"]
        for data in (broken["buffer"], b"no image")
    ]
    assert failures == [f"broken.png {details[0]}", f"notes.txt {details[1]}"]
    page.get_by_role("button", name="Try the failed ones again").click()
    expect(page.locator("#add-title")).to_have_text("Done: 2 of 2 photos")
    expect(page.locator("#add-numbers")).to_have_text("2 failed")


def test_a_folder_is_stored_without_what_is_no_photo(page, library, client, tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "leaf.png").write_bytes(picture("a leaf in a folder"))
    (tmp_path / "album" / "notes.txt").write_text("no photo")
    page.goto("/?view=add")
    page.set_input_files("#add-folder", tmp_path)
    expect(page.locator("#add-numbers")).to_have_text("1 stored · 1 other file left out")
    expect(page.locator("#add-grid .name")).to_have_text("leaf.png")
    record = page.locator("#add-grid .card").get_attribute("data-id")
    assert client.delete(f"/images/{record}").status_code == 204


def test_a_folder_is_dropped(page, library, client, tmp_path):
    """A real drop, as the browser makes it of what comes from the desktop."""
    (tmp_path / "album" / "deeper").mkdir(parents=True)
    (tmp_path / "album" / "one.png").write_bytes(picture("one of a dropped folder"))
    (tmp_path / "album" / "deeper" / "two.png").write_bytes(picture("two of a dropped folder"))
    (tmp_path / "album" / "notes.txt").write_text("no photo")
    page.goto("/?view=add")
    box = page.locator("#add-drop").bounding_box()
    data = {"items": [], "files": [str(tmp_path / "album")], "dragOperationsMask": 1}
    devtools = page.context.new_cdp_session(page)
    for type in ("dragEnter", "dragOver", "drop"):
        event = {"type": type, "x": box["x"] + 50, "y": box["y"] + 50, "data": data}
        devtools.send("Input.dispatchDragEvent", event)
    expect(page.locator("#add-numbers")).to_have_text("2 stored · 1 other file left out")
    for card in page.locator("#add-grid .card").all():
        client.delete(f"/images/{card.get_attribute('data-id')}")


def test_storing_can_be_cancelled(visit, library, client):
    visitor = visit()
    page = visitor.page
    page.goto("/?view=add")
    before = client.get("/stats").json()["store"]["photos"]
    many = [upload(picture(f"cancelled {n}"), f"{n}.png", "image/png") for n in range(60)]
    page.set_input_files("#add-files", many)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#add-title")).to_contain_text(re.compile(r"Cancelled: \d+ of 60 photos"))
    expect(page.locator("#add-cancel")).to_be_hidden()
    sent = [request for request in visitor.requests if request.startswith("POST /index")]
    assert len(sent) < 60
    wait_until(lambda: client.get("/healthz").status_code == 200, "the service is at rest")
    stored = client.get("/images?limit=1000").json()["images"]
    for record in stored:
        if record["filename"] not in NAMES:
            client.delete(f"/images/{record['id']}")
    assert before + 60 > len(stored)


# Searching


def test_a_crop_finds_its_photo_and_shows_where(page, library, photos):
    """Uploaded, and cut a little beside the object: nothing is the same but what is seen."""
    record, (x1, y1, x2, y2) = the_cup(library)
    dx, dy = 0.04 * (x2 - x1), 0.04 * (y2 - y1)
    region = [x1 + dx, y1 + dy, x2 + dx, y2 + dy]
    page.goto("/")
    page.set_input_files("#search-file", upload(crop_of(photos, "coffee.png", region)))
    first = cards(page).first
    expect(first.locator(".name")).to_have_text("coffee.png")
    expect(first.locator("img")).to_have_js_property("complete", True)
    expect_box(first.locator(".best .line"), record, region, 0.7)
    similar = [float(text) for text in cards(page).locator(".similarity").all_text_contents()]
    assert similar[0] > 0.9
    assert similar == sorted(similar, reverse=True)
    assert len(similar) == 3
    # The query stays beside the results.
    expect(page.locator("#query-stage img")).to_be_visible()
    expect(page.locator("#query-caption")).to_have_text("crop.jpg")
    assert page.evaluate("document.querySelector('#query-stage img').naturalWidth") > 100


def drop_or_paste(page: Page, kind: str, files: list[tuple[str, bytes]]) -> None:
    page.evaluate(
        """([kind, files]) => {
          const transfer = new DataTransfer();
          for (const [name, bytes] of files) {
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
          }
          const options = {bubbles: true, cancelable: true};
          document.querySelector("#main").dispatchEvent(kind === "drop"
            ? new DragEvent("drop", {...options, dataTransfer: transfer})
            : new ClipboardEvent("paste", {...options, clipboardData: transfer}));
        }""",
        [kind, [[name, list(data)] for name, data in files]],
    )


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(page, library, photos, kind):
    _, cup = the_cup(library)
    page.goto("/")
    expect(page.locator("#start-grid .card")).to_have_count(3)
    drop_or_paste(page, kind, [("crop.jpg", crop_of(photos, "coffee.png", cup))])
    expect(cards(page).first.locator(".name")).to_have_text("coffee.png")
    # The address can't hold it; but the way back and forth can, while the page is open.
    assert page.url.removeprefix(page.evaluate("location.origin")) == "/"
    page.go_back()
    expect(page.locator("#start-grid .card")).to_have_count(3)
    expect(cards(page)).to_have_count(0)
    page.go_forward()
    expect(cards(page).first.locator(".name")).to_have_text("coffee.png")
    page.reload()
    expect(page.locator("#search-problem")).to_contain_text("drop it again")


def test_several_pictures_are_not_one_query(page, library):
    page.goto("/")
    drop_or_paste(page, "drop", [("a.jpg", b"a"), ("b.jpg", b"b")])
    expect(page.locator("#search-problem")).to_contain_text("A search takes one picture")


def test_a_query_that_is_no_image_is_answered_in_words(page, library, client):
    page.goto("/")
    page.set_input_files("#search-file", upload(b"no image at all", "query.png", "image/png"))
    detail = client.post("/search", content=b"no image at all", headers=PNG).json()["detail"]
    expect(page.locator("#search-problem")).to_have_text(detail)
    expect(page.locator("#query-caption")).to_contain_text("query.png")


def test_a_rectangle_dragged_on_a_photo_is_a_search_and_a_link(visit, library):
    record, cup = the_cup(library)
    visitor = visit()
    page = visitor.page
    page.goto("/?view=browse")
    open_photo(page, "coffee.png", "#browse-grid")
    drag(page, record, cup, "#canvas")
    expect_box(page.locator("#canvas .marked .line"), record, cup, 0.95)
    page.get_by_role("button", name="Search with this part").click()
    expect(page.locator("#viewer")).to_be_hidden()
    first = cards(page).first
    expect(first.locator(".name")).to_have_text("coffee.png")
    expect_box(first.locator(".best .line"), record, cup, 0.9)
    expect_box(page.locator("#query-stage .marked .line"), record, cup, 0.95)
    address = page.url
    assert f"?id={record['id']}&box=" in address
    assert overlap(asked_box(page), cup) > 0.95
    searches = [request for request in visitor.requests if request.startswith("POST /search")]
    assert len(searches) == 1

    # Somebody else opens the link, and drags another part of the query, beside its results.
    other = visit().page
    other.goto(address)
    expect(cards(other).first.locator(".name")).to_have_text("coffee.png")
    assert names(cards(other)) == names(cards(page))
    expect(other.locator("#query-stage .marked .line")).to_have_count(1)
    drag(other, record, [20, 20, 200, 160], "#query-stage")
    expect(other).not_to_have_url(address)
    assert overlap(asked_box(other), [20, 20, 200, 160]) > 0.9
    other.go_back()
    expect(other).to_have_url(address)
    expect_box(other.locator("#query-stage .marked .line"), record, cup, 0.95)
    other.get_by_role("button", name="Use all of it").click()
    expect(other).to_have_url(re.compile(r"\?id=\w+$"))

    # Back, to the open photo, to the page of all.
    page.go_back()
    expect(page.locator("#viewer")).to_be_visible()
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#browse-grid .card")).to_have_count(3)


def test_by_keyboard_alone_a_part_is_marked_and_searched(page, library):
    page.goto("/")
    expect(page.locator("#start-grid .card")).to_have_count(3)

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                # Where one is must be seen.
                style = "(e) => getComputedStyle(e.closest('.card') ?? e).outlineStyle"
                assert page.locator(":focus").evaluate(style) != "none"
                return
        pytest.fail(f"Tab doesn't lead to {selector}")

    tab_to("#search-file + *, #search-file")
    id = library["chelsea.png"]["id"]
    tab_to(f"[data-id='{id}'] a")
    page.keyboard.press("Enter")
    expect(page.locator("#canvas img:not([hidden])")).to_have_attribute("alt", "chelsea.png")
    expect(page.locator("#stage")).to_be_focused()
    page.keyboard.press("Enter")
    for key in ["ArrowRight", "ArrowDown", "ArrowDown", "Shift+ArrowLeft", "Shift+ArrowUp"]:
        page.keyboard.press(key)
    width, height = (library["chelsea.png"][side] for side in ("width", "height"))
    step = round(max(width, height) / 64)
    corners = [width / 4, height / 4, 3 * width / 4, 3 * height / 4]
    moved = [step, 2 * step, 0, step]
    expected = [corner + by for corner, by in zip(corners, moved, strict=True)]
    expect(page.locator("#viewer-live")).to_contain_text("Marked: ")
    page.keyboard.press("Enter")
    expect(cards(page).first.locator(".name")).to_have_text("chelsea.png")
    assert asked_box(page) == pytest.approx(expected, abs=1)

    # And on the query: the mark is moved there too, and the keyboard stays in it.
    page.locator("#query-stage").focus()
    page.keyboard.press("ArrowLeft")
    before = asked_box(page)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(rf"box={before[0] - step},{before[1]},"))
    expect(page.locator("#query-stage")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#query-stage .marked .line")).to_have_count(0)


def test_the_slider_acts_at_once_and_asks_nothing(visit, library):
    record, cup = the_cup(library)
    visitor = visit()
    page = visitor.page
    page.goto(f"/?id={record['id']}&box={','.join(map(str, cup))}")
    expect(cards(page)).to_have_count(3)
    assert cards(page).first.locator(".box").count() == 5
    similar = [float(text) for text in cards(page).locator(".similarity").all_text_contents()]
    asked = len(visitor.requests)
    slider = page.get_by_label("Similarity at least")
    slider.fill(f"{(similar[0] + similar[1]) / 2:.2f}")
    expect(cards(page)).to_have_count(1)
    expect(cards(page).first.locator(".name")).to_have_text("coffee.png")
    assert 1 <= cards(page).first.locator(".box").count() < 5
    assert not [line for line in visitor.requests[asked:] if "/search" in line]
    expect(page).to_have_url(re.compile("max_distance=0"))
    page.reload()
    expect(cards(page)).to_have_count(1)
    page.get_by_label("Similarity at least").fill("0")
    expect(cards(page)).to_have_count(3)


def test_the_slider_asks_the_service_where_only_it_can_tell(page, library):
    """With a ranker that takes the mean, a photo's distance depends on the bound."""

    def mean(route: Any) -> None:
        answer = route.fetch().json()
        for match in answer["matches"]:
            distances = [chunk["distance"] for chunk in match["chunks"]]
            match["distance"] = sum(distances) / len(distances)
        route.fulfill(json=answer)

    page.route("**/search?*", mean)
    page.goto(f"/?id={library['coffee.png']['id']}")
    expect(cards(page)).to_have_count(3)
    with page.expect_request("**/search?*max_distance=0.5*"):
        page.get_by_label("Similarity at least").fill("0.5")
    with page.expect_request("**/search?*") as request:
        page.get_by_label("Similarity at least").fill("0")
    assert "max_distance" not in request.value.url
    expect(cards(page)).to_have_count(3)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    page.unroute_all(behavior="wait")


def test_more_results_come_on_demand(page, library, client):
    parts = [("file", (f"more-{n}.png", picture(f"more {n}"))) for n in range(24)]
    ids = [image["id"] for image in client.post("/index", files=parts).json()["images"]]
    try:
        page.goto(f"/?id={library['coffee.png']['id']}")
        expect(cards(page)).to_have_count(24)
        page.get_by_role("button", name="Show more").click()
        expect(cards(page)).to_have_count(27)
        expect(page.get_by_role("button", name="Show more")).to_be_hidden()
        page.goto("/?view=browse")
        expect(page.locator("#browse-grid .card")).to_have_count(27)
    finally:
        for id in ids:
            client.delete(f"/images/{id}")


def test_words_are_asked_for_only_where_the_encoder_knows_words(visit, library, client):
    """The encoder of the tests doesn't; that it does is made up here, and the service objects."""
    page = visit().page
    page.goto("/")
    expect(page.locator("#state-text")).to_contain_text("Ready")
    expect(page.get_by_role("searchbox")).to_be_hidden()

    stats = client.get("/stats").json()
    stats["encoder"]["text"] = True
    page.route("**/stats", lambda route: route.fulfill(json=stats))
    page.goto("/")
    page.get_by_label("Or say what it shows").fill("a cup of coffee")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"\?text=a\+cup\+of\+coffee$"))
    detail = client.post("/search", params={"text": "a cup of coffee"}).json()["detail"]
    expect(page.locator("#search-problem")).to_have_text(detail)
    expect(page.locator("#query-text")).to_have_text("a cup of coffee")


# The whole photo


def test_a_photo_shows_its_matches_and_its_parts(page, library):
    record, cup = the_cup(library)
    page.goto(f"/?id={record['id']}&box={','.join(map(str, cup))}")
    open_photo(page, "coffee.png", "#results-grid")
    boxes = page.locator("#canvas .box")
    expect(page.locator("#canvas .best")).to_have_count(1)
    expect_box(page.locator("#canvas .best .line"), record, cup, 0.99)
    matches = boxes.count()
    assert matches == 5
    for label, source in [("Objects", "detection"), ("Tiles", "tile"), ("Whole photo", "whole")]:
        number = sum(chunk["source"] == source for chunk in record["chunks"])
        expect(page.get_by_label(label)).not_to_be_checked()
        expect(page.locator(".toggle", has_text=label)).to_contain_text(str(number))
        page.get_by_label(label).check()
    expect(boxes).to_have_count(len(record["chunks"]))
    page.get_by_label("Matches").uncheck()
    page.get_by_label("Tiles").uncheck()
    page.get_by_label("Whole photo").uncheck()
    objects = [chunk for chunk in record["chunks"] if chunk["source"] == "detection"]
    expect(boxes).to_have_count(len(objects))
    labels = page.locator(".part > span:nth-child(2)").all_text_contents()
    assert sorted(labels) == sorted(chunk["label"] for chunk in objects)

    # One of them is chosen, and searched with.
    page.locator(".part", has_text="cup").click()
    expect_box(page.locator("#canvas .marked .line"), record, cup, 0.99)
    page.get_by_role("button", name="Search with this part").click()
    assert asked_box(page) == cup


def test_a_photo_is_zoomed_and_its_boxes_with_it(page, library):
    record = library["coffee.png"]
    page.goto(f"/?view=browse&photo={record['id']}")
    expect(page.locator("#canvas img:not([hidden])")).to_have_attribute("alt", "coffee.png")
    image, box = page.locator("#canvas img"), page.locator("#canvas .detection .line").last
    fitted = image.bounding_box()
    page.get_by_role("button", name="Zoom in").click()
    assert image.bounding_box()["width"] == pytest.approx(1.4 * fitted["width"], rel=0.01)
    page.locator("#stage").hover()
    page.mouse.wheel(0, -400)
    wait_until(lambda: image.bounding_box()["width"] > 2 * fitted["width"], "the wheel zooms")
    measured = box.evaluate(MEASURE)
    assert overlap(measured["seen"], measured["box"]) > 0.97
    page.get_by_role("button", name="Move", exact=True).click()
    before = image.bounding_box()
    page.locator("#stage").hover()
    page.mouse.down()
    page.mouse.move(300, 300)
    page.mouse.up()
    assert image.bounding_box()["x"] != before["x"]
    assert page.locator("#canvas .marked .line").count() == 0
    page.locator("#stage").focus()
    page.keyboard.press("0")
    assert image.bounding_box() == fitted
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page).to_have_url(re.compile(r"\?view=browse$"))


def test_a_photo_that_lies_on_its_side_is_upright_and_so_are_its_boxes(
    page, library, client, photos
):
    """EXIF says how to turn it; boxes are of the upright photo."""
    record, cup = the_cup(library)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos / "coffee.png") as photo:
        lying = photo.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    turned = index(client, encode(lying, "JPEG", quality=95, exif=exif), filename="turned.jpg")
    try:
        assert (turned["width"], turned["height"]) == (record["width"], record["height"])
        page.goto("/")
        page.set_input_files("#search-file", upload(crop_of(photos, "coffee.png", cup)))
        card = page.locator(f"#results-grid [data-id='{turned['id']}']")
        expect(card.locator("img")).to_have_js_property("complete", True)
        expect_box(card.locator(".best .line"), turned, cup, 0.7)
        open_photo(page, "turned.jpg", "#results-grid")
        assert page.locator("#canvas img").evaluate("(image) => image.naturalWidth") == 600
        expect_box(page.locator("#canvas .best .line"), turned, cup, 0.7)
    finally:
        client.delete(f"/images/{turned['id']}")


def test_a_photo_that_no_browser_shows_is_its_small_picture(page, library, client):
    id = index(client, encode(pixels("tiff"), "TIFF"), filename="scan.tiff")["id"]
    try:
        page.goto(f"/?view=browse&photo={id}")
        expect(page.locator("#viewer-problem")).to_contain_text("can't show the photo itself")
        expect(page.locator("#canvas img:not([hidden])")).to_have_attribute("alt", "scan.tiff")
        assert page.locator("#canvas img").first.evaluate("(image) => image.naturalWidth") > 0
    finally:
        client.delete(f"/images/{id}")


def test_a_stored_photo_lies_beside_others(page, library):
    page.goto("/?view=browse")
    expect(page.locator("#browse-grid .card")).to_have_count(3)
    order = page.locator("#browse-grid .name").all_text_contents()
    open_photo(page, order[0], "#browse-grid")
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    for name in order[1:]:
        page.get_by_role("button", name="Next").click()
        expect(page.locator("#viewer-name")).to_have_text(name)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Close").last.click()
    expect(page.locator("#viewer")).to_be_hidden()


# Deleting


def add_for_deletion(client: httpx.Client, name: str) -> str:
    return index(client, picture(name), filename=f"{name}.png")["id"]


def test_a_deletion_can_be_undone(page, library, client):
    id = add_for_deletion(client, "undone")
    page.clock.install()
    page.goto("/?view=browse")
    card = page.locator(f"[data-id='{id}']")
    card.get_by_role("button", name="Delete undone.png").click()
    expect(card).to_have_count(0)
    expect(page.locator("#toast-text")).to_have_text("Deleted undone.png.")
    page.get_by_role("button", name="Undo").click()
    expect(card).to_have_count(1)
    expect(page.locator("#toast")).to_be_hidden()
    # By keyboard: Delete on the photo, and Ctrl+Z.
    card.get_by_role("link").focus()
    page.keyboard.press("Delete")
    expect(card).to_have_count(0)
    page.keyboard.press("Control+z")
    expect(card).to_have_count(1)
    page.clock.fast_forward(20_000)
    assert client.get(f"/images/{id}/record").status_code == 200
    client.delete(f"/images/{id}")


def test_a_deletion_that_is_not_undone_happens(page, library, client):
    id = add_for_deletion(client, "doomed")
    page.clock.install()
    page.goto(f"/?id={id}")
    open_photo(page, "doomed.png", "#results-grid")
    page.locator("#viewer").get_by_role("button", name="Delete").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator(f"#results-grid [data-id='{id}']")).to_have_count(0)
    assert client.get(f"/images/{id}/record").status_code == 200
    page.clock.fast_forward(5_000)
    wait_until(lambda: client.get(f"/images/{id}/record").status_code == 404, "it is deleted")
    expect(page.locator("#toast")).to_be_hidden()
    expect(cards(page)).to_have_count(3)


def test_a_deletion_happens_also_when_the_page_is_left(page, library, client):
    id = add_for_deletion(client, "left behind")
    page.goto("/?view=browse")
    page.get_by_role("button", name="Delete left behind.png").click()
    expect(page.locator("#toast")).to_be_visible()
    page.goto("about:blank")
    wait_until(lambda: client.get(f"/images/{id}/record").status_code == 404, "it is deleted")


# Hostile names, small screens, and everybody


HOSTILE = [
    '<img src=x onerror="alert(1)">.png',
    "\"quotes' & <b>bold</b>.png",
    "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd.png",
    "</script><script>alert(1)</script>" + 40 * "long name ",
]


def test_names_and_metadata_are_never_html(visit, library, client):
    page = visit(viewport=TOUCHED).page
    page.goto("/?view=add")
    files = [upload(picture(name), name, "image/png") for name in HOSTILE]
    page.set_input_files("#add-files", [*files, upload(b"no image", HOSTILE[0], "image/png")])
    expect(page.locator("#add-numbers")).to_have_text("4 stored · 1 failed")
    assert page.locator("#add-failures-list bdi").text_content() == HOSTILE[0]
    metadata = {"note": "<img src=x onerror=alert(1)>"}
    id = index(client, picture("meta"), filename=HOSTILE[0], metadata=json.dumps(metadata))["id"]
    try:
        page.goto("/?view=browse")
        expect(page.locator("#browse-grid .card")).to_have_count(8)
        shown = page.locator("#browse-grid .name").all_text_contents()
        assert sorted(shown) == sorted([*NAMES, *HOSTILE, HOSTILE[0]])
        assert page.evaluate("document.documentElement.scrollWidth") <= TOUCHED["width"]
        page.locator(f"[data-id='{id}'] a").click()
        expect(page.locator("#viewer-name")).to_have_text(HOSTILE[0])
        expect(page.locator("#facts")).to_contain_text(metadata["note"])
        assert page.locator("img[src=x], b, #main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= TOUCHED["width"]
    finally:
        for record in client.get("/images").json()["images"]:
            if record["filename"] in HOSTILE:
                client.delete(f"/images/{record['id']}")


def pinch(page: Page, selector: str) -> None:
    """Spread two fingers, from 40 to 160 pixels apart."""
    box = page.locator(selector).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    devtools = page.context.new_cdp_session(page)

    def touch(type: str, *distances: int) -> None:
        points = [{"x": x + distance, "y": y, "id": n} for n, distance in enumerate(distances)]
        devtools.send("Input.dispatchTouchEvent", {"type": type, "touchPoints": points})

    touch("touchStart", -20)
    touch("touchStart", -20, 20)
    for distance in range(30, 90, 10):
        touch("touchMove", -distance, distance)
    touch("touchEnd")


def test_on_a_small_screen_nothing_is_cut_off(visit, library):
    record, cup = the_cup(library)
    page = visit(viewport=TOUCHED, has_touch=True, is_mobile=True).page
    search = f"/?id={record['id']}&box={','.join(map(str, cup))}"
    for address, sight in [
        ("/", "#start-grid .card"),
        ("/?view=browse", "#browse-grid .card"),
        ("/?view=add", "#add-drop"),
        (search, "#results-grid .card"),
        (f"{search}&photo={record['id']}", "#canvas .best"),
    ]:
        page.goto(address)
        expect(page.locator(sight).first).to_be_visible()
        expect(page.locator("#state-text")).to_contain_text("Ready")
        for selector in ("document.documentElement", "document.querySelector('#viewer')"):
            assert page.evaluate(f"{selector}.scrollWidth") <= TOUCHED["width"], address
    # Two fingers zoom; one chooses the cup.
    pinch(page, "#stage")
    assert page.locator("#canvas").bounding_box()["width"] > 2 * TOUCHED["width"]
    assert page.locator("#canvas .marked .line").count() == 0
    page.get_by_role("button", name="Fit").tap()
    seen = page.locator("#canvas img:not([hidden])").bounding_box()
    scale = seen["width"] / record["width"]
    x, y = (cup[0] + cup[2]) / 2, (cup[1] + cup[3]) / 2
    page.touchscreen.tap(seen["x"] + x * scale, seen["y"] + y * scale)
    expect(page.get_by_role("button", name="Search with this part")).to_be_enabled()


def test_the_first_paint_weighs_less_than_100_kilobytes(page, library):
    page.goto("/")
    expect(page.locator("#start-grid .card")).to_have_count(3)
    weights = page.evaluate(
        """() => [...performance.getEntriesByType("navigation"),
                  ...performance.getEntriesByType("resource")]
          .map((entry) => [new URL(entry.name).pathname, entry.transferSize])"""
    )
    ours = {path: size for path, size in weights if not path.startswith("/images")}
    assert len(ours) > 10
    assert 0 < sum(ours.values()) < 100_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(visit, library, scheme):
    """As far as axe-core can tell: names, roles, contrast, order, in every view."""
    from axe_playwright_python.sync_playwright import Axe

    record, cup = the_cup(library)
    # The checker is a script that our policy doesn't let in.
    page = visit(color_scheme=scheme, bypass_csp=True).page
    search = f"/?id={record['id']}&box={','.join(map(str, cup))}"
    for address, sight in [
        ("/", "#start-grid .card"),
        (search, "#results-grid .card"),
        (f"{search}&photo={record['id']}", "#canvas .best"),
        ("/?view=browse", "#browse-grid .card"),
        ("/?view=add", "#add-drop"),
    ]:
        page.goto(address)
        expect(page.locator(sight).first).to_be_visible()
        expect(page.locator("#state-text")).to_contain_text("Ready")
        if "photo=" in address:
            page.get_by_label("Tiles").check()
            page.locator(".part").first.click()
        if address == "/?view=browse":
            page.locator("#browse-grid .delete").first.click()
            expect(page.locator("#toast")).to_be_visible()
        if address == "/?view=add":
            page.set_input_files("#add-files", upload(b"no image", "broken.png", "image/png"))
            expect(page.locator("#add-failures-list li")).to_have_count(1)
        results = Axe().run(page)
        assert results.violations_count == 0, f"{address}: {results.generate_report()}"
        if address == "/?view=browse":
            page.get_by_role("button", name="Undo").click()


# When the service is away


def test_the_page_goes_on_by_itself_when_the_service_is_back(visit, service, library, client):
    """The last test, for it stops the service."""
    record, cup = the_cup(library)
    visitor = visit()
    page, storing = visitor.page, visitor.open_page()
    page.goto(f"/?id={record['id']}")
    expect(cards(page)).to_have_count(3)
    storing.goto("/?view=add")
    service.kill_everything()

    page.get_by_role("link", name="chelsea.png").click()
    expect(page.locator("#viewer-problem")).to_contain_text("can't be reached")
    page.keyboard.press("Escape")
    drag(page, record, cup, "#query-stage")
    expect(page.locator("#search-problem")).to_contain_text("can't be reached")
    expect(page.locator("#trouble")).to_contain_text("goes on by itself")
    expect(page.locator("#state")).to_have_attribute("data-state", "down")
    storing.set_input_files("#add-files", upload(encode(pixels("patient")), "patient.png"))
    expect(storing.locator("#add-pace")).to_have_text("Waiting for the service.")

    service.start()
    expect(page.locator("#state")).to_have_attribute("data-state", "ready", timeout=30_000)
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#search-problem")).to_be_hidden()
    expect(cards(page).first.locator(".name")).to_have_text("coffee.png")
    expect_box(cards(page).first.locator(".best .line"), record, cup, 0.9)
    expect(storing.locator("#add-numbers")).to_have_text("1 stored", timeout=30_000)
