"""A service that wants keys: signing in and out, and what a page with a small key offers."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from deployments.ingress.keys import SCOPES, Scope
from tests.support.page.visitor import RESULTS, TOUCHED, drop, names, upload
from tests.support.photos.pictures import picture
from tests.support.running.waiting import wait_until
from tests.support.service.http_client import delete_everything, index
from tests.support.service.services import Locked

STORED = ["lion.png", "tiger.png"]
NAV = {"search": "Search", "read": "Browse", "write": "Add photos"}


@pytest.fixture(scope="module")
def service(locked: Locked, admin: httpx.Client) -> Locked:
    """Return the service that takes keys, in which two pictures are stored."""
    delete_everything(admin)
    for name in STORED:
        index(admin, picture(name), filename=name)
    return locked


def form(page: Page) -> Locator:
    return page.get_by_role("dialog", name="Sign in to Inset")


def sign_in(page: Page, secret: str) -> None:
    """Type a key where the page asks for one."""
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.insert_text(secret)
    page.keyboard.press("Enter")
    expect(form(page)).to_be_hidden()


def open_with(visit: Any, service: Locked, *scopes: Scope, address: str = "/") -> Any:
    """Return a visitor who has opened the page, and has signed in with a new key; and its name."""
    name, secret = service.make_key(*scopes)
    visitor = visit()
    visitor.page.goto(address)
    sign_in(visitor.page, secret)
    return visitor, name, secret


def test_a_key_is_asked_for_once(visit, service):
    name, secret = service.make_key("search", "read")
    visitor = visit()
    page = visitor.page
    page.goto("/?view=browse")
    expect(form(page)).to_contain_text("This service wants a key.")
    expect(form(page)).to_contain_text("Whoever runs the service makes keys")
    sign_in(page, secret)
    # It goes on where it was.
    expect(page.locator("#browse-grid .card")).to_have_count(2)
    expect(page.locator("#state-text")).to_contain_text("Ready")
    expect(page.locator("#who")).to_contain_text(f"Key: {name}")
    assert "view=browse" in page.url
    page.goto("/")
    expect(page.locator("#start-grid .card")).to_have_count(2)
    expect(form(page)).to_be_hidden()
    assert [request for request in visitor.requests if "POST /session" in request] == [
        "POST /session"
    ]


def test_a_key_is_kept_nowhere_but_in_a_cookie_that_scripts_cannot_read(visit, service):
    visitor, _, secret = open_with(visit, service, "search", "read")
    page = visitor.page
    expect(page.locator("#start-grid .card")).to_have_count(2)
    kept = page.evaluate(
        """async () => JSON.stringify([
          {...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state,
          await indexedDB.databases(), await caches.keys(), document.documentElement.outerHTML,
          [...document.querySelectorAll("input")].map((input) => input.value),
          performance.getEntries().map((entry) => entry.name),
        ])"""
    )
    assert "Key: " in kept
    assert secret not in kept
    assert not any(secret in request for request in visitor.requests)
    (cookie,) = visitor.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")


def test_a_wrong_key_is_refused_with_a_sentence(page, service):
    page.goto("/")
    field = page.get_by_label("Key", exact=True)
    for wrong, sentence in [
        ("inset_wrong", "misspelt, or it was revoked"),
        ("inset_ключ", "no letters beyond ASCII"),
    ]:
        field.fill(wrong)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#signin-problem")).to_contain_text(sentence)
        expect(field).to_be_focused()
        expect(field).to_have_attribute("aria-invalid", "true")
        # What is typed next replaces it.
        page.keyboard.insert_text("x")
        expect(field).to_have_value("x")
        expect(page.locator("#signin-problem")).to_be_hidden()
    # There is no way around it.
    for _ in range(3):
        page.keyboard.press("Escape")
    expect(form(page)).to_be_visible()


def test_an_answer_that_was_asked_for_before_the_key_does_not_count(visit, service):
    _, secret = service.make_key("search", "read")
    page = visit().page
    page.goto("/?view=browse")
    expect(form(page)).to_be_visible()
    held = []
    page.route("**/session", lambda route: held.append((route, route.fetch())), times=1)
    # Somebody comes back to the page, so it asks again, unless it is asking already.
    comes_back = "document.dispatchEvent(new Event('visibilitychange'))"
    wait_until(lambda: (page.evaluate(comes_back), held)[1], "the page asks")
    page.get_by_label("Key").fill(secret)
    with page.expect_response(lambda response: response.request.method == "POST"):
        page.get_by_role("button", name="Sign in").click()
    ((route, early),) = held
    assert early.status == 401
    route.fulfill(response=early)
    expect(form(page)).to_be_hidden()
    expect(page.locator("#browse-grid .card")).to_have_count(2)


def test_who_signs_out_leaves_nothing_behind(visit, service, admin):
    visitor, _, _ = open_with(visit, service, "admin", address="/?view=browse")
    page = visitor.page
    doomed = index(admin, picture("doomed"), filename="doomed.png")["id"]
    page.reload()
    page.get_by_role("button", name="Delete doomed.png").click()
    page.get_by_role("link", name="Search", exact=True).click()
    page.get_by_role("button", name="Sign out").click()
    expect(form(page)).to_contain_text("This service wants a key.")
    assert visitor.context.cookies() == []
    assert page.locator(".card").count() == 0
    assert admin.get(f"/images/{doomed}/record").status_code == 404
    page.go_back()
    expect(page).to_have_url(re.compile("view=browse"))
    expect(form(page)).to_be_visible()
    assert page.locator(".card").count() == 0


@pytest.mark.parametrize(
    ("scopes", "view"),
    [
        (("search", "read"), "search"),
        (("search",), "search"),
        (("read",), "browse"),
        (("write",), "add"),
        (("read", "write"), "browse"),
        (("admin",), "search"),
    ],
)
def test_the_page_offers_what_the_key_allows(visit, service, scopes, view):
    visitor, name, _ = open_with(visit, service, *scopes)
    page = visitor.page
    expect(page.locator(f"#{view}")).to_be_visible()
    expect(page.locator("#refusal")).to_be_hidden()
    allowed = SCOPES if "admin" in scopes else scopes
    links = page.get_by_role("navigation", name="Views").get_by_role("link")
    expect(links).to_have_text([NAV[scope] for scope in NAV if scope in allowed])
    deeds = {"search": "/?id=a", "read": "/?view=browse", "write": "/?view=add"}
    for scope, address in deeds.items():
        page.goto(address)
        expect(page.locator("main > .view:visible")).to_have_count(1)
        if scope in allowed:
            expect(page.locator("#refusal")).to_be_hidden()
        else:
            expect(page.locator("#refusal")).to_contain_text(f"The key “{name}” may not ")
            expect(page.locator(f"#{view}")).to_be_visible()
    expect(page.locator("#state-text")).to_contain_text("Ready")
    # Nothing was asked for that would have been refused.
    refused = {
        "search": r"POST /search",
        "read": r"GET /images",
        "write": r"POST /index",
        "admin": r"DELETE /images",
    }
    for scope, pattern in refused.items():
        if scope not in allowed:
            assert [path for path in visitor.requests if re.match(pattern, path)] == []


def test_a_key_to_look_makes_a_page_to_look_at(visit, service, tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "one.png").write_bytes(picture("one to drop"))
    visitor, name, _ = open_with(visit, service, "search", "read", address="/?view=browse")
    page = visitor.page
    expect(page.locator("#browse-grid .card")).to_have_count(2)
    assert page.get_by_role("button", name="Delete").count() == 0
    drop(page, "#browse", tmp_path / "album")
    expect(page.locator("#refusal")).to_have_text(f"The key “{name}” may not add photos.")
    page.get_by_role("link", name="lion.png").press("Delete")
    expect(page.locator("#toast")).to_be_hidden()
    page.get_by_role("link", name="lion.png").click()
    expect(page.get_by_role("button", name="Search with the whole photo")).to_be_visible()
    expect(page.locator("#photo-delete")).to_be_hidden()
    expect(page.locator("#photo-download")).to_be_visible()
    assert [path for path in visitor.requests if path.startswith(("POST /index", "DELETE"))] == []


def test_a_key_without_searches_shows_photos_without_marking(visit, service):
    visitor, _, _ = open_with(visit, service, "read", address="/")
    page = visitor.page
    page.get_by_role("link", name="lion.png").click()
    expect(page.locator("#viewer-name")).to_have_text("lion.png")
    for id in ("search-part", "search-whole", "photo-delete", "tool-mark"):
        expect(page.locator(f"#{id}")).to_be_hidden()
    expect(page.locator("#stage")).to_have_attribute("data-tool", "move")


def test_results_without_photos_are_names_and_similarities(visit, service, admin):
    visitor, name, _ = open_with(visit, service, "search")
    page = visitor.page
    expect(page.locator("#start")).to_be_hidden()
    page.set_input_files("#search-file", upload(picture("a little owl"), "owl.png", "image/png"))
    expect(page.locator("#results-blind")).to_contain_text(f"The key “{name}” may not see photos.")
    cards = page.locator(RESULTS).locator(".card")
    expect(cards).to_have_count(2)
    assert sorted(names(page.locator(RESULTS))) == STORED
    for card in cards.all():
        expect(card.locator(".similarity, .noticed")).to_have_text(re.compile(r"similarity \d|\w"))
    assert page.locator(RESULTS).locator("a, img").count() == 0
    # A link with an open photo says so, too.
    page.goto("/?photo=a")
    expect(page.locator("#refusal")).to_have_text(f"The key “{name}” may not see photos.")
    expect(page.locator("#viewer")).to_be_hidden()
    assert "photo=" not in page.url
    # A stored photo can be searched with, unseen.
    id = admin.get("/images").json()["images"][0]["id"]
    page.goto(f"/?id={id}")
    expect(page.locator("#query-caption")).to_have_text(f"photo {id[:12]}")
    expect(cards.first).to_be_visible()
    assert [path for path in visitor.requests if "/images" in path] == []


def test_a_key_to_add_shows_only_that_they_are_stored(visit, service, admin):
    visitor, _, _ = open_with(visit, service, "write")
    page = visitor.page
    page.set_input_files("#add-files", upload(picture("a gift"), "gift.png", "image/png"))
    expect(page.locator("#add-numbers")).to_have_text("1 stored")
    expect(page.locator("#add-grid .card")).to_have_text(re.compile(r"gift\.png\s*96 . 64"))
    assert page.locator("#add-grid").locator("a, img").count() == 0
    expect(page.locator("#add-browse")).to_be_hidden()
    id = page.locator("#add-grid .card").get_attribute("data-id")
    assert admin.delete(f"/images/{id}").status_code == 204


def test_a_refusal_in_spite_of_all_is_shown_as_its_sentence(visit, service):
    name, secret = service.make_key("search")
    page = visit().page
    claim = {"name": name, "scopes": list(SCOPES), "keys": True}
    page.goto("/?view=browse")
    expect(form(page)).to_be_visible()
    sent = []

    def answer(route):
        sent.append(route.request.method)
        # The page may be asking already. Until it has sent the key, it gets the true answer: else
        # it would list the photos without a key.
        if route.request.method == "GET" and "POST" in sent:
            route.fulfill(json=claim)
        else:
            route.continue_()

    page.route("**/session", answer)
    sign_in(page, secret)
    expect(page.locator("#browse-problem")).to_contain_text(f"The key {name} may not do this")


def test_a_key_that_is_revoked_is_asked_for_again(visit, service):
    visitor, name, secret = open_with(visit, service, "search", "read", address="/?view=browse")
    page = visitor.page
    page.get_by_role("link", name="lion.png").click()
    expect(page.locator("#viewer-name")).to_have_text("lion.png")
    service.revoke_key(name, secret)
    page.get_by_role("button", name="Search with the whole photo").click()
    expect(form(page)).to_contain_text(f"The key “{name}” counts no more")
    other, another = service.make_key("search", "read")
    sign_in(page, another)
    # The search is made now.
    expect(page.locator(RESULTS).locator(".card").first).to_be_visible()
    expect(page.locator("#search-problem")).to_be_hidden()
    expect(page.locator("#who")).to_contain_text(other)


def test_storing_waits_for_another_key_and_goes_on(visit, service, admin):
    visitor, name, secret = open_with(visit, service, "write")
    page = visitor.page
    many = [upload(picture(f"waiting {n}"), f"{n}.png", "image/png") for n in range(40)]
    service.revoke_key(name, secret)
    page.set_input_files("#add-files", many)
    expect(form(page)).to_contain_text("storing goes on when you have signed in")
    expect(page.locator("#add-pace")).to_have_text("Waiting for a key.")
    _, another = service.make_key("write")
    sign_in(page, another)
    expect(page.locator("#add-title")).to_have_text("Done: 40 of 40 photos")
    expect(page.locator("#add-numbers")).to_have_text("40 stored")
    delete_all_but(admin, STORED)


def test_storing_ends_with_a_sentence_if_the_next_key_does_not_allow_it(visit, service):
    visitor, name, secret = open_with(visit, service, "write")
    page = visitor.page
    service.revoke_key(name, secret)
    page.set_input_files("#add-files", upload(picture("too late"), "late.png", "image/png"))
    expect(form(page)).to_be_visible()
    other, another = service.make_key("read")
    sign_in(page, another)
    expect(page.locator("#refusal")).to_have_text(
        f"The key “{other}” may not add photos. 0 of 1 photo were done."
    )
    expect(page.locator("#browse-grid .card")).to_have_count(2)


def delete_all_but(client: httpx.Client, kept: list[str]) -> None:
    for record in client.get("/images", params={"limit": 1000}).json()["images"]:
        if record["filename"] not in kept:
            client.delete(f"/images/{record['id']}").raise_for_status()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out_who_has_a_key(visit, service, scheme):
    """As far as axe-core can tell; and on a small screen nothing is cut off."""
    from axe_playwright_python.sync_playwright import Axe

    _, secret = service.make_key("search")
    # The checker is a script that our policy doesn't let in.
    page = visit(color_scheme=scheme, bypass_csp=True, viewport=TOUCHED).page
    page.goto("/?view=browse")
    field = page.get_by_label("Key", exact=True)
    expect(field).to_be_focused()

    def check(what: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= TOUCHED["width"], what
        results = Axe().run(page)
        assert results.violations_count == 0, f"{what}: {results.generate_report()}"

    check("the form")
    # By keyboard: from the field to the button, and nowhere behind the form.
    field.fill("inset_wrong")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Sign in")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#signin-problem")).to_be_visible()
    expect(field).to_be_focused()
    check("the form with a problem")
    field.fill("")
    sign_in(page, secret)
    expect(page.locator("#refusal")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "main"
    check("a refusal")
    page.set_input_files("#search-file", upload(picture("seen"), "seen.png", "image/png"))
    expect(page.locator("#results-blind")).to_be_visible()
    check("results without photos")
