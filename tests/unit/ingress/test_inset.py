"""What the ingress makes of the deployments: of their failures, and of photos that come and go."""

import asyncio
import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.errors import BadParameter, StoreFull, Unavailable, UnknownId, UnknownSequence
from deployments.ingress.progress import FEWEST, Progress
from deployments.metadata import Filter
from deployments.records import Chunk, EncodedPhoto, RankedPhoto, Record, Stored
from deployments.store.operations import Delete, Put
from deployments.verification import EncodedQuery
from tests.support.graph.graph_in_process import HANDLES, OPERATIONS, ingress, make
from tests.support.graph.thumbnails import PHOTO, forget_thumbnail, thumbnails
from tests.support.paths import ROOT


@pytest.mark.parametrize("name", ["ingress", "store"])
def test_a_deployment_that_computes_nothing_is_without_torch(name):
    """It takes 130 MB, and seconds to load."""
    code = f"import sys, deployments.{name}.deployment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Failures of deployments


class Failing:
    """A deployment whose every call fails."""

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        async def fail(*args):
            raise self.error

        return fail


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (BackPressureError(num_queued_requests=256, max_queued_requests=256), "queue is full"),
        (DeploymentUnavailableError(DeploymentID("Store", "inset")), "being restarted"),
        (RayActorError(), "being restarted"),
        (WorkerCrashedError(), "being restarted"),
        (NodeDiedError("The node is gone."), "being restarted"),
        (OutOfMemoryError("The worker was killed."), "being restarted"),
        (ObjectStoreFullError("The store of objects is full."), "being restarted"),
        (OwnerDiedError("ab" * 28, None, "call"), "being restarted"),
        (RayTaskError("put", "", RayTaskError("encode", "", ActorDiedError())), "being restarted"),
        (RayTaskError("put", "", ObjectLostError("ab" * 28, None, "")), "being restarted"),
    ],
)
def test_a_deployment_that_is_busy_or_gone_is_a_sentence(tmp_path, error, sentence):
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, Failing(error)))
    for operation, args in OPERATIONS:
        with pytest.raises(Unavailable, match=sentence):
            asyncio.run(getattr(inset, operation)(*args))


@pytest.mark.parametrize("nested", [False, True])
def test_an_error_in_the_code_of_a_deployment_is_no_restart(tmp_path, nested):
    error = RayTaskError("encode", "", ValueError("a mistake"))
    if nested:
        error = RayTaskError("put", "", error)
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, Failing(error)))
    with pytest.raises(RayTaskError) as caught:
        asyncio.run(inset.stats())
    assert caught.value is error


def test_an_error_of_ours_passes_as_it_is(tmp_path):
    error = UnknownId("There is no photo 'a'.")
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, Failing(error)))
    with pytest.raises(UnknownId) as caught:
        asyncio.run(inset.get("a"))
    assert caught.value is error


def test_a_file_name_is_tidied_whichever_way_it_comes(tmp_path):
    names = []

    class Indexing:
        async def segment(self, data, threshold):
            return None

        async def encode_photo(self, photo):
            return None

        async def find(self, id, sha256):
            return None

        async def put(self, id, data, filename, photo, metadata):
            names.append(filename)
            raise StoreFull("Full.")

    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, Indexing()))
    for name in ("cafe\u0301.png", "a" * 2000, "a\udcff", None):
        with pytest.raises(StoreFull):
            asyncio.run(inset.index(b"x", filename=name))
    assert names == ["café.png", "a" * 1000, "a?", None]


# Photos that take too long


class Slow:
    """All deployments of indexing in one. Each call takes until its gate is opened.

    Args:
        gates: the calls that wait, by name.
    """

    def __init__(self, *gates):
        self.gates = {name: asyncio.Event() for name in gates}
        self.begun, self.ended = [], []

    async def call(self, name):
        self.begun.append(name)
        if name in self.gates:
            await self.gates[name].wait()
        self.ended.append(name)

    async def find(self, id, sha256):
        await self.call("find")

    async def segment(self, data, threshold):
        await self.call("segment")

    async def encode_photo(self, photo):
        await self.call("encode")

    async def put(self, id, data, filename, photo, metadata):
        await self.call("put")
        return Stored(record(id), created=True)

    async def delete(self, id):
        await self.call("delete")
        return 7


LIMITS = {"limits": {"timeout_s": 0.2}}


