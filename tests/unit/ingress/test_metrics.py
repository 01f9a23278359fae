"""What is counted of requests, photos and searches."""

import asyncio
from collections import Counter

import pytest

from deployments.ingress import metrics
from tests.support.ingress.fake_inset import PICTURE, PNG, REQUESTS, STATUSES


class Seen:
    """Stands where a metric of Ray's does, and keeps what was noted."""

    def __init__(self, name, *, description, tag_keys=(), boundaries=()):
        self.name, self.tag_keys = name, set(tag_keys)
        self.counted, self.values = Counter(), []
        self.made[name] = self

    def inc(self, value=1, tags=None):
        assert set(tags or {}) == self.tag_keys
        self.counted[tuple((tags or {}).values())] += value

    def observe(self, value, tags=None):
        assert set(tags or {}) == self.tag_keys
        self.values.append(value)

    set = observe


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """The metrics by their names. It comes before `client`, whose app makes some of them."""
    monkeypatch.setattr(Seen, "made", {}, raising=False)
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, kind, Seen)
    return Seen.made


@pytest.mark.parametrize("operation", REQUESTS)
def test_a_request_is_counted_by_its_route(seen, client, operation):
    method, path, options = REQUESTS[operation]
    client.request(method, path, **options)
    route = path.replace("/a", "/{id}")
    status = str(STATUSES.get(operation, 200))
    assert seen["inset_requests_total"].counted == {(route, method, status): 1}
    (seconds,) = seen["inset_request_seconds"].values
    assert 0 < seconds < 60


def test_what_is_no_route_of_ours_makes_no_row_of_its_own(seen, client):
    for number in range(5):
        client.get(f"/{number}")
        client.request(f"ODD{number}", "/stats")
    assert seen["inset_requests_total"].counted == {
        ("other", "GET", "404"): 5,
        ("/stats", "other", "405"): 5,
    }


def test_what_the_door_refuses_is_counted_too(seen, client):
    client.get("/images/a", headers={"host": "evil.example"})
    assert seen["inset_requests_total"].counted == {("/images/{id}", "GET", "421"): 1}


def test_an_unexpected_error_is_counted(seen, client, service):
    service.error = KeyError("secret")
    client.post("/search", content=PICTURE, headers=PNG)
    assert seen["inset_requests_total"].counted == {("/search", "POST", "500"): 1}


def test_who_hangs_up_is_counted(seen):
    async def app(scope, receive, send):
        raise asyncio.CancelledError

    measured = metrics.Measured(app, [])
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(measured({"type": "http", "method": "GET", "path": "/"}, None, None))
    assert seen["inset_requests_total"].counted == {("other", "GET", "hung up"): 1}


class Answer:
    def __init__(self, found):
        self.found = found


def test_photos_and_searches_are_counted_by_what_came_of_them(seen):
    counts = metrics.Counts()
    counts.photo("created", 3)
    counts.photo("failed", 2)
    for found in (True, None, False, True):
        counts.search(Answer(found))
    assert seen["inset_photos_total"].counted == {("created",): 1, ("failed",): 1}
    assert seen["inset_photos_in_work"].values == [3, 2]
    assert seen["inset_searches_total"].counted == {("yes",): 2, ("unknown",): 1, ("no",): 1}
