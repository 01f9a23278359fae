"""The page as it is served: its files, their headers, and that they keep to themselves."""

import gzip
import re

import pytest
from common.photos import SUFFIXES
from starlette.testclient import TestClient

from deployments.ingress.app import build_app
from deployments.ingress.static_files import FOLDER
from tests.support.ingress.fake_inset import FakeInset

NAMES = sorted(file.name for file in FOLDER.iterdir())
PATHS = ["/", *(f"/page/{name}" for name in NAMES if name != "index.html")]
TYPES = {
    "": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
TEXTS = {name: (FOLDER / name).read_text() for name in NAMES}


@pytest.fixture(scope="module")
def client():
    return TestClient(
        build_app(FakeInset()), base_url="http://localhost", raise_server_exceptions=False
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_file_is_served_as_what_it_is(client, path):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == TYPES[path.rpartition(".")[2] if "." in path else ""]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.text == TEXTS[path.rpartition("/")[2] or "index.html"]


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_did_not_change_is_not_sent_again(client, path):
    tag = client.get(path).headers["etag"]
    again = client.get(path, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag
    assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_nothing_inline_and_nothing_from_elsewhere_is_allowed(client, path):
    policy = client.get(path).headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == "'self'"
    assert "unsafe" not in policy
    assert {word for value in directives.values() for word in value.split()} <= {
        *("'none'", "'self'", "blob:")
    }


@pytest.mark.parametrize(
    "path", ["/page/nothing.js", "/page/", "/page/%2e%2e", "/page/%2e%2e%2fa.py"]
)
def test_there_is_nothing_but_these_files(client, path):
    response = client.get(f"/page/{path}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_the_page_is_only_read(client):
    for path in PATHS[:2]:
        response = client.post(path)
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
        assert client.head(path).status_code == 200


def test_every_file_is_needed_and_every_needed_file_is_there(client):
    """What index.html loads, and what the modules import; and index.html names all modules, so
    that they come at once and not one after the other.
    """
    html = TEXTS["index.html"]
    loaded = set(re.findall(r'(?:href|src)="page/([^"]+)"', html))
    imported = {
        name
        for file in NAMES
        if file.endswith(".js")
        for name in re.findall(r'from "\./([^"]+)"', TEXTS[file])
    }
    assert imported < loaded
    assert loaded | {"index.html"} == set(NAMES)


def test_the_page_weighs_less_than_100_kilobytes(client):
    """All of it, as a browser gets it: so the first paint does, too."""
    sent = 0
    for path in PATHS:
        with client.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as response:
            body = b"".join(response.iter_raw())
            sent += len(body)
        if response.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert body.decode() == TEXTS[path.rpartition("/")[2] or "index.html"]
    assert 10_000 < sent < 60_000


def test_photos_have_the_suffixes_that_the_scripts_know():
    suffixes = re.search(r"const SUFFIXES = \((.*?)\)", TEXTS["files.js"], re.S).group(1)
    assert sorted(re.findall(r"\.\w+", suffixes)) == sorted(SUFFIXES)


def test_the_html_has_no_inline_style_or_script():
    html = TEXTS["index.html"]
    assert not re.search(r"\sstyle\s*=|\son[a-z]+\s*=|<style|javascript:", html)
    assert re.findall(r"<script(.*?)>(.*?)</script>", html) == [
        (' type="module" src="page/main.js"', "")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_no_file_names_another_origin(name):
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", TEXTS[name]))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js")])
def test_no_text_becomes_html(name):
    """Names of files and metadata are hostile; so nothing here parses HTML or runs text."""
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|new Function",
        TEXTS[name],
    )


@pytest.mark.parametrize(
    "asked", ["bytes=0-3", "bytes=-", "bytes=9-5", "bytes=-0", "bytes=\u00b2-"]
)
def test_files_are_sent_whole_whichever_part_is_asked_for(client, asked):
    whole = client.get("/page/main.js")
    answer = client.get("/page/main.js", headers={"range": asked.encode("latin-1")})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert answer.headers["accept-ranges"] == "none"
