"""The service as a whole: whether it is well, what it counts, and many requests at once."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.support.photos.pictures import encode, picture
from tests.support.running.waiting import together
from tests.support.service.http_client import PNG, index, problem, search


def test_health_and_stats(client, library):
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})
    stats = client.get("/stats").json()
    assert stats["segmenter"] == "yolov5s"
    assert stats["encoder"]["name"].endswith("models/compact")
    assert len(stats["encoder"]["digest"]) == 64
    assert stats["encoder"]["text"] is False
    assert stats["chunk_index"]["engine"] == "approximate"
    assert stats["store"]["photos"] >= len(library)
    assert stats["store"]["chunks"] >= stats["store"]["photos"]
    assert stats["store"]["original_bytes"] < stats["store"]["used_bytes"]


def test_stats_count_what_comes_and_goes(client):
    def counts() -> dict[str, int]:
        return client.get("/stats").json()["store"]

    data, before = picture("counted"), counts()
    image = index(client, data)
    during = counts()
    assert during["photos"] == before["photos"] + 1
    assert during["chunks"] == before["chunks"] + len(image["chunks"])
    assert during["original_bytes"] == before["original_bytes"] + len(data)
    client.delete(f"/images/{image['id']}")
    after = counts()
    for key in ("photos", "chunks", "original_bytes"):
        assert after[key] == before[key]
    assert after["sequence"] == before["sequence"] + 2
    search(client, data)  # it waits until the chunk index knows
    index_state = client.get("/stats").json()["chunk_index"]
    for key in ("photos", "chunks", "sequence"):
        assert index_state[key] == after[key]


def test_unknown_paths_and_methods(client):
    assert "/nothing" in problem(client.get("/nothing"), 404)
    response = client.put("/images/abc")
    assert "PUT" in problem(response, 405)
    assert set(response.headers["allow"].split(", ")) >= {"GET", "DELETE"}
    assert "GET" in problem(client.get("/index"), 405)


# Many at once


def test_searches_at_the_same_time_answer_as_one_after_the_other(client, photos, library):
    """They share batches; a bad one among them harms no other."""
    queries = {record["id"]: photos / name for name, record in library.items()}

    def by_body(id: str) -> Any:
        return search(client, queries[id].read_bytes(), limit=3)

    def by_id(id: str) -> Any:
        return search(client, id=id, limit=3)

    def bad(id: str) -> Any:
        return problem(client.post("/search", content=b"no image", headers=PNG), 415)

    calls = [lambda ask=ask, id=id: ask(id) for id in queries for ask in (by_body, by_id, bad)]
    at_once = together(calls)
    for id, one, other in zip(queries, at_once[::3], at_once[1::3], strict=True):
        for matches in (one, other):
            assert matches[0]["id"] == id
            assert matches[0]["distance"] < 0.001
        alone = by_body(id)
        assert [match["id"] for match in one] == [match["id"] for match in alone]
        np.testing.assert_allclose(
            [match["distance"] for match in one],
            [match["distance"] for match in alone],
            atol=1e-4,
        )


def flood(client: httpx.Client, path: str, pictures: list[bytes]) -> list[httpx.Response]:
    """Send pictures at the same time; return the answers."""

    def send(data: bytes) -> httpx.Response:
        return client.post(path, content=data, headers=PNG)

    return together([lambda data=data: send(data) for data in pictures])


def flood_with_searches(client: httpx.Client, pictures: list[bytes]) -> list[httpx.Response]:
    """Search for pictures at the same time, behind some that take long to decode.

    A quick machine may still answer each before the queue is full: then it is asked again.
    """
    large = encode(Image.new("RGB", (4400, 4400)))  # a few kilobytes
    for _ in range(5):
        responses = flood(client, "/search", [large] * 8 + pictures)[8:]
        if any(response.status_code == 503 for response in responses):
            break
    return responses


def test_an_overloaded_service_says_so_and_harms_nothing(client):
    """Each answer is what was asked for, or a 503 that says when to try again.

    Photos wait as long as they will be done in time.
    """
    pictures = [picture(f"overload {number}") for number in range(80)]
    ids = [hashlib.sha256(data).hexdigest() for data in pictures]
    assert {one.status_code for one in flood(client, "/index", pictures)} == {201}
    responses = flood_with_searches(client, pictures)
    assert {response.status_code for response in responses} == {200, 503}
    for response in responses:
        if response.status_code == 503:
            assert "queue is full" in problem(response, 503)
            assert int(response.headers["retry-after"]) > 0
    assert client.get("/healthz").status_code == 200
    for id, data in zip(ids, pictures, strict=True):
        assert client.get(f"/images/{id}").content == data
        (match,) = search(client, data, limit=1)
        assert match["id"] == id
        assert match["distance"] < 0.001
        assert client.delete(f"/images/{id}").status_code == 204
