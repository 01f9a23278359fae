"""What /openapi.json says: every operation, and all that may be answered."""

from http import HTTPStatus

import pytest
from starlette.testclient import TestClient

from deployments.ingress.app import build_app
from tests.support.ingress.fake_inset import REQUESTS, STATUSES, FakeInset

# What the docstrings of `Inset` say each of them raises.
RAISES = {
    "index": {400, 408, 409, 413, 415, 422, 503, 507},
    "search": {400, 404, 408, 413, 415, 422, 503},
    "list": {400, 503},
    "get": {400, 404, 416, 500, 503},
    "thumbnail": {400, 404, 413, 415, 422, 500, 503},
    "record": {400, 404, 500, 503},
    "delete": {400, 404, 503, 507},
    "check": {400, 503},
    "ready": {400, 503},
    "stats": {400, 503},
}
# What the door says before any of them, and what may always happen.
ALWAYS = {400, 403, 421, 500, 503}
# What is answered besides problems, and the usual success.
ALSO = {"index": {200}, "get": {206, 304}, "thumbnail": {304}}


# What asks nothing of the service: what a client does with its session, and the sign of life.
OTHERS = [("/session", method) for method in ("get", "post", "delete")] + [("/livez", "get")]


@pytest.fixture(scope="module")
def description():
    client = TestClient(build_app(FakeInset()), base_url="http://localhost")
    first = client.get("/openapi.json").json()
    assert client.get("/openapi.json").json() == first
    return first


def described(description, operation):
    method, path, _ = REQUESTS[operation]
    path = path.replace("/images/a", "/images/{id}")
    return description["paths"][path][method.lower()]


def test_everything_is_described(description):
    operations = [(path, method) for path, item in description["paths"].items() for method in item]
    assert len(operations) == len(REQUESTS) + len(OTHERS)
    for path, method in OTHERS:
        assert description["paths"][path][method]["description"]
    for operation in REQUESTS:
        assert described(description, operation)["description"]


@pytest.mark.parametrize("operation", REQUESTS)
def test_every_status_is_described(description, operation):
    responses = described(description, operation)["responses"]
    no_key = set() if operation in ("check", "ready") else {401}
    good = {STATUSES.get(operation, 200)} | ALSO.get(operation, set())
    assert {int(status) for status in responses} == good | RAISES[operation] | no_key | ALWAYS
    for status in set(responses) - {str(status) for status in good}:
        assert responses[status]["description"] == HTTPStatus(int(status)).phrase
        (schema,) = responses[status]["content"].items()
        reference = {"schema": {"$ref": "#/components/schemas/Problem"}}
        assert schema == ("application/problem+json", reference)


def test_fastapis_own_errors_are_not_described(description):
    assert "ValidationError" not in str(description)


def test_every_reference_leads_somewhere(description):
    def references(node):
        if isinstance(node, dict):
            yield from [node["$ref"]] if "$ref" in node else []
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(description))
    assert found
    for reference in found:
        node = description
        for name in reference.removeprefix("#/").split("/"):
            node = node[name]


def test_metadata_and_filters_are_described(description):
    def parameter(operation, name):
        parameters = described(description, operation)["parameters"]
        (found,) = [parameter for parameter in parameters if parameter["name"] == name]
        assert found["in"] == "query"
        assert not found["required"]
        assert found["description"]
        return found["schema"]

    metadata, filters = parameter("index", "metadata"), parameter("search", "filter")
    assert metadata["contentMediaType"] == "application/json"
    assert (filters["type"], filters["maxItems"]) == ("array", 16)
    form = described(description, "index")["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["properties"]["metadata"]["contentSchema"] == metadata["contentSchema"]
    deleted = described(description, "delete")["responses"]["204"]
    assert set(deleted["headers"]) == {"Inset-Sequence"}


@pytest.mark.parametrize("operation", ["index", "search"])
def test_bodies_are_described(description, operation):
    body = described(description, operation)["requestBody"]
    assert body["required"] is (operation == "index")
    assert set(body["content"]) == {"image/*", "multipart/form-data"}


def test_both_ways_to_answer_are_described(description):
    responses = described(description, "index")["responses"]
    assert set(responses["201"]["content"]) == {"application/json"}
    (lines,) = responses["200"]["content"].items()
    assert lines[0] == "application/x-ndjson"
    kinds, number = lines[1]["schema"]["allOf"]
    assert (
        kinds
        == description["components"]["schemas"]["IndexAnswer"]["properties"]["images"]["items"]
    )
    assert number["required"] == ["part"]
