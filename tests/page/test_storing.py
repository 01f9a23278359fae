"""Photos and folders, from the desktop into the store."""

from __future__ import annotations

import re
import time

import httpx
from playwright.sync_api import expect

from tests.support.http_client import PNG, index
from tests.support.pictures import picture
from tests.support.visitor import NAMES, upload
from tests.support.waiting import wait_until


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


def wait_until_nothing_is_stored(client: httpx.Client) -> None:
    """Return when nothing has been stored for a second: what was sent is on its way for a while."""
    index(client, picture("the last of the queue"))

    def at_rest() -> bool:
        before = client.get("/stats").json()["store"]["sequence"]
        time.sleep(1)
        return client.get("/stats").json()["store"]["sequence"] == before

    wait_until(at_rest, "nothing is stored any more")


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
    wait_until_nothing_is_stored(client)
    stored = client.get("/images?limit=1000").json()["images"]
    for record in stored:
        if record["filename"] not in NAMES:
            client.delete(f"/images/{record['id']}")
    assert before + 60 > len(stored)
