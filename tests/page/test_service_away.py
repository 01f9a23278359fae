"""When the service is away."""

from __future__ import annotations

from playwright.sync_api import Route, expect

from tests.support.page.visitor import cards, drag, expect_box, the_cup, upload
from tests.support.photos.pictures import encode, pixels


def refuse(route: Route) -> None:
    """As where nothing listens: the service was killed."""
    route.abort("connectionrefused")


def not_yet(route: Route) -> None:
    """As Serve's proxy answers until the boxes have started."""
    route.fulfill(status=404, content_type="text/plain", body="Path '/' not found.")


def test_the_page_goes_on_by_itself_when_the_service_is_back(visit, library, client):
    record, cup = the_cup(library)
    visitor = visit()
    page, storing = visitor.page, visitor.open_page()
    page.goto(f"/?id={record['id']}")
    expect(cards(page)).to_have_count(3)
    storing.goto("/?view=add")
    visitor.context.route("**/*", refuse)

    page.get_by_role("link", name="chelsea.png").click()
    expect(page.locator("#viewer-problem")).to_contain_text("can't be reached")
    page.keyboard.press("Escape")
    expect(page.locator("#trouble")).to_contain_text("This page continues when the service is back")
    drag(page, record, cup, "#query-stage")
    expect(page.locator("#search-problem")).to_contain_text("can't be reached")
    expect(page.locator("#state")).to_have_attribute("data-state", "down")
    storing.set_input_files("#add-files", upload(encode(pixels("patient")), "patient.png"))
    expect(storing.locator("#add-pace")).to_have_text("Waiting for the service.")

    visitor.context.route("**/*", not_yet)
    expect(page.locator("#state-text")).to_have_text("Not ready")
    visitor.context.unroute_all()
    expect(page.locator("#state")).to_have_attribute("data-state", "ready", timeout=30_000)
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#search-problem")).to_be_hidden()
    expect(cards(page).first.locator(".name")).to_have_text("coffee.png")
    expect_box(cards(page).first.locator(".best .line"), record, cup, 0.9)
    expect(storing.locator("#add-numbers")).to_have_text("1 stored", timeout=30_000)
    (id,) = [card.get_attribute("data-id") for card in storing.locator("#add-grid .card").all()]
    assert client.delete(f"/images/{id}").status_code == 204
