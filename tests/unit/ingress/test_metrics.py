"""What is counted of requests, photos and searches."""

import asyncio

import pytest

from deployments.errors import NotAnImage, Unavailable
from deployments.ingress import metrics
from deployments.ingress.progress import Progress
from tests.support.ingress.fake_inset import PICTURE, PNG, REQUESTS, STATUSES
from tests.support.metrics import watch


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """The metrics by their names. It comes before `client`, whose app makes some of them."""
    yield watch(monkeypatch)
    metrics._problems.cache_clear()


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
    counts.photo("created")
    counts.photo("failed")
    for found in (True, None, False, True):
        counts.search(Answer(found))
    assert seen["inset_photos_total"].counted == {("created",): 1, ("failed",): 1}
    assert seen["inset_searches_total"].counted == {("yes",): 2, ("unknown",): 1, ("no",): 1}


def test_photos_in_work_are_measured_whether_any_gets_done_or_not(seen):
    now = 100.0
    progress = Progress(lambda: now)
    gauges = metrics.measure_work(progress)
    with progress.working(), progress.working():
        now = 107.0
        gauges.refresh()
    gauges.refresh()
    assert seen["inset_photos_in_work"].values == [2, 0]
    assert seen["inset_oldest_photo_seconds"].values == [7, 0]


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (("GET", "/stats", {}), None),
        (("GET", "/nothing", {}), ("Not Found", "404")),
        (("PUT", "/stats", {}), ("Method Not Allowed", "405")),
        (("GET", "/images?limit=x", {}), ("Bad parameter", "400")),
        (
            ("GET", "/", {"headers": {"host": "evil.example"}}),
            ("Not a name of this service", "421"),
        ),
    ],
)
def test_a_problem_is_counted_once_by_its_kind(seen, client, request_, problem):
    method, path, options = request_
    client.request(method, path, **options)
    counted = seen["inset_problems_total"].counted if "inset_problems_total" in seen else {}
    assert counted == ({} if problem is None else {problem: 1})


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (Unavailable("Try again."), ("Temporarily unavailable", "503")),
        (KeyError("secret"), ("Internal error", "500")),
    ],
)
def test_an_error_of_the_service_is_counted_as_the_problem_it_becomes(
    seen, client, service, error, problem
):
    service.error = error
    client.post("/search", content=PICTURE, headers=PNG)
    assert seen["inset_problems_total"].counted == {problem: 1}


def test_each_bad_photo_of_several_is_counted(seen, client, service):
    service.bad = {b"bad": NotAnImage("It is none.")}
    files = [("file", ("a.png", data, "image/png")) for data in (b"bad", b"good", b"bad")]
    answer = client.post("/index", files=files)
    assert answer.status_code == 201
    assert seen["inset_problems_total"].counted == {("Not an image we read", "415"): 2}
