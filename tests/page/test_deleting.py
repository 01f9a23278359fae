"""Deleting, and thinking better of it."""

from __future__ import annotations

import httpx
from playwright.sync_api import expect

from tests.support.page.visitor import RESULTS, cards, open_photo
from tests.support.photos.pictures import picture
from tests.support.running.waiting import wait_until
from tests.support.service.http_client import index


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
    open_photo(page, "doomed.png", RESULTS)
    page.locator("#viewer").get_by_role("button", name="Delete").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator(RESULTS).locator(f"[data-id='{id}']")).to_have_count(0)
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
