"""Where bulk.py finds photos: in folders, lists, and buckets of a small S3 of this test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from loading.sources import NoSource, Source, find_sources, split

from deployments.errors import TooLarge

LIST = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}</ListBucketResult>'
ENTRY = "<Contents><Key>{}</Key><Size>{}</Size></Contents>"


class Bucket(BaseHTTPRequestHandler):
    """Answers what a client of S3 asks of a bucket: its list, and objects, whole or in part."""

    objects: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        _, bucket, *keys = unquote(url.path).split("/", 2)
        key = "".join(keys)
        if not key:
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            found = {name: data for name, data in self.objects.items() if name.startswith(prefix)}
            entries = [ENTRY.format(escape(name), len(data)) for name, data in found.items()]
            return self.answer(200, LIST.format("".join(entries)).encode())
        if bucket != "photos" or key not in self.objects:
            return self.answer(404, b"")
        data, status = self.objects[key], 200
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data, status = data[int(first) : int(last) + 1], 206
        return self.answer(status, data)

    do_HEAD = do_GET

    def answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a bucket, without its options, and these."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    Bucket.objects = {
        "2024/a.jpg": b"one",
        "2024/deep/b ü?#%41.PNG": b"two",
        "2024/notes.txt": b"no photo",
        "2025/c.webp": b"three",
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"region=here&scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def names(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


def test_a_bucket_and_a_folder_in_it(bucket: str) -> None:
    everything = find_sources([f"s3://photos?{bucket}"])
    assert sorted(names(everything)) == ["a.jpg", "b ü?#%41.PNG", "c.webp"]
    some = find_sources([f"s3://photos/2024?{bucket}"])
    assert sorted(source.path for source in some) == [
        "photos/2024/a.jpg",
        "photos/2024/deep/b ü?#%41.PNG",
    ]
    assert [source.read(100) for source in sorted(some, key=str)] == [b"one", b"two"]
    assert str(some[0]).startswith("s3://photos/2024/")


def test_what_is_too_large_is_not_read(bucket: str, tmp_path: Path) -> None:
    (source,) = find_sources([f"s3://photos/2025?{bucket}"])
    assert source.read(5) == b"three"
    with pytest.raises(TooLarge, match="more than 4 bytes"):
        source.read(4)
    (tmp_path / "a.jpg").write_bytes(b"x" * 50)
    (source,) = find_sources([str(tmp_path)])
    with pytest.raises(TooLarge):
        source.read(49)


def test_what_is_gone_is_an_error_of_its_own(bucket: str) -> None:
    (source,) = find_sources([f"s3://photos/2025?{bucket}"])
    Bucket.objects = {}
    with pytest.raises(OSError, match=r"c\.webp"):
        source.read(100)


def test_a_list_has_files_and_uris(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"here")
    lines = tmp_path / "list.txt"
    lines.write_text(f"{tmp_path}/a.jpg\n\ns3://photos/2024/a.jpg?{bucket}\n{tmp_path}/gone.jpg\n")
    here, there, gone = find_sources([str(lines)])
    assert (here.read(9), there.read(9)) == (b"here", b"one")
    with pytest.raises(FileNotFoundError):
        gone.read(9)


def test_each_file_is_named_once(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "notes.md"):
        (tmp_path / name).write_bytes(b"x")
    sources = find_sources([str(tmp_path), str(tmp_path / "b.jpg")])
    assert names(sources) == ["a.png", "b.jpg"]


@pytest.mark.parametrize("name", ["nowhere", "what://is/this", "nowhere.txt"])
def test_what_is_no_source_is_named(name: str) -> None:
    with pytest.raises(NoSource, match=name.split(":")[0]):
        find_sources([name])


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://photos", ("s3://photos", "photos")),
        ("s3://photos/2024/", ("s3://photos", "photos/2024")),
        ("s3://photos/a?region=x", ("s3://photos?region=x", "photos/a")),
    ],
)
def test_a_uri_is_a_place_and_a_path(uri: str, parts: tuple[str, str]) -> None:
    assert split(uri) == parts
