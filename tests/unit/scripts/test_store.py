"""scripts/store.py: what it prints, what it answers, and that it never leaves half of anything."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import lmdb
import numpy as np
import pytest
from common.config import DEFAULT_CONFIG, read_settings

from deployments.decoding.facts import FACTS
from deployments.encoder.files import find_encoder
from deployments.errors import BrokenImage, StoreFull
from deployments.records import EncodedPhoto, content_hash
from deployments.store import copies as store_copies
from deployments.store.format import PUT, sequence_key
from deployments.store.operations import Delete, Put
from deployments.store.reader import StoreReader
from deployments.store.store import Store
from tests.support.paths import ROOT
from tests.support.photos.exif import SAID, of_a_phone
from tests.support.photos.pictures import encode, picture, pixels
from tests.support.running.waiting import wait_until
from tests.support.service.services import free_port
from tests.support.stored.stores import (
    DIMENSION,
    ENCODER,
    OLD,
    assert_counts,
    assert_whole,
    float16,
    make_old,
    photo,
    put,
    vectors_of,
)

PHOTOS = {"a": b"one", "b.1": b"2" * 5000, "c~": b"", "d": os.urandom(300_000)}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("store_script", ROOT / "scripts" / "store.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with some photos, and free pages."""
    store = Store(tmp_path / "store", ENCODER)
    store.apply([put("gone", os.urandom(2_000_000))])
    store.apply([put(id, data) for id, data in PHOTOS.items()])
    store.apply([Delete("gone")])
    store.close()
    return tmp_path / "store"