@pytest.mark.parametrize("late", ["find", "segment", "encode"])
def test_a_photo_that_takes_too_long_is_given_up(tmp_path, late):
    """Else the queue would work for clients that have gone, and for nobody else."""

    async def run():
        slow = Slow(late)
        inset = ingress(tmp_path, LIMITS, **dict.fromkeys(HANDLES, slow))
        with pytest.raises(Unavailable, match="longer than"):
            await inset.index(b"x")
        slow.gates[late].set()
        await asyncio.sleep(0.1)
        return slow

    slow = asyncio.run(run())
    assert late in slow.begun
    assert late not in slow.ended
    assert "put" not in slow.begun


def test_what_the_store_has_got_is_answered_as_it_is(tmp_path):
    """An error would say that the photo isn't stored, but it is, a moment later."""

    async def run():
        slow = Slow("put")
        inset = ingress(tmp_path, LIMITS, **dict.fromkeys(HANDLES, slow))
        task = asyncio.create_task(inset.index(b"x", id="a"))
        await asyncio.sleep(0.4)
        assert not task.done()
        slow.gates["put"].set()
        return await task

    image = asyncio.run(run())
    assert (image.id, image.status) == ("a", "created")


def test_who_hangs_up_takes_nothing_out_of_the_hands_of_the_store(tmp_path):
    async def run():
        slow = Slow("put")
        inset = ingress(tmp_path, LIMITS, **dict.fromkeys(HANDLES, slow))
        task = asyncio.create_task(inset.index(b"x", id="a"))
        while "put" not in slow.begun:
            await asyncio.sleep(0.01)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.1)
        slow.gates["put"].set()
        await asyncio.wait([task])
        await asyncio.sleep(0.01)
        return slow

    assert asyncio.run(run()).ended[-1] == "put"


def test_a_deletion_is_answered_as_it_is(tmp_path):
    async def run():
        slow = Slow("delete")
        inset = ingress(tmp_path, LIMITS, **dict.fromkeys(HANDLES, slow))
        task = asyncio.create_task(inset.delete("a"))
        await asyncio.sleep(0.4)
        slow.gates["delete"].set()
        return await task

    assert asyncio.run(run()) == 7


def test_a_photo_that_would_take_too_long_is_refused_at_once(tmp_path):
    """And the answer says when there will be room."""

    async def run():
        slow = Slow("find")
        slow.gates["find"].set()
        inset = ingress(tmp_path, {"limits": {"timeout_s": 40}}, **dict.fromkeys(HANDLES, slow))
        clock = Clock()
        inset.progress = Progress(clock)
        for _ in range(FEWEST):  # 10 s for a photo
            with inset.progress.working() as indexed:
                clock.now += 10
                indexed()
        slow.gates["find"].clear()
        admitted = [asyncio.create_task(inset.index(b"%d" % number)) for number in range(3)]
        while len(slow.begun) < 3:
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="Try again in 10 s") as caught:
            await inset.index(b"x")
        assert caught.value.retry_after_s == 10
        assert len(slow.begun) == 3  # no work was done for it
        slow.gates["find"].set()
        assert [one.status for one in await asyncio.gather(*admitted)] == ["created"] * 3
        assert (await inset.index(b"x")).status == "created"

    asyncio.run(run())


# Whether it is ready


class Standing:
    """All deployments that `ready` asks in one.

    Args:
        room: bytes that the store has room for.
        unfollowed_s: since when the chunk index has heard nothing of the store.
    """

    def __init__(self, room=10**9, unfollowed_s=1.5):
        self.last_and_room = 12, room
        self.known = 10, unfollowed_s

    async def ping(self):
        return None

    async def room(self):
        return self.last_and_room

    async def lag(self):
        return self.known


def ready(folder, standing):
    inset = ingress(folder, **dict.fromkeys(HANDLES, standing))
    clock = Clock()
    inset.progress = Progress(clock)
    with inset.progress.working():
        clock.now += 3
        with inset.progress.working():
            clock.now += 1
            return asyncio.run(inset.ready())


def test_who_is_ready_says_how_far_it_is_from_not_being_so(tmp_path):
    assert ready(tmp_path, Standing()).model_dump() == {
        "status": "ready",
        "photos_in_work": 2,
        "oldest_s": 4,
        "room_bytes": 10**9,
        "index_lag": 2,
        "index_unfollowed_s": 1.5,
    }


@pytest.mark.parametrize(
    ("standing", "sentence"),
    [
        (Standing(room=10**6), "has room for 1,000,000 bytes more.*a photo may have"),
        (Standing(unfollowed_s=11), "not heard from the store for 11 s"),
        (Failing(RayActorError()), "being restarted"),
    ],
)
def test_who_could_not_store_and_find_a_photo_now_is_not_ready(tmp_path, standing, sentence):
    with pytest.raises(Unavailable, match=sentence):
        ready(tmp_path, standing)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Refusing:
    """A store that remembers under which id it was asked for what, and is full."""

    def __init__(self):
        self.ids = []

    async def find(self, id, sha256):
        self.ids.append(id)
        raise StoreFull("Full.")


