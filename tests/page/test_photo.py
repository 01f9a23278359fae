"""A photo alone: whole, zoomed, with its boxes."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.support.page.verified import answering, looked_nowhere
from tests.support.page.visitor import (
    MEASURE,
    PHOTO,
    RESULTS,
    asked_box,
    crop_of,
    expect_box,
    open_photo,
    the_cup,
    upload,
)
from tests.support.photos.exif import of_a_phone
from tests.support.photos.geometry import overlap
from tests.support.photos.pictures import encode, pixels
from tests.support.running.waiting import wait_until
from tests.support.service.http_client import index


def test_a_photo_shows_its_matches_and_its_parts(page, library):
    record, cup = the_cup(library)
    answering(page, looked_nowhere)
    page.goto(f"/?id={record['id']}&box={','.join(map(str, cup))}")
    open_photo(page, "coffee.png", RESULTS)
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
    expect(page.locator("#canvas > img:not([hidden])")).to_have_attribute("alt", "coffee.png")
    image, box = page.locator("#canvas > img"), page.locator("#canvas .detection .line").last
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


def ungrouped(url: str) -> str:
    return url.replace("&group=copies", "")


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
        # It is a copy of the other one, and would have no card of its own.
        page.route("**/search?*", lambda route: route.continue_(url=ungrouped(route.request.url)))
        page.goto("/")
        page.set_input_files("#search-file", upload(crop_of(photos, "coffee.png", cup)))
        card = page.locator(RESULTS).locator(f"[data-id='{turned['id']}']")
        expect(card.locator("img")).to_have_js_property("complete", True)
        expect_box(card.locator(".best .line"), turned, cup, 0.7)
        open_photo(page, "turned.jpg", RESULTS)
        assert page.locator(PHOTO).evaluate("(image) => image.naturalWidth") == 600
        expect_box(page.locator("#canvas .best .line"), turned, cup, 0.7)
    finally:
        client.delete(f"/images/{turned['id']}")


def test_a_photo_says_when_with_what_and_where_it_was_taken(visit, library, client):
    """By the camera's clock, wherever the visitor is."""
    says = encode(pixels("says"), "JPEG", exif=of_a_phone())
    own = '{"year": 2024, "lens": "a good one", "note": "<b>"}'
    id = index(client, says, filename="says.jpg", metadata=own)["id"]
    try:
        page = visit(timezone_id="Asia/Tokyo").page
        page.goto(f"/?view=browse&photo={id}")
        rows = page.locator("#facts > div")
        expect(rows.filter(has_text="Camera")).to_have_text("CameraCanon EOS R5")
        shown = rows.all_text_contents()
        taken = next(row for row in shown if row.startswith("Taken"))
        assert re.fullmatch(r"TakenMay 17, 2024, 10:12\sAM \(\+02:00\)", taken)
        assert {"Place48.1372, -11.5755", "lensa good one", "year2024", "note<b>"} <= set(shown)
        assert not [row for row in shown if row.startswith(("latitude", "date_taken", "Lens"))]
    finally:
        client.delete(f"/images/{id}")


def test_a_photo_that_no_browser_shows_is_its_small_picture(page, library, client):
    id = index(client, encode(pixels("tiff"), "TIFF"), filename="scan.tiff")["id"]
    try:
        page.goto(f"/?view=browse&photo={id}")
        expect(page.locator("#viewer-problem")).to_contain_text("can't show the photo itself")
        expect(page.locator("#canvas > img:not([hidden])")).to_have_attribute("alt", "scan.tiff")
        assert page.locator("#canvas > img").first.evaluate("(image) => image.naturalWidth") > 0
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