@pytest.fixture
def run(folder: Path, capsys):
    """Run a command in this process; returns status, stdout, stderr."""

    def run(*words: object, path: Path = folder) -> tuple[int, str, str]:
        status = script.main([*map(str, words), "--path", str(path)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def assert_photos(folder: Path) -> None:
    store = Store(folder, ENCODER, lock_timeout_s=0)
    for id, data in PHOTOS.items():
        assert_whole(store, id, data)
    assert_counts(store, PHOTOS)
    assert store.sequence == 6
    store.close()


def history(folder: Path) -> str:
    reader = StoreReader(folder)
    reader.close()
    return reader.history


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# stats


def test_stats(run) -> None:
    status, out, _ = run("stats")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0
    assert (lines["photos"], lines["sequence"], lines["format"]) == ("4", "6", "4")
    assert lines["thumbnails"].endswith(" MB, of 4 photos")
    assert lines["previews"].endswith(" MB, of 4 photos")
    assert lines["log"] == "5 entries, cut at 0"
    assert lines["encoder"] == f"{ENCODER.name}, dimension {DIMENSION}, weights {ENCODER.digest}"
    assert float(lines["file"].split()[0]) >= 2.3
    assert 1.9 < float(lines["free"].split()[0]) < 2.4
    assert "2026" <= lines["oldest"] <= lines["newest"]


def test_no_store(run, tmp_path: Path) -> None:
    before = files(tmp_path)
    for words in (["stats"], ["verify"], ["compact"], ["backup", tmp_path / "b"]):
        status, out, err = run(*words, path=tmp_path / "nowhere")
        assert (status, out) == (1, "")
        assert f"There is no store in {tmp_path / 'nowhere'}" in err
    assert files(tmp_path) == before


# verify


def test_verify(run) -> None:
    status, out, _ = run("verify")
    assert status == 0
    assert out == "All is well: 4 photos and 5 log entries, up to change 6.\n"


def damage(folder: Path, database: str, key: bytes, value: bytes | None) -> None:
    with lmdb.open(str(folder), max_dbs=7) as env, env.begin(write=True) as txn:
        db = env.open_db(database.encode(), txn=txn)
        if value is None:
            assert txn.delete(key, db=db)
        else:
            txn.put(key, value, db=db)


@pytest.mark.parametrize(
    ("database", "key", "value", "expected"),
    [
        (
            "originals",
            b"a",
            b"two",
            [
                ("a", "original"),
            ],
        ),
        ("originals", b"a", None, [("a", "original"), ("-", "totals")]),
        ("originals", b"stray", b"", [("stray", "original")]),
        ("records", b"a", b"x" * 200, [("a", "record")]),
        (
            "records",
            b"a",
            None,
            [
                ("a", "log"),
                ("a", "original"),
                ("a", "vectors"),
                ("a", "thumbnail"),
                ("a", "preview"),
                ("-", "totals"),
            ],
        ),
        ("vectors", b"a", b"x" * 500, [("a", "vectors"), ("-", "totals")]),
        ("vectors", b"a", None, [("a", "vectors"), ("-", "totals")]),
        ("vectors", b"stray", b"", [("stray", "vectors")]),
        ("thumbnails", b"a", b"x" * 500, [("a", "thumbnail")]),
        ("thumbnails", b"stray", b"", [("stray", "thumbnail")]),
        ("previews", b"a", b"x" * 500, [("a", "preview")]),
        ("previews", b"stray", b"", [("stray", "preview")]),
        ("log", sequence_key(2), None, [("a", "log")]),
        ("log", sequence_key(2), PUT + b"nobody", [("a", "log"), ("nobody", "log")]),
        ("log", sequence_key(7), PUT + b"a", [("a", "log")]),
        ("log", sequence_key(7), b"?a", [("a", "log")]),
        ("meta", b"cut", b"6", [("gone", "log")]),
        ("meta", b"totals", b'{"chunks": 1, "original_bytes": 1}', [("-", "totals")]),
    ],
)
def test_verify_finds_damage(run, folder: Path, database, key, value, expected) -> None:
    damage(folder, database, key, value)
    status, out, _ = run("verify")
    *lines, summary = out.splitlines()
    assert status == 1
    assert [tuple(line.split("\t")[:2]) for line in lines] == expected
    concerned = len({id for id, _ in expected} - {"-"})
    assert summary.startswith(f"{len(expected)} problems, {concerned} of ")


@pytest.mark.parametrize("pictures", ["thumbnails", "previews"])
def test_a_photo_without_its_pictures_is_no_damage(run, folder: Path, pictures: str) -> None:
    """It was stored by an older version, and gets them when somebody asks for them."""
    damage(folder, pictures, b"a", None)
    status, out, _ = run("verify")
    assert (status, out[:11]) == (0, "All is well")
    lines = dict(line.split(maxsplit=1) for line in run("stats")[1].splitlines())
    assert lines[pictures].endswith(", of 3 photos")


def test_verify_finds_wrong_vectors_and_boxes(folder: Path, run) -> None:
    store = Store(folder, ENCODER)
    long = put("long", b"l")
    long.photo.vectors[0] *= 1.1
    outside = put("outside", b"o")
    outside.photo.chunks[0] = outside.photo.chunks[0].model_copy(update={"box": (0, 0, 641, 480)})
    store.apply([long, outside])
    store.close()
    status, out, _ = run("verify")
    first, second, _ = out.splitlines()
    assert status == 1
    assert first.startswith("long\tvectors\ttheir norms aren't 1: [1.1")
    assert second == "outside\tboxes\tchunk 0: 0,0,641,480 isn't within the photo, 640 x 480"


@pytest.fixture
def index() -> Iterator[tuple[str, dict]]:
    """Something that answers `/stats` like a service; its URL, and what it says of its index."""
    state = {"photos": 4, "chunks": 9}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"chunk_index": state}).encode())

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    yield f"http://127.0.0.1:{server.server_port}", state
    server.shutdown()
    server.server_close()


def test_verify_compares_the_index(run, index, monkeypatch) -> None:
    monkeypatch.setattr(script, "WAIT_S", 0)
    url, state = index
    digest = sum(content_hash(id, float16(data)) for id, data in PHOTOS.items()) % 2**64
    state |= {"sequence": 6, "digest": f"{digest:016x}"}
    status, out, _ = run("verify", "--url", url)
    assert status == 0
    assert out.endswith("The index holds the same.\n")

    state["digest"] = f"{digest ^ 1:016x}"
    status, out, _ = run("verify", "--url", url)
    assert status == 1
    assert "index\tholds other photos or vectors" in out

    state["sequence"] = 5
    status, out, err = run("verify", "--url", url)
    assert status == 2
    assert out.startswith("All is well")
    assert "it is at change 5, the store at 6" in err


