"""A service and a browser for the tests of the page: what a person does, and what they see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from common.chromium import MISSING, chromium, find_chromium
from conftest import LIMITS, Service
from playwright.sync_api import Browser, Page, expect

from page.visitor import NAMES, Visitor


@pytest.fixture(scope="package", autouse=True)
def _chromium_is_there() -> None:
    if find_chromium() is None:
        pytest.skip(MISSING)


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of these tests' own, which starts empty. With fewer tiles, so that storing is
    quick.
    """
    args = {"limits": LIMITS, "segmenter": {"tiles": [2]}}
    with Service(tmp_path_factory.mktemp("page"), args) as service:
        service.start()
        yield service


@pytest.fixture(scope="package")
def client(service: Service) -> Iterator[httpx.Client]:
    """A client of that service."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


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


@pytest.fixture(scope="package")
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