def test_an_id_that_another_photo_may_get_is_refused(tmp_path):
    """Else anybody could take the id of a photo that isn't theirs, before it is stored."""
    digest = hashlib.sha256(b"x").hexdigest()
    store = Refusing()
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, store))
    foreign = hashlib.sha256(b"another").hexdigest()
    for id in (foreign, foreign.upper(), digest.upper(), "0" * 64, "aB" * 32):
        with pytest.raises(BadParameter, match=f"{id} looks like a SHA-256.*{digest}"):
            asyncio.run(inset.index(b"x", id=id))
    assert store.ids == []
    allowed = [digest, None, "0" * 63, "0" * 65, "g" * 64, "a." * 32]
    for id in allowed:
        with pytest.raises(StoreFull):
            asyncio.run(inset.index(b"x", id=id))
    assert store.ids == [id or digest for id in allowed]


def test_a_part_is_within_the_original(tmp_path):
    inset = ingress(tmp_path)
    for start, stop in ((-1, 5), (5, 4)):
        with pytest.raises(BadParameter, match="start"):
            asyncio.run(inset.part("a", "0" * 64, start, stop))


# Searches while photos come and go


def record(id, sequence=1, chunks=1):
    box = (0, 0, 10, 10)
    return Record(
        id=id,
        filename=None,
        media_type="image/png",
        bytes=1,
        sha256="0" * 64,
        width=10,
        height=10,
        animated=False,
        indexed_at="2026-01-01T00:00:00.000+00:00",
        sequence=sequence,
        chunks=[Chunk(box=box, source="whole")] * chunks,
    )


class Moving:
    """All deployments of a search in one; things happen to the store after the photos were ranked.

    Args:
        content: the photos when the search begins, nearest first.
        events: what happens after each ranking: a function that changes the store.
        damaged: photos whose record can't be read.
    """

    def __init__(self, content, events=(), damaged=()):
        self.store = {id: record(id, number + 1) for number, id in enumerate(content)}
        self.sequence = len(content)
        self.index = dict(self.store), self.sequence
        self.events = list(events)
        self.damaged = set(damaged)
        self.asked = []
        self.filters = []

    async def encode_query(self, data, box, sketched):
        return EncodedQuery(np.zeros(4), None)

    async def rank(self, vector, options, sequence):
        self.asked.append(sequence)
        self.filters.append(options.filter)
        if sequence > self.sequence:
            raise UnknownSequence(f"The change {sequence} has not happened.")
        if sequence > self.index[1]:  # a search waits for what it must know, and sees no more
            self.index = dict(self.store), self.sequence
        photos, _ = self.index
        ranked = [
            RankedPhoto(id, number / 10, [(chunk, number / 10) for chunk in range(len(r.chunks))])
            for number, (id, r) in enumerate(photos.items())
        ][: options.limit]
        if self.events:
            self.events.pop(0)(self)
        return ranked, self.index[1]

    async def records(self, ids):
        found = [None if id in self.damaged else self.store.get(id) for id in ids]
        return [record and record.model_dump_json().encode() for record in found], self.sequence

    async def delete(self, id):
        self.sequence += 1
        del self.store[id]
        return self.sequence


def deletion(id):
    def happen(moving):
        moving.sequence += 1
        del moving.store[id]

    return happen


def replacement(id, chunks):
    def happen(moving):
        moving.sequence += 2
        moving.store[id] = record(id, moving.sequence, chunks)

    return happen


def search(folder, moving, limit, deleted=None):
    async def both():
        inset = ingress(folder, **dict.fromkeys(HANDLES, moving))
        if deleted is not None:
            await inset.delete(deleted)
        return [match.id for match in (await inset.search(b"x", limit=limit)).matches]

    return asyncio.run(both())


def test_a_quiet_search_ranks_once(tmp_path):
    moving = Moving("abcd")
    assert search(tmp_path, moving, 2) == ["a", "b"]
    assert moving.asked == [4]


