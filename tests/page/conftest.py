"""A browser, and photos for those who look at the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from common.chromium import MISSING, chromium, find_chromium
from playwright.sync_api import Browser, Page, expect

from tests.support.page.visitor import NAMES, Visitor
from tests.support.service.http_client import delete_everything


@pytest.fixture(scope="package", autouse=True)
def _chromium_is_there() -> None:
    if find_chromium() is None:
        pytest.skip(MISSING)


@pytest.fixture(scope="package")
def browser(slow: None) -> Iterator[Browser]:
    """Start Chromium."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(service, browser) -> Iterator[Any]:
    """Return a function that makes visitors; none of them may have complained at the end."""
    visitors = []

    def visit(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, service.url, **options))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.leave()
    assert [complaint for visitor in visitors for complaint in visitor.complaints] == []


@pytest.fixture
def page(visit) -> Page:
    """Return the page of one visitor."""
    return visit().page


@pytest.fixture(scope="package")
def library(service, browser, client, photos) -> dict[str, dict[str, Any]]:
    """Return the records of three photos by name, which were stored through the page.

    They are all there is, and each test leaves it so.
    """
    delete_everything(client)
    visitor = Visitor(browser, service.url)
    page = visitor.page
    page.goto("/?view=add")
    page.set_input_files("#add-files", [photos / name for name in NAMES])
    expect(page.locator("#add-title")).to_have_text("Done: 3 of 3 photos")
    expect(page.locator("#add-numbers")).to_have_text("3 stored")
    expect(page.locator("#state-text")).to_contain_text("Ready · 3 photos · ")
    assert visitor.complaints == []
    visitor.leave()
    records = client.get("/images").json()["images"]
    assert sorted(record["filename"] for record in records) == sorted(NAMES)
    return {record["filename"]: record for record in records}
