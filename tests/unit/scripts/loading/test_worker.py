"""What a worker of bulk.py makes of a batch: what is read, encoded and stored, and whose errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from loading import worker as module
from loading.sources import Source
from loading.worker import Worker

from deployments.errors import NotAnImage, StoreFull, Unavailable
from deployments.outcomes import Outcome
from deployments.records import CheckedPhoto, EncodedPhoto, Record, Stored
from deployments.settings import LimitSettings, Settings
from tests.support.stored.records import record
from tests.support.stored.stores import photo


class Everything:
    """Encodes photos, and keeps them.

    Attributes:
        encoded: the photos of each call.
        stored: photos by id.
        fails: what is raised for photos, given their bytes.
    """

    def __init__(self) -> None:
        self.encoded: list[list[bytes]] = []
        self.stored: dict[str, CheckedPhoto] = {}
        self.fails: Callable[[Sequence[bytes]], Exception | None] = lambda images: None
        self.store_error: Exception | None = None

    def encode(self, images: Sequence[bytes]) -> list[Outcome[EncodedPhoto]]:
        self.encoded.append(list(images))
        if error := self.fails(images):
            raise error
        return [NotAnImage("It is none.") if data == b"bad" else photo(data) for data in images]

    def find(self, wanted: list[tuple[str, str]]) -> list[Outcome[Record | None]]:
        return [record(id) if id in self.stored else None for id, _ in wanted]

    def put(
        self, photos: list[CheckedPhoto], encoded: list[Outcome[EncodedPhoto]]
    ) -> list[Outcome[Stored]]:
        if self.store_error:
            raise self.store_error
        outcomes: list[Outcome[Stored]] = []
        for one, result in zip(photos, encoded, strict=True):
            if isinstance(result, Exception):
                outcomes.append(result)
                continue
            self.stored[one.id] = one
            outcomes.append(Stored(record(one.id), created=True))
        return outcomes


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> Everything:
    everything = Everything()
    monkeypatch.setattr(module, "PhotoEncoding", lambda settings: everything)
    return everything


@pytest.fixture
def worker(everything: Everything) -> Worker:
    settings = Settings(limits=LimitSettings(max_image_bytes=20))
    return Worker(settings, everything, {"year": 2024})


def sources(folder: Path, **contents: bytes) -> dict[str, list[str]]:
    for name, data in contents.items():
        (folder / f"{name}.jpg").write_bytes(data)
    paths = [str(folder / f"{name}.jpg") for name in contents]
    return {"bucket": [""] * len(paths), "path": paths}


def test_each_photo_is_stored_under_its_sha256(worker, everything, tmp_path) -> None:
    answer = worker(sources(tmp_path, a=b"one", b=b"two"))
    assert answer["status"] == ["created", "created"]
    assert answer["file"] == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    one = everything.stored[hashlib.sha256(b"one").hexdigest()]
    assert (one.data, one.filename, one.metadata) == (b"one", "a.jpg", {"year": 2024})


def test_what_is_stored_is_not_encoded_again(worker, everything, tmp_path) -> None:
    worker(sources(tmp_path, a=b"one"))
    answer = worker(sources(tmp_path, a=b"one", b=b"two", c=b"one"))
    assert answer["status"] == ["exists", "created", "exists"]
    assert everything.encoded == [[b"one"], [b"two"]]
    assert worker(sources(tmp_path, a=b"one"))["status"] == ["exists"]
    assert len(everything.encoded) == 2


def test_each_error_is_that_of_its_file(worker, everything, tmp_path) -> None:
    batch = sources(tmp_path, a=b"one", b=b"bad", c=b"x" * 21, d=b"two")
    batch["bucket"].append("")
    batch["path"].append(f"{tmp_path}/gone.jpg")
    answer = worker(batch)
    assert answer["status"] == ["created", "failed", "failed", "created", "failed"]
    assert answer["reason"][1] == "It is none."
    assert "more than 20 bytes" in answer["reason"][2]
    assert answer["reason"][4].startswith("FileNotFoundError: ")
    assert len(everything.stored) == 2


def test_what_brings_a_batch_down_fails_alone(worker, everything, tmp_path) -> None:
    everything.fails = lambda images: RuntimeError("a mistake") if b"two" in images else None
    answer = worker(sources(tmp_path, a=b"one", b=b"two", c=b"three"))
    assert answer["status"] == ["created", "failed", "created"]
    assert answer["reason"][1] == "RuntimeError: a mistake"


@pytest.mark.parametrize(
    ("error", "status"), [(StoreFull("No room."), "full"), (Unavailable("No room."), "failed")]
)
def test_a_store_that_takes_nothing_fails_the_batch(
    worker, everything, tmp_path, error, status
) -> None:
    everything.store_error = error
    answer = worker(sources(tmp_path, a=b"one", b=b"two"))
    assert answer["status"] == [status] * 2
    assert answer["reason"] == ["No room."] * 2


def test_nothing_that_can_be_read_asks_nobody(worker, everything) -> None:
    assert [type(one) for one in worker.store([Source("", "/gone.jpg")])] == [FileNotFoundError]
    assert everything.encoded == []
