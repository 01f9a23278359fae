"""The description at /openapi.json against the service: what it says is what happens."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import CHECKS
from schemathesis.core import NOT_SET
from schemathesis.generation import GenerationMode
from schemathesis.schemas import BaseSchema

from tests.support.photos.pictures import encode
from tests.support.running.examples import examples

# The successes that an operation should have among its answers to requests as described.
OPERATIONS = {
    ("POST", "/index"): 201,
    ("POST", "/search"): 200,
    ("GET", "/images"): 200,
    ("GET", "/images/{id}"): None,  # there is no telling which ids are known
    ("DELETE", "/images/{id}"): None,
    ("GET", "/images/{id}/record"): None,
    ("GET", "/images/{id}/thumbnail"): None,
    ("GET", "/healthz"): 200,
    ("GET", "/livez"): 200,
    ("GET", "/readyz"): 200,
    ("GET", "/stats"): 200,
    ("GET", "/session"): 200,
    ("POST", "/session"): 200,
    ("DELETE", "/session"): 204,
}
TAKE_NONE = ("/healthz", "/livez", "/readyz", "/stats", "/session")
TAKES_PARAMETERS = [operation for operation in OPERATIONS if operation[1] not in TAKE_NONE]


def plain(size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
    return encode(Image.new("RGB", size, colour))


sides, shades = st.integers(1, 40), st.integers(0, 255)
pictures = st.builds(plain, st.tuples(sides, sides), st.tuples(shades, shades, shades))
schemathesis.openapi.media_type("image/*", st.binary(max_size=200) | pictures)


@pytest.fixture(scope="module")
def description(service) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def call(description: BaseSchema, method: str, path: str, mode: GenerationMode) -> set[int]:
    """Send requests and check each answer; returns the statuses of all answers."""
    operation = description[path][method]
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples(50),
        derandomize=True,
        phases=[Phase.generate],  # what fails slowly would be shrunk for minutes
        suppress_health_check=list(HealthCheck),
    )
    def answer(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and path == "/search":
            # What a schema can't say: there is one query, and the changes have happened.
            unsaid = {"min_sequence"} if case.body is NOT_SET else {"min_sequence", "text", "id"}
            case.query = {name: case.query[name] for name in case.query.keys() - unsaid}
        # A field that is an empty list is no part of the body: as it is allowed to be.
        assume([] not in case.body.values() if isinstance(case.body, dict) else True)
        # Longer ones are refused by the web server before they come to us.
        assume(len(urlencode(case.query or {}, doseq=True, errors="replace")) < 50_000)
        # Not all that a schema allows is an image, or a photo that is stored. And this service has
        # no keys, so it asks for none.
        doubtful = [CHECKS.get_one(name) for name in ("positive_data_acceptance", "ignored_auth")]
        response = case.call_and_validate(excluded_checks=doubtful, timeout=60)
        statuses.add(response.status_code)

    answer()
    return statuses


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_is_sent_as_described_is_answered_as_described(description, method, path):
    """Status, content type and content; and never a server error."""
    statuses = call(description, method, path, GenerationMode.POSITIVE)
    assert OPERATIONS[method, path] in statuses | {None}


@pytest.mark.parametrize(("method", "path"), TAKES_PARAMETERS)
def test_what_is_not_as_described_is_refused_as_described(description, method, path):
    statuses = call(description, method, path, GenerationMode.NEGATIVE)
    assert 400 in statuses


def test_every_route_is_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    described = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert sorted(described) == sorted(OPERATIONS)