def test_a_new_ingress_knows_what_was_changed_through_the_one_before(tmp_path):
    """It asks the store for its last change, once."""
    moving = Moving("abcd", [deletion("c")])
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, moving))

    async def run():
        await inset.delete("a")  # which alone tells nothing of those before
        for _ in range(3):
            await inset.search(b"x", limit=1)

    asyncio.run(run())
    assert moving.asked == [5, 5, 5]


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (5, 0, 3, 5), (0, 5, 5, 5), (float("nan"), 0, 3, 5), (0, 0, math.inf, 5)]
)
def test_an_empty_box_is_refused(tmp_path, box):
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, Moving("a")))
    with pytest.raises(BadParameter, match="x1 < x2"):
        asyncio.run(inset.search(id="a", box=box))


def test_a_photo_deleted_meanwhile_makes_room_for_another(tmp_path):
    moving = Moving("abcd", [deletion("a")])
    assert search(tmp_path, moving, 2) == ["b", "c"]
    assert moving.asked == [4, 5]


def test_several_deletions_one_after_another(tmp_path):
    moving = Moving("abcd", [deletion("a"), deletion("b"), deletion("c")])
    assert search(tmp_path, moving, 2) == ["d"]
    assert moving.asked == [4, 5, 6, 7]


def test_a_damaged_record_does_not_take_the_others_away(tmp_path):
    moving = Moving("abcd", damaged="b")
    assert search(tmp_path, moving, 3) == ["a", "c"]
    assert len(moving.asked) <= 2


def test_a_search_knows_what_was_deleted_through_the_same_ingress(tmp_path):
    moving = Moving("abcd")
    assert search(tmp_path, moving, 2, deleted="a") == ["b", "c"]
    assert moving.asked == [5]


def test_a_photo_replaced_meanwhile_is_ranked_anew(tmp_path):
    """The numbers of the chunks were those of its former content."""
    moving = Moving("ab")
    moving.store["a"] = record("a", chunks=3)
    moving.index = dict(moving.store), moving.sequence
    moving.events = [replacement("a", chunks=1)]
    assert search(tmp_path, moving, 2) == ["a", "b"]
    assert moving.asked == [2, 4]


def restoration(content):
    """The store becomes an older copy of itself, with fewer changes."""

    def happen(moving):
        moving.store = {id: record(id, number + 1) for number, id in enumerate(content)}
        moving.sequence = len(content)
        moving.index = {}, 0

    return happen


def test_a_store_that_was_restored_is_searched_as_it_is_now(tmp_path):
    """What went through the ingress before is forgotten, but not what went through it since."""

    async def run():
        moving = Moving("abcdef")
        inset = ingress(tmp_path, **dict.fromkeys(HANDLES, moving))
        await inset.delete("a")
        restoration("xyz")(moving)
        await inset.delete("x")
        first = await inset.search(b"x")
        second = await inset.search(b"x")
        return moving.asked, [[match.id for match in one.matches] for one in (first, second)]

    asked, found = asyncio.run(run())
    assert found == [["y", "z"]] * 2
    assert asked == [7, 4, 4]


def test_a_store_may_be_restored_during_a_search(tmp_path):
    moving = Moving("abcd", [lambda moving: (deletion("a")(moving), restoration("x")(moving))])
    moving.index = {}, 0
    assert search(tmp_path, moving, 2, deleted="b") == ["x"]


def test_what_a_client_must_know_is_not_forgotten(tmp_path):
    moving = Moving("abcd")
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, moving))
    for min_sequence in (5, 10**6):
        with pytest.raises(UnknownSequence, match=f"{min_sequence} has not happened"):
            asyncio.run(inset.search(b"x", min_sequence=min_sequence))
    assert asyncio.run(inset.search(b"x", min_sequence=4)).matches
    assert moving.asked == [5, 10**6, 4]


def test_the_ranker_gets_the_filter(tmp_path):
    moving = Moving("abcd")
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, moving))
    for filter in ("k=1", ["k=1", "l=x"], (), []):
        asyncio.run(inset.search(b"x", filter=filter))
    one, two = Filter.parse(["k=1"]), Filter.parse(["k=1", "l=x"])
    assert moving.filters == [one, two, None, None]


def test_a_photo_that_is_missing_is_gone_as_of_the_sequence_number(tmp_path):
    """Between a commit and its announcement as well: else no search would look again."""
    store = make("Store", tmp_path / "store")
    whole = [Chunk(box=(0, 0, 10, 10), source="whole")]
    vectors = np.zeros((1, 256), np.float32)
    photo = EncodedPhoto(10, 10, "image/png", False, whole, vectors, b"", b"")
    store.store.apply([Put("a", b"x", None, photo)])
    (deleted,) = store.store.apply([Delete("a")])
    (missing,), sequence = asyncio.run(store.records(["a"]))
    store.store.close()
    assert missing is None
    assert sequence >= deleted


# Thumbnails


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
