"""No route takes a parameter that it doesn't know, or the same one twice."""

import pytest

from tests.support.ingress.fake_inset import PICTURE, PNG, REQUESTS

CALLS = [(method, path) for method, path, _ in REQUESTS.values()]
CALLS += [(method, "/session") for method in ("GET", "POST", "DELETE")]
CALLS += [("GET", path) for path in ("/livez", "/openapi.json")]
SCALARS = [
    ("POST", "/index", "id=a"),
    ("POST", "/search", "limit=3"),
    ("GET", "/images", "after=a"),
]


def refused(response):
    assert response.status_code == 400, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["title"] == "Bad parameter"
    return response.json()["detail"]


@pytest.mark.parametrize(
    "query", ["frobnicate=1", "frobnicate", "frobnicate=", "frobnicate=1&frobnicate=2"]
)
@pytest.mark.parametrize(("method", "path"), CALLS)
def test_an_unknown_parameter_is_named(client, service, method, path, query):
    response = client.request(method, f"{path}?{query}")
    assert refused(response) == "there is no parameter frobnicate. See /openapi.json."
    assert service.calls == []


def test_every_route_is_among_the_cases(client):
    """A new one is tried as well."""
    paths = client.get("/openapi.json").json()["paths"]
    described = {(method.upper(), path) for path, item in paths.items() for method in item}
    tried = {(method, path.replace("/a", "/{id}")) for method, path in CALLS}
    assert tried == described | {("GET", "/openapi.json")}


def test_the_id_in_the_path_is_no_parameter(client):
    assert "no parameter id" in refused(client.get("/images/a?id=b"))


def test_head_is_refused_as_get_is(client, service):
    assert client.head("/stats?verbose=1").status_code == 400
    assert service.calls == []


def test_a_parameter_without_a_name_is_unknown(client):
    assert "there is no parameter" in refused(client.get("/stats?=1"))


@pytest.mark.parametrize(("method", "path", "once"), SCALARS)
def test_a_parameter_that_is_sent_twice_is_refused(client, service, method, path, once):
    """Else nobody knows which of them counts; the same value twice is not worth an exception."""
    picture = {"content": PICTURE, "headers": PNG} if method == "POST" else {}
    assert client.request(method, f"{path}?{once}", **picture).is_success
    service.calls.clear()
    name = once.partition("=")[0]
    for other in (once, f"{name}=", f"{name}=b"):
        detail = refused(client.request(method, f"{path}?{once}&{other}", **picture))
        assert f"{name} is given 2 times" in detail
    assert service.calls == []


def test_all_that_is_wrong_is_named(client):
    detail = refused(client.post("/search?limt=3&limit=1&limit=2&text=a&txt=b&limit=3"))
    assert detail == (
        "there is no parameter limt; limit is given 3 times; there is no parameter txt. "
        "See /openapi.json."
    )


def test_a_list_may_be_given_several_times(client, service):
    assert client.post("/search?id=a&filter=year=1&filter=year=1&filter=b=2").is_success
    assert service.calls[0][2]["filter"] == ["year=1", "year=1", "b=2"]


def test_the_page_takes_what_its_links_say(client):
    """They are not calls of the API."""
    assert client.get("/?id=a&box=1,2,3,4").status_code == 200
