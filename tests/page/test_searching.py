"""By a picture, a part, words: what comes back, and where it is."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.support.page.verified import answering, looked_nowhere
from tests.support.page.visitor import (
    PHOTO,
    asked_box,
    cards,
    crop_of,
    drag,
    expect_box,
    names,
    open_photo,
    the_cup,
    upload,
)
from tests.support.photos.geometry import overlap
from tests.support.photos.pictures import encode, picture
from tests.support.service.http_client import PNG, index


def test_a_crop_finds_its_photo_and_shows_where(page, library, photos):
    """Uploaded, and cut a little beside the object: nothing is the same but what is seen."""
    record, (x1, y1, x2, y2) = the_cup(library)
    dx, dy = 0.04 * (x2 - x1), 0.04 * (y2 - y1)
    region = [x1 + dx, y1 + dy, x2 + dx, y2 + dy]
    page.goto("/")
    page.set_input_files("#search-file", upload(crop_of(photos, "coffee.png", region)))
    expect(page.get_by_role("heading", name="Found in 1 photo")).to_be_visible()
    (first,) = page.locator("#found-grid .card").all()
    expect(first.locator(".name")).to_have_text("coffee.png")
    expect(first.locator(".noticed")).to_have_text("1.5 \N{MULTIPLICATION SIGN} larger here")
    expect(first.locator("img")).to_have_js_property("complete", True)
    expect_box(first.locator("polygon.line"), record, region, 0.97)
    # The others look alike, and are folded.
    expect(page.locator("#results-grid .card:visible")).to_have_count(0)
    page.get_by_role("button", name="Looks alike").click()
    expect(page.locator("#results-grid .card:visible")).to_have_count(2)
    similar = [float(text) for text in cards(page).locator(".similarity").all_text_contents()]
    assert similar == sorted(similar, reverse=True)
    # The query stays beside the results.
    expect(page.locator("#query-stage img")).to_be_visible()
    expect(page.locator("#query-caption")).to_have_text("crop.jpg")
    assert page.evaluate("document.querySelector('#query-stage img').naturalWidth") > 100


def test_what_is_in_no_photo_is_not_found(page, library, photos):
    page.goto("/")
    query = crop_of(photos, "rocket.jpg", [100, 40, 400, 265])  # which is not stored
    page.set_input_files("#search-file", upload(query))
    expect(page.get_by_role("heading", name="Not found among 3 photos")).to_be_visible()
    expect(page.locator("#found-grid .card")).to_have_count(0)
    expect(page.locator("#results-grid .card:visible")).to_have_count(3)


def test_a_query_that_was_turned_and_mirrored_lies_on_its_place(page, library, photos):
    """What is seen is the same photo, with the query over it or without."""
    record, cup = the_cup(library)
    with Image.open(photos / "coffee.png") as photo:
        crop = photo.convert("RGB").crop(tuple(cup))
    turned = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT).transpose(Image.Transpose.ROTATE_270)
    page.goto("/")
    page.set_input_files("#search-file", upload(encode(turned, "JPEG", quality=90)))
    expect(page.locator("#found-grid .noticed")).to_have_text("mirrored, turned by 90°")
    open_photo(page, "coffee.png", "#found-grid")
    expect(page.locator("#compare")).to_be_visible()
    expect_box(page.locator("#canvas polygon.line"), record, cup, 0.97)
    page.get_by_label("Found here").uncheck()

    def seen(share: int) -> np.ndarray:
        page.locator("#compare-share").fill(str(share))
        seen = page.locator(PHOTO).bounding_box()
        scale = seen["width"] / record["width"]
        x1, y1, x2, y2 = (at * scale for at in cup)
        clip = {"x": seen["x"] + x1, "y": seen["y"] + y1, "width": x2 - x1, "height": y2 - y1}
        with Image.open(io.BytesIO(page.screenshot(clip=clip))) as shot:
            pixels = np.asarray(shot.convert("L"), float)
        # Without the edges and the handle of the line.
        height, width = pixels.shape
        return pixels[height // 8 : -height // 4, width // 8 : -width // 8]

    photo_alone, with_query = seen(0), seen(100)
    assert not np.array_equal(photo_alone, with_query)
    assert np.corrcoef(photo_alone.ravel(), with_query.ravel())[0, 1] > 0.99


def test_copies_are_listed_under_the_first(page, library, client, photos):
    _, cup = the_cup(library)
    with Image.open(photos / "coffee.png") as photo:
        again = encode(photo.convert("RGB"), "JPEG", quality=80)
    id = index(client, again, filename="again.jpg")["id"]
    try:
        page.goto("/")
        page.set_input_files("#search-file", upload(crop_of(photos, "coffee.png", cup)))
        expect(page.get_by_role("heading", name="Found in 2 photos")).to_be_visible()
        (card,) = page.locator("#found-grid .card").all()
        first = card.locator(".name").text_content()
        (other,) = {"coffee.png", "again.jpg"} - {first}
        expect(card.locator(".copies")).to_contain_text("1 copy")
        page.get_by_role("list", name=f"Copies of {first}").get_by_role("link").click()
        # It is found there as well, and comes next to the first.
        expect(page.locator(PHOTO)).to_have_attribute("alt", other)
        expect(page.locator("#compare")).to_be_visible()
        expect(page.locator("#canvas polygon.line")).to_have_count(1)
        page.get_by_role("button", name="Previous").click()
        expect(page.locator("#viewer-name")).to_have_text(first)
        # When the first goes, its copy takes its place; and comes back.
        page.get_by_role("button", name="Delete").click()
        expect(page.get_by_role("heading", name="Found in 1 photo")).to_be_visible()
        expect(page.locator("#found-grid .name")).to_have_text([other])
        expect(page.locator(".copies")).to_have_count(0)
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("#found-grid .name")).to_have_text([first])
        expect(page.locator(".copies a")).to_have_text([other])
    finally:
        client.delete(f"/images/{id}")


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


def test_a_picture_waits_until_the_page_knows_what_is_allowed(page, library, photos):
    _, cup = the_cup(library)
    held: list[Route] = []
    page.route("**/session", lambda route: held.append(route), times=1)
    page.goto("/")
    drop_or_paste(page, "paste", [("crop.jpg", crop_of(photos, "coffee.png", cup))])
    expect(page.locator("#search")).to_be_hidden()
    held[0].continue_()
    expect(cards(page).first.locator(".name")).to_have_text("coffee.png")


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
    other.get_by_role("button", name="Use the whole picture").click()
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
    expect(page.locator("#canvas > img:not([hidden])")).to_have_attribute("alt", "chelsea.png")
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


def test_the_slider_acts_at_once_and_asks_nothing(visit, library, client):
    record, cup = the_cup(library)
    query = {"id": record["id"], "box": ",".join(map(str, cup)), "verify": "none"}
    first, second = client.post("/search", params=query).json()["matches"][:2]
    farthest = min(first["chunks"][-1]["distance"], second["distance"])
    between = (first["distance"] + farthest) / 2
    visitor = visit()
    page = visitor.page
    answering(page, looked_nowhere)
    page.goto(f"/?id={record['id']}&box={','.join(map(str, cup))}")
    expect(cards(page)).to_have_count(3)
    assert cards(page).first.locator(".box").count() == 5
    asked = len(visitor.requests)
    slider = page.get_by_label("Similarity at least")
    slider.fill(f"{1 - between:.2f}")
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
    # Each answer is waited for: a request that the page gives up can't be fetched in its place.
    with page.expect_response("**/search?*max_distance=0.5*"):
        page.get_by_label("Similarity at least").fill("0.5")
    with page.expect_response("**/search?*") as answer:
        page.get_by_label("Similarity at least").fill("0")
    assert "max_distance" not in answer.value.url
    expect(cards(page)).to_have_count(3)


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
    page.get_by_label("Or describe it in words").fill("a cup of coffee")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"\?text=a\+cup\+of\+coffee$"))
    detail = client.post("/search", params={"text": "a cup of coffee"}).json()["detail"]
    expect(page.locator("#search-problem")).to_have_text(detail)
    expect(page.locator("#query-text")).to_have_text("a cup of coffee")
