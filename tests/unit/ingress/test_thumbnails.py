"""Thumbnails, also of photos that were stored without one."""

import pytest

from deployments.errors import BadParameter, StoreFull, UnknownId
from deployments.store.operations import Delete, Put
from tests.support.graph.graph_in_process import make
from tests.support.graph.thumbnails import PHOTO, forget_thumbnail, thumbnails


class Maker:
    """The deployment that makes thumbnails; something may happen meanwhile."""

    def __init__(self, meanwhile=lambda: None, prefix=b"small "):
        self.meanwhile = meanwhile
        self.prefix = prefix
        self.made = []

    async def thumbnail(self, data):
        self.made.append(data)
        self.meanwhile()
        return self.prefix + data


@pytest.fixture
def store(tmp_path, batches_without_replicas):
    """The deployment of the store, with a photo `old` as an older version has stored it."""
    made = make("Store", tmp_path / "store", {"store": {"max_bytes": 2**20}})
    made.store.apply([Put("old", b"original", None, PHOTO), Put("new", b"x", None, PHOTO)])
    forget_thumbnail(made, "old")
    yield made
    made.store.close()


def kept(store):
    with store.store.reading() as txn:
        return [key.decode() for key, _ in txn.cursor(db=store.store.dbs.thumbnails)]


def test_a_thumbnail_is_that_of_when_the_photo_was_indexed(tmp_path, store):
    maker = Maker()
    assert thumbnails(tmp_path, store, maker, "new") == [PHOTO.thumbnail]
    assert maker.made == []
    with pytest.raises(UnknownId, match="'nobody'"):
        thumbnails(tmp_path, store, maker, "nobody")
    with pytest.raises(BadParameter):
        thumbnails(tmp_path, store, maker, "a/b")


def test_a_photo_of_an_older_version_gets_a_thumbnail_once(tmp_path, store):
    maker = Maker()
    assert thumbnails(tmp_path, store, maker, "old", "old") == [b"small original"] * 2
    assert maker.made == [b"original"]
    assert kept(store) == ["new", "old"]


def test_a_photo_deleted_meanwhile_leaves_no_thumbnail_behind(tmp_path, store):
    maker = Maker(lambda: store.store.apply([Delete("old")]))
    assert thumbnails(tmp_path, store, maker, "old") == [b"small original"]
    assert kept(store) == ["new"]
    with pytest.raises(UnknownId):
        thumbnails(tmp_path, store, maker, "old")


def test_a_photo_replaced_meanwhile_keeps_its_own_thumbnail(tmp_path, store):
    maker = Maker(lambda: store.store.apply([Delete("old"), Put("old", b"y", None, PHOTO)]))
    answers = thumbnails(tmp_path, store, maker, "old", "old")
    assert answers == [b"small original", PHOTO.thumbnail]


def test_a_full_store_is_no_reason_to_answer_no_thumbnail(tmp_path, store, caplog):
    number = 0
    while not isinstance(store.store.apply([Put(f"{number}", b"x", None, PHOTO)])[0], StoreFull):
        number += 1
    maker = Maker(prefix=b"x" * 40_000)
    answers = thumbnails(tmp_path, store, maker, "old", "old")
    assert answers == [maker.prefix + b"original"] * 2
    assert len(maker.made) == 2
    assert "old" not in kept(store)
    assert "the thumbnail of 'old' can't be stored" in caplog.text
    assert "max_bytes" in caplog.text
