"""Photos and folders, from the desktop into the store."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.support.page.visitor import NAMES, drop, upload
from tests.support.photos.pictures import picture
from tests.support.running.waiting import wait_until
from tests.support.service.http_client import PNG, index, wait_until_nothing_is_stored


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
    for name in ("notes.txt", "more.TXT", "film.mp4", "README"):
        (tmp_path / "album" / name).write_text("no photo")
    page.goto("/?view=add")
    page.set_input_files("#add-folder", tmp_path)
    expect(page.locator("#add-numbers")).to_have_text(
        re.compile(r"1 stored · 4 other files left out \(2 \.txt, 1 .*, 1 .*\)")
    )
    expect(page.locator("#add-numbers")).to_contain_text("1 .mp4")
    expect(page.locator("#add-numbers")).to_contain_text("1 without a suffix")
    expect(page.locator("#add-grid .name")).to_have_text("leaf.png")
    record = page.locator("#add-grid .card").get_attribute("data-id")
    assert client.delete(f"/images/{record}").status_code == 204


def test_a_format_that_is_not_read_is_sent_and_refused_with_a_sentence(page, library, tmp_path):
    """Not skipped in silence: the service knows best what it reads."""
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1")
    page.goto("/?view=add")
    drop(page, "#add-drop", tmp_path / "album")
    expect(page.locator("#add-numbers")).to_have_text("1 failed")
    expect(page.locator("#add-failures-list li")).to_contain_text("IMG_1.HEIC")
    assert len(page.locator("#add-failures-list li").text_content()) > len("IMG_1.HEIC ") + 20


def test_a_picker_offers_what_browsers_do_not_know(page, library):
    page.goto("/")
    for picker in ("#search-file", "#add-files"):
        kinds = page.locator(picker).get_attribute("accept").split(",")
        assert kinds[0] == "image/*"
        assert {".heic", ".cr3", ".jxl"} < set(kinds)


def test_a_search_with_a_folder_without_photos_says_so(page, library, tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "notes.txt").write_text("no photo")
    page.goto("/")
    drop(page, "#search-drop", tmp_path / "album")
    expect(page.locator("#search-problem")).to_have_text(
        "There is no photo in there, but 1 other file (1 .txt)."
    )


def test_a_folder_is_dropped(page, library, client, tmp_path):
    (tmp_path / "album" / "deeper").mkdir(parents=True)
    (tmp_path / "album" / "one.png").write_bytes(picture("one of a dropped folder"))
    (tmp_path / "album" / "deeper" / "two.png").write_bytes(picture("two of a dropped folder"))
    (tmp_path / "album" / "notes.txt").write_text("no photo")
    page.goto("/?view=add")
    drop(page, "#add-drop", tmp_path / "album")
    expect(page.locator("#add-numbers")).to_have_text("2 stored · 1 other file left out (1 .txt)")
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
    index(client, picture("the last of the queue"))
    wait_until_nothing_is_stored(client)
    stored = client.get("/images?limit=1000").json()["images"]
    for record in stored:
        if record["filename"] not in NAMES:
            client.delete(f"/images/{record['id']}")
    assert before + 60 > len(stored)


# In the place of `fetch`: it remembers which files are sent to be stored, and answers what it is
# told to say.
SLOW_ANSWERS = """
  const fetched = window.fetch;
  window.sent = [];
  window.fetch = (path, options) => {
    if (!path.startsWith("index")) return fetched(path, options);
    window.sent.push([options.headers.Accept, options.body.getAll("file").map(({name}) => name)]);
    const lines = new ReadableStream({
      start(controller) {
        const encoder = new TextEncoder();
        window.say = (text) => controller.enqueue(encoder.encode(text));
        window.hang_up = () => controller.error(new TypeError("network error"));
        window.finish = () => controller.close();
      },
    });
    return Promise.resolve(new Response(lines));
  };
