"""The verifier's deployment: previews come from the store, and missing ones are made once."""

import asyncio
import hashlib

import numpy as np
import pytest
from PIL import Image
from skimage import data

from deployments.compute.previews import make_preview
from deployments.errors import StoreFull
from deployments.limits import ImageLimits
from deployments.records import Preview
from deployments.verification import Candidate, Look
from deployments.verifier import deployment
from deployments.verifier.deployment import VerifierDeployment
from tests.support.graph.graph_in_process import Handle
from tests.support.photos.cutting import sketch_of
from tests.support.photos.pictures import encode

CUP = (170, 12, 424, 303)
SMALL = encode(Image.fromarray(data.coffee()))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class FakeStore:
    """Has originals by id, and previews of some of them."""

    def __init__(self, originals, previews=(), full=False):
        self.originals = dict(originals)
        self.data = dict(previews)
        self.full = full
        self.asked, self.decoded, self.kept = [], [], []

    async def previews(self, ids):
        self.asked.append(list(ids))
        return [
            Preview(sha256(self.originals[id]), 600, 400, self.data.get(id))
            if id in self.originals
            else None
            for id in ids
        ]

    async def original(self, id):
        self.decoded.append(id)
        return self.originals[id]

    async def keep_preview(self, id, sha256, data):
        if self.full:
            raise StoreFull("The store is full: raise max_bytes.")
        self.kept.append((id, sha256))
        self.data[id] = data
        return True


def verifier_of(store):
    return VerifierDeployment.func_or_class(ImageLimits(), Handle(store))


def cup():
    x1, y1, x2, y2 = CUP
    return sketch_of(np.ascontiguousarray(data.coffee()[y1:y2, x1:x2]))


def candidates(*ids, of=SMALL):
    return [Candidate(id, sha256(of), 0.1, CUP, Look(cup().box)) for id in ids]


def look(store, candidates, again=False):
    verifier = verifier_of(store)

    async def run():
        if again:
            return await verifier.verify_again(cup(), candidates)
        return (await verifier.verify(cup(), candidates, True)).sightings

    return asyncio.run(run())


@pytest.mark.parametrize("again", [False, True])
def test_a_stored_preview_is_what_is_looked_at(again):
    store = FakeStore({"a": SMALL}, {"a": make_preview(data.coffee())})
    assert look(store, candidates("a"), again)["a"]
    assert store.decoded == store.kept == []


@pytest.mark.parametrize("again", [False, True])
def test_a_missing_preview_is_made_once_and_kept(again):
    store = FakeStore({"a": SMALL})
    assert look(store, candidates("a"), again)["a"]
    assert store.kept == [("a", sha256(SMALL))]
    assert store.data["a"] == make_preview(data.coffee())
    assert look(store, candidates("a"), again)["a"]
    assert store.decoded == ["a"]


def test_in_a_full_store_it_is_verified_all_the_same(caplog):
    store = FakeStore({"a": SMALL}, full=True)
    assert look(store, candidates("a"))["a"]
    assert "the preview of 'a' can't be stored" in caplog.text
    assert "max_bytes" in caplog.text


def test_a_photo_that_cant_be_decoded_is_passed_over(caplog):
    """Under limits that were lowered since, or because it is damaged."""
    store = FakeStore({"bad": b"no image", "a": SMALL})
    found = look(store, [*candidates("bad", of=b"no image"), *candidates("a")])
    assert set(found) == {"a"}
    assert found["a"]
    assert "'bad' can't be looked at" in caplog.text
    assert [id for id, _ in store.kept] == ["a"]


def test_a_photo_that_was_replaced_or_deleted_is_passed_over():
    """The chunk belongs to what it was before."""
    store = FakeStore({"other": SMALL}, {"other": make_preview(data.coffee())})
    found = look(store, [*candidates("other", of=b"before"), *candidates("gone")])
    assert found == {}
    assert store.decoded == []


def test_many_previews_are_fetched_in_groups(monkeypatch):
    """A photo once, however many looks there are at it."""
    monkeypatch.setattr(deployment, "AT_ONCE", 2)
    store = FakeStore(dict.fromkeys("abcde", SMALL))
    store.data = dict.fromkeys("abcde", make_preview(np.zeros((4, 6, 3), np.uint8)))
    assert set(look(store, candidates(*"abacde"))) == set("abcde")
    assert sorted(id for group in store.asked for id in group) == list("abcde")
    assert max(map(len, store.asked)) == 2