def test_verify_without_a_service(run, folder: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    status, out, err = run("verify", "--url", url)
    assert status == 2
    assert out.startswith("All is well")
    assert f"The index was not compared: No service answers at {url}" in err
    damage(folder, "originals", b"a", b"two")
    assert run("verify", "--url", url)[0] == 1


# backup and restore


def test_backup_and_restore(run, folder: Path, tmp_path: Path) -> None:
    file, copy = tmp_path / "backup", tmp_path / "deep" / "copy"
    assert run("backup", file)[0] == 0
    assert file.stat().st_size < 500_000  # without the free pages
    status, out, _ = run("restore", file, path=copy)
    assert status == 0
    assert f"Restored 4 photos into {copy}." in out
    assert files(copy) >= {"data.mdb"}
    assert not any(name.endswith(".partial") for name in files(copy) | files(tmp_path))
    assert_photos(copy)
    assert_photos(folder)
    assert history(copy) != history(folder)
    # The backup is as it was: it can be restored again, as a store of its own.
    assert run("restore", file, path=tmp_path / "again")[0] == 0
    assert history(tmp_path / "again") not in (history(copy), history(folder))


def test_nothing_is_written_over(run, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    file.write_bytes(b"precious")
    status, _, err = run("backup", file)
    assert status == 1
    assert "exists already" in err
    assert file.read_bytes() == b"precious"
    assert run("backup", file, "--force")[0] == 0
    status, _, err = run("restore", file)
    assert status == 1
    assert f"There is a store in {folder} already" in err
    assert "move" in err
    assert_photos(folder)


def test_what_is_no_backup_is_not_restored(run, folder: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    run("backup", good)
    foreign = tmp_path / "foreign"
    with lmdb.open(str(foreign), subdir=False) as env, env.begin(write=True) as txn:
        txn.put(b"a", b"document")
    for data, reason in [
        (good.read_bytes()[:-5000], "is incomplete"),
        (good.read_bytes()[:3000], "can't be read as a backup"),
        (b"garbage" * 10_000, "can't be read as a backup"),
        (b"", "can't be read as a backup"),
        (foreign.read_bytes(), "not a store of this service"),
    ]:
        bad.write_bytes(data)
        status, _, err = run("restore", bad, path=tmp_path / "copy")
        assert status == 1
        assert reason in err
        assert not (tmp_path / "copy" / "data.mdb").exists()
    status, _, err = run("restore", tmp_path / "missing", path=tmp_path / "copy")
    assert status == 1
    assert "There is no file" in err


@pytest.mark.parametrize("format", [1, 2, 3])
def test_a_backup_of_an_older_format_is_restored(run, tmp_path: Path, format: int) -> None:
    make_old(tmp_path / "old", OLD, format)
    file = tmp_path / "old" / "data.mdb"
    before = file.read_bytes()
    assert run("restore", file, path=tmp_path / "new")[0] == 0
    assert file.read_bytes() == before
    status, out, _ = run("verify", path=tmp_path / "new")
    assert status == 0
    assert "2 photos" in out


def test_a_full_disk_leaves_nothing_behind(run, folder: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    run("backup", good)
    (tmp_path / "copy").mkdir()
    before = files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for words, path in [
        (["backup", tmp_path / "backup"], folder),
        (["restore", good], tmp_path / "copy"),
        (["compact"], folder),
    ]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            status, _, err = run(*words, path=path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert status == 1
        assert "File too large" in err
        assert files(tmp_path) == before
        assert not (files(tmp_path / "copy") | files(folder)) & {"data.mdb.partial"}
    assert_photos(folder)
    assert not (tmp_path / "copy" / "data.mdb").exists()


# Beside an owner, in a process of its own

OWNER = """
import sys
from deployments.store.store import Store
from tests.support.stored.stores import ENCODER, put

store = Store(sys.argv[1], ENCODER)
print("open", flush=True)
number = 0
for _ in sys.stdin:
    store.apply([put(f"new{number}", b"x" * 100_000)])
    number += 1
    print(number, flush=True)
store.close()
"""


@pytest.fixture
def owner(folder: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdout.readline() == "open\n"
        yield child
        child.stdin.close()


def test_a_store_in_use_can_be_read_but_not_compacted(
    run, owner, folder: Path, tmp_path: Path
) -> None:
    def write() -> None:
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert owner.stdout.readline()

    write()
    for words in (["stats"], ["verify"], ["backup", tmp_path / "b"], ["export", tmp_path / "e"]):
        assert run(*words)[0] == 0
    write()
    status, out, _ = run("verify")
    assert (status, "6 photos" in out) == (0, True)
    status, _, err = run("compact")
    assert status == 1
    assert f"in use by process {owner.pid}" in err
    status, _, err = run("restore", tmp_path / "b")
    assert status == 1
    assert f"in use by process {owner.pid}" in err
    owner.stdin.close()
    assert owner.wait() == 0
    assert run("restore", tmp_path / "b", path=tmp_path / "copy")[0] == 0
    assert "5 photos" in run("verify", path=tmp_path / "copy")[1]


# compact


def test_compact(run, folder: Path) -> None:
    before, life = (folder / "data.mdb").stat().st_size, history(folder)
    status, out, _ = run("compact")
    assert status == 0
    after = (folder / "data.mdb").stat().st_size
    assert after < before - 1_500_000
    assert out == f"Compacted from {before / 1e6:.1f} MB to {after / 1e6:.1f} MB.\n"
    assert history(folder) == life
    assert_photos(folder)
    assert run("verify")[0] == 0


def test_a_store_that_is_read_is_not_compacted(run, folder: Path) -> None:
    reader = StoreReader(folder)
    status, _, err = run("compact")
    assert status == 1
    assert "is being read by another process" in err
    reader.close()
    assert run("compact")[0] == 0


def test_compact_says_how_much_room_it_needs(run, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        store_copies.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})
    )
    status, _, err = run("compact")
    assert status == 1
    assert "may need 2," in err
    assert "1,000 are free" in err
    assert_photos(folder)


KILLED = """
import os, runpy, signal, sys
from deployments.store import copies as store_copies

moment, *sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as where Python runs a script
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
replace = os.replace
def replace_and_kill(*files):
    replace(*files)
    kill()
if moment == "copying":
    store_copies._copy_compacted = lambda copy, target, progress: (target.write(b"half"), kill())
elif moment == "before":
    os.replace = kill
else:
    os.replace = replace_and_kill
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("moment", ["copying", "before", "after"])
def test_a_killed_compaction_is_no_harm(run, folder: Path, moment: str) -> None:
    words = [moment, ROOT / "scripts" / "store.py", "compact", "--path", folder]
    command = [sys.executable, "-c", KILLED, *map(str, words)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    assert_photos(folder)
    assert run("compact")[0] == 0
    assert_photos(folder)
    assert "data.mdb.partial" not in files(folder)


def test_a_killed_restore_leaves_no_store(run, folder: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "b")
    words = ["before", ROOT / "scripts" / "store.py", "restore", tmp_path / "b"]
    command = [sys.executable, "-c", KILLED, *map(str, [*words, "--path", tmp_path / "copy"])]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    assert run("stats", path=tmp_path / "copy")[0] == 1
    assert run("restore", tmp_path / "b", path=tmp_path / "copy")[0] == 0
    assert_photos(tmp_path / "copy")
    assert "data.mdb.partial" not in files(tmp_path / "copy")


# export


def test_export(run, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    status, out, _ = run("export", target)
    assert status == 0
    assert "Wrote 4 originals and records.jsonl" in out
    assert files(target) == {"a.jpg", "b.1.jpg", "c~.jpg", "d.jpg", "records.jsonl"}
    lines = [json.loads(line) for line in (target / "records.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == sorted(PHOTOS)
    for line in lines:
        data = (target / line["file"]).read_bytes()
        assert data == PHOTOS[line["id"]]
        assert line["sha256"] == hashlib.sha256(data).hexdigest()
        assert line["metadata"]["size"] == len(data)
    # Again: only what is missing or cut short is written.
    (target / "a.jpg").unlink()
    (target / "d.jpg").write_bytes(PHOTOS["d"][:1000])
    status, out, _ = run("export", target)
    assert status == 0
    assert "Wrote 2 originals" in out
    assert (target / "d.jpg").read_bytes() == PHOTOS["d"]


def test_export_names_what_is_damaged(run, folder: Path, tmp_path: Path) -> None:
    damage(folder, "originals", b"a", b"two")
    status, out, err = run("export", tmp_path / "out")
    assert status == 1
    assert "1 were damaged" in out
    assert "'a' is damaged" in err
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [("image/jpeg", ".jpg"), ("image/png", ".png"), ("image/x-qoi", ".qoi"), ("image/foo", ".foo")],
)
def test_suffix(media_type: str, expected: str) -> None:
    assert script.suffix(media_type) == expected


# reindex


class FakeNetworks:
    """What the command encodes with, without networks."""

    loaded = 0

    def __init__(self, settings) -> None:
        type(self).loaded += 1

    def encode(self, images: list[bytes]) -> list:
        return [BrokenImage("It ends early.") if not data else wide(data) for data in images]


def wide(data: bytes) -> EncodedPhoto:
    """A photo with vectors of the dimension of models/compact."""
    vectors = np.zeros((len(photo(data).chunks), 256), np.float32)
    vectors[:, len(data) % 256] = 1
    return replace(photo(data), vectors=vectors, facts=dict.fromkeys(FACTS))


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> type[FakeNetworks]:
    monkeypatch.setattr("common.photo_encoding.PhotoEncoding", FakeNetworks)
    FakeNetworks.loaded = 0
    return FakeNetworks


def vector_lengths(folder: Path) -> dict[str, int]:
    with closing(StoreReader(folder)) as store:
        assert store.encoder.name == "models/compact"
        return {id: int(vectors_of(store, id)[0].argmax()) for id in store.ids()}


def test_reindex_beside_an_owner(run, owner, folder: Path, networks) -> None:
    owner.stdin.write("\n")
    owner.stdin.flush()
    owner.stdout.readline()
    status, out, _ = run("reindex")
    assert status == 2
    assert "5 photos are ready in" in out
    assert "stop the service" in out
    assert "c~\tc~.jpg\tIt ends early." in out
    assert networks.loaded == 1
    owner.stdin.close()
    assert owner.wait() == 0
    status, out, _ = run("reindex")
    assert status == 1
    assert out.splitlines()[0] == "c~\tc~.jpg\tIt ends early."
    assert "1 photos can't be indexed" in out
    assert "Reindexed 4 photos with models/compact: start the service." in out
    (kept,) = folder.glob("before-reindexing-*.mdb")
    assert str(kept) in out
    expected = {id: len(data) % 256 for id, data in PHOTOS.items() if data}
    assert vector_lengths(folder) == expected | {"new0": 100_000 % 256}
    assert run("verify")[0] == 0
    status, out, _ = run("reindex")
    assert (status, "has vectors of models/compact, and its photos were" in out) == (0, True)


def test_reindex_removes_the_old_store_on_request(run, folder: Path, networks) -> None:
    with closing(Store(folder, ENCODER)) as store:
        store.apply([Delete("c~")])
    status, out, _ = run("reindex", "--remove-old")
    assert status == 0
    assert "is kept" not in out
    assert not files(folder) & {"reindexing"}
    assert not list(folder.glob("before-*"))


def test_reindex_says_what_is_wrong(
    run, folder: Path, networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("applications: []")
    status, _, err = run("reindex", "--config", config)
    assert status == 1
    assert f"{config} is not a config of Inset" in err
    status, _, err = run("reindex", path=tmp_path / "nowhere")
    assert status == 1
    assert "There is no store in" in err
    with monkeypatch.context() as patched:
        full = StoreFull("The disk of the store is full.")
        patched.setattr(Store, "apply", lambda self, operations: [full] * len(operations))
        status, _, err = run("reindex")
    assert status == 1
    assert "Then run this again: it continues." in err
    assert_photos(folder)
    assert run("reindex")[0] == 1  # without "c~"
    assert len(vector_lengths(folder)) == 3


def test_reindex_asks_photos_that_were_not_asked(run, tmp_path: Path, networks) -> None:
    """If the vectors are right, nothing else is done; and not beside an owner."""
    folder, config = tmp_path / "asked", read_settings(DEFAULT_CONFIG)
    encoder = find_encoder(config.encoder).identity
    says = encode(pixels("says"), "JPEG", exif=of_a_phone())
    with closing(Store(folder, encoder)) as store:
        for id, data, said in (("a", says, {"camera": "mine"}), ("b", picture("silent"), {})):
            store.apply([Put(id, data, f"{id}.jpg", replace(wide(data), facts={}), said)])
    command = "import sys; from deployments.store.store import Store\n"
    command += "from deployments.records import EncoderIdentity\n"
    command += f"store = Store(sys.argv[1], {encoder!r}); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", command, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as child:
        assert child.stdout.readline() == "open\n"
        status, out, _ = run("reindex", path=folder)
        assert status == 2
        assert f"in use by process {child.pid}" in out
        assert "2 photos are to be asked about themselves" in out
        child.stdin.close()
    status, out, _ = run("reindex", path=folder)
    assert (status, out) == (0, "Asked 2 photos about themselves; 0 can't be.\n")
    with closing(StoreReader(folder)) as store:
        assert store.record("a").metadata == SAID | {"camera": "mine"}
        assert store.record("b").metadata == {}
    status, out, _ = run("reindex", path=folder)
    assert (status, "nothing to do" in out) == (0, True)
    assert networks.loaded == 0
    without = tmp_path / "config.yaml"
    without.write_text(DEFAULT_CONFIG.read_text().replace("exif: true", "exif: no-location"))
    assert run("reindex", "--config", without, path=folder)[0] == 0
    with closing(StoreReader(folder)) as store:
        assert set(store.record("a").metadata) == {"camera", "date_taken", "lens"}
    with closing(Store(folder, encoder)) as store:
        store.apply([Put("c", b"no picture", "c.jpg", replace(wide(b"c"), facts={}))])
    status, out, _ = run("reindex", "--config", without, path=folder)
    assert status == 1
    assert out.startswith("c\tc.jpg\tThese bytes are not in an image format")
    assert out.endswith("Asked 0 photos about themselves; 1 can't be.\n")


@pytest.mark.slow
def test_reindex_makes_what_indexing_makes(run, folder: Path, tmp_path: Path, photos: Path) -> None:
    """With the networks of the config, of a store of older weights."""
    from common.photo_encoding import PhotoEncoding

    originals = {name: (photos / f"{name}.png").read_bytes() for name in ("chelsea", "coffee")}
    with closing(Store(tmp_path / "photos", ENCODER)) as store:
        store.apply([put(id, data) for id, data in originals.items()])
    assert run("reindex", path=tmp_path / "photos")[0] == 0
    networks = PhotoEncoding(read_settings(DEFAULT_CONFIG))
    with closing(StoreReader(tmp_path / "photos")) as store:
        for id, data in originals.items():
            (expected,) = networks.encode([data])
            assert store.record(id).chunks == expected.chunks
            similar = (vectors_of(store, id) * expected.vectors).sum(1)
            assert similar.min() > 0.999
            assert store.thumbnail(id) == expected.thumbnail
            assert store.previews([id])[0].data == expected.preview


# The command itself


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_command_ends_on_signals(folder: Path, tmp_path: Path, number: int, status: int) -> None:
    """A backup into a pipe nobody reads stands still until it is interrupted."""
    beside = StoreReader(folder)  # so that the lock file stays as the command leaves it
    fifo = tmp_path / "b.partial"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    command = [sys.executable, ROOT / "scripts" / "store.py", "backup", tmp_path / "b"]
    child = subprocess.Popen(
        [*command, "--path", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests may ignore it: `nohup` does, and a shell for what is behind `&`.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    wait_until(lambda: os.read(keep, 1), "the backup began")
    assert str(child.pid) in beside._env.readers()
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    os.close(keep)
    assert child.returncode == status
    assert str(child.pid) not in beside._env.readers()  # a snapshot left there would take space
    beside.close()
    assert "Interrupted. Nothing is left half done" in out
    assert "Traceback" not in err
    assert not fifo.exists()


def test_help_names_the_commands() -> None:
    command = [sys.executable, ROOT / "scripts" / "store.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("stats", "verify", "backup", "restore", "compact", "export", "reindex"):
        assert name in done.stdout
