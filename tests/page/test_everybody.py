"""Hostile names, small screens, and everybody."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

from tests.support.page.verified import (
    answering,
    found_nowhere,
    looked_nowhere,
    too_plain,
    verify_cup,
)
from tests.support.page.visitor import NAMES, RESULTS, TOUCHED, the_cup, upload
from tests.support.photos.pictures import picture
from tests.support.service.http_client import index

FIRST_CARD = f":is({RESULTS}) .card:visible"

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
    answering(page, verify_cup(cup))
    for address, sight in [
        ("/", "#start-grid .card"),
        ("/?view=browse", "#browse-grid .card"),
        ("/?view=add", "#add-drop"),
        (search, FIRST_CARD),
        (f"{search}&photo={record['id']}", "#canvas .best"),
    ]:
        page.goto(address)
        expect(page.locator(sight).first).to_be_visible()
        expect(page.locator("#state-text")).to_contain_text("Ready")
        for selector in ("document.documentElement", "document.querySelector('#viewer')"):
            assert page.evaluate(f"{selector}.scrollWidth") <= TOUCHED["width"], address
    expect(page.locator("#compare")).to_be_visible()
    # Two fingers zoom; one chooses the cup.
    pinch(page, "#stage")
    assert page.locator("#canvas").bounding_box()["width"] > 2 * TOUCHED["width"]
    assert page.locator("#canvas .marked .line").count() == 0
    page.get_by_role("button", name="Fit").tap()
    seen = page.locator("#canvas > img:not([hidden])").bounding_box()
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
    found = verify_cup(cup)
    for make, address, sight in [
        (found, "/", "#start-grid .card"),
        (found, search, FIRST_CARD),
        (found, f"{search}&photo={record['id']}", "#compare"),
        (found_nowhere, search, FIRST_CARD),
        (too_plain, search, FIRST_CARD),
        (looked_nowhere, f"{search}&photo={record['id']}", "#canvas .best"),
        (found, "/?view=browse", "#browse-grid .card"),
        (found, "/?view=add", "#add-drop"),
    ]:
        answering(page, make)
        page.goto(address)
        expect(page.locator(sight).first).to_be_visible()
        expect(page.locator("#state-text")).to_contain_text("Ready")
        if make is found and address == search:
            page.get_by_role("button", name="Looks alike").click()
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
