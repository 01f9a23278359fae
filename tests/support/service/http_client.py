"""Requests to the running service that must work, and problems that must be one."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tests.support.running.waiting import wait_until

PNG = {"Content-Type": "image/png"}


def index(client: httpx.Client, data: bytes, **parameters: Any) -> dict[str, Any]:
    """Index one picture, which must work; returns its record and status."""
    response = client.post("/index", content=data, params=parameters, headers=PNG)
    assert response.status_code == 201, response.text
    (image,) = response.json()["images"]
    return image


def search(client: httpx.Client, data: bytes | None = None, **parameters: Any) -> list[dict]:
    """Search, which must work; returns the matches."""
    headers = PNG if data is not None else {}
    response = client.post("/search", content=data, params=parameters, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["matches"]


def problem(response: httpx.Response, status: int) -> str:
    """Check that an answer is a problem of this status; returns its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert set(content) == {"type", "title", "status", "detail"}
    assert content["status"] == status
    assert content["title"]
    assert content["detail"]
    return content["detail"]


def wait_until_nothing_is_stored(client: httpx.Client) -> None:
    """Return when nothing has been stored for a second: what was sent is on its way for a while."""

    def at_rest() -> bool:
        before = client.get("/stats").json()["store"]["sequence"]
        time.sleep(1)
        return client.get("/stats").json()["store"]["sequence"] == before

    wait_until(at_rest, "nothing is stored any more")


def delete_everything(client: httpx.Client) -> None:
    """Delete all photos that are stored, also those of other tests."""
    while stored := client.get("/images", params={"limit": 1000}).json()["images"]:
        for record in stored:
            client.delete(f"/images/{record['id']}").raise_for_status()