"""


def line(part: int, status: str = "exists", **more: Any) -> str:
    """What is answered about a photo."""
    return json.dumps({"part": part, "id": f"id-{part}", "sequence": 1, "status": status} | more)


def some(count: int) -> list[dict[str, Any]]:
    return [upload(picture(f"some {n}"), f"{n}.png", "image/png") for n in range(count)]


def test_each_line_of_the_answer_counts_as_it_comes(page, library):
    page.add_init_script(SLOW_ANSWERS)
    page.goto("/?view=add")
    page.set_input_files("#add-files", some(4))
    expect(page.locator("#add-title")).to_have_text("Storing: 0 of 4 photos")
    accepted, names = page.evaluate("sent[0]")
    assert (accepted, names) == ("application/x-ndjson", [f"{n}.png" for n in range(4)])
    # Lines come in any order, and in any pieces.
    first = line(2)
    page.evaluate("say", first[:10])
    page.evaluate("say", first[10:] + "\n")
    expect(page.locator("#add-title")).to_have_text("Storing: 1 of 4 photos")
    error = {"status": 422, "title": "Broken", "detail": "It is broken."}
    page.evaluate("say", line(0, "failed", error=error) + "\n" + line(3) + "\n")
    expect(page.locator("#add-numbers")).to_have_text("2 already stored · 1 failed")
    expect(page.locator("#add-failures-list li")).to_have_text("0.png It is broken.")
    expect(page.locator("#add-pace")).to_have_text(re.compile(r"photos/s · \d+ s left"))
    page.evaluate("say", line(1) + "\n")
    page.evaluate("finish()")
    expect(page.locator("#add-title")).to_have_text("Done: 4 of 4 photos")


@pytest.mark.parametrize("broken", ["hang_up()", "finish()"])
def test_only_files_without_a_line_are_sent_again(page, library, broken):
    """When the answer breaks off, or when the service was too busy for some of them."""
    page.add_init_script(SLOW_ANSWERS)
    page.goto("/?view=add")
    page.set_input_files("#add-files", some(4))
    expect(page.locator("#add-title")).to_have_text("Storing: 0 of 4 photos")
    busy = {"status": 503, "title": "Busy", "detail": "The queue is full."}
    page.evaluate("say", line(1) + "\n" + line(2, "failed", error=busy) + "\n" + line(3)[:20])
    expect(page.locator("#add-title")).to_have_text("Storing: 1 of 4 photos")
    page.evaluate(broken)
    wait_until(lambda: page.evaluate("sent.length") == 2, "the others are sent again")
    assert page.evaluate("sent[1][1]") == ["0.png", "2.png", "3.png"]
    page.evaluate("say", "".join(line(part) + "\n" for part in range(3)))
    page.evaluate("finish()")
    expect(page.locator("#add-numbers")).to_have_text("4 already stored")


def test_what_is_too_much_for_one_call_is_sent_with_several(page, library):
    """The service says so by 413; and where it is slow, how many are too many."""
    groups = []

    def answer(route: Route) -> None:
        names = re.findall(r'filename="(.*?)"', route.request.post_data_buffer.decode("latin-1"))
        groups.append(len(names))
        if len(names) > 3:
            detail = "16 photos would take about 80 s: send at most 3 at once."
            content = {"type": "about:blank", "title": "Too large", "status": 413, "detail": detail}
            type = "application/problem+json"
            route.fulfill(status=413, content_type=type, body=json.dumps(content))
        else:
            lines = "".join(line(part) + "\n" for part in range(len(names)))
            route.fulfill(content_type="application/x-ndjson", body=lines)

    page.route("**/index", answer)
    page.goto("/?view=add")
    page.set_input_files("#add-files", some(20))
    expect(page.locator("#add-numbers")).to_have_text("20 already stored")
    assert max(groups) == 16
    assert sum(group for group in groups if group <= 3) == 20
    assert len(groups) < 20
