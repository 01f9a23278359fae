"""What the ingress makes of the deployments: of their failures, and of what takes too long."""

import asyncio
import hashlib
import subprocess
import sys

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

from deployments.errors import (
    BadParameter,
    IdTaken,
    NotAnImage,
    StoreFull,
    Unavailable,
    UnknownId,
)
from deployments.flows import ON_THE_WAY
from deployments.ingress.progress import FEWEST, Progress
from deployments.records import IndexedImage, NewPhoto, Stored
from tests.support.graph.graph_in_process import HANDLES, OPERATIONS, ingress
from tests.support.paths import ROOT
from tests.support.stored.records import record


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
        async def encode(self, photos):
            return photos

        async def find(self, wanted):
            return [None] * len(wanted)

        async def put(self, photos, encoded):
            names.extend(photo.filename for photo in photos)
            return [StoreFull("Full.")] * len(photos)

    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, Indexing()))
    for name in ("cafe\u0301.png", "a" * 2000, "a\udcff", None):
        with pytest.raises(StoreFull):
            asyncio.run(inset.index(b"x", filename=name))
    assert names == ["café.png", "a" * 1000, "a?", None]


# Several photos


class Grouped:
    """All deployments in one, which remember the photos of each call."""

    def __init__(self):
        self.groups = {"find": [], "encode": [], "put": []}
        self.most, self.running = 0, 0

    async def find(self, wanted):
        self.running += 1
        self.most = max(self.most, self.running)
        self.groups["find"].append([id for id, _ in wanted])
        answers = {"taken": IdTaken("It is taken."), "known": record("known")}
        return [answers.get(id) for id, _ in wanted]

    async def encode(self, photos):
        self.groups["encode"].append([photo.id for photo in photos])
        await asyncio.sleep(0.01)
        return [NotAnImage("No.") if photo.data == b"bad" else photo.id for photo in photos]

    async def put(self, photos, encoded):
        self.groups["put"].append([photo.id for photo in photos])
        self.running -= 1
        return [
            one if isinstance(one, Exception) else Stored(record(photo.id), created=True)
            for photo, one in zip(photos, encoded, strict=True)
        ]


def test_photos_go_together_from_call_to_call(tmp_path):
    grouped = Grouped()
    inset = ingress(tmp_path, group=4, **dict.fromkeys(HANDLES, grouped))
    photos = [NewPhoto(b"x", id=f"{number}") for number in range(10)]
    images = asyncio.run(inset.index_many(photos))
    assert [image.id for image in images] == [photo.id for photo in photos]
    assert {image.status for image in images} == {"created"}
    for name, groups in grouped.groups.items():
        assert sorted(map(len, groups)) == [2, 4, 4], name


def test_a_large_group_does_not_wait_for_the_one_before(tmp_path):
    grouped = Grouped()
    inset = ingress(tmp_path, group=32, **dict.fromkeys(HANDLES, grouped))
    asyncio.run(inset.index_many([NewPhoto(b"x", id=f"{number}") for number in range(200)]))
    assert grouped.most == 2


def test_an_error_is_that_of_one_photo_of_a_group(tmp_path):
    grouped = Grouped()
    inset = ingress(tmp_path, group=16, **dict.fromkeys(HANDLES, grouped))
    photos = [
        NewPhoto(b"x", id="a"),
        NewPhoto(b"x", id="taken"),
        NewPhoto(b"x", id="not an id"),
        NewPhoto(b"x", id="known"),
        NewPhoto(b"bad", id="b"),
        NewPhoto(b"x", id="c", confidence_threshold=2),
        NewPhoto(b"x", id="d", metadata={"key": []}),
        NewPhoto(b"x", id="0" * 64),
        NewPhoto(b"x", id="e"),
    ]
    kinds = [
        outcome.status if isinstance(outcome, IndexedImage) else type(outcome)
        for outcome in asyncio.run(inset.index_many(photos))
    ]
    assert kinds == [
        "created",
        IdTaken,
        BadParameter,
        "exists",
        NotAnImage,
        BadParameter,
        BadParameter,
        BadParameter,
        "created",
    ]
    assert grouped.groups["find"] == [["a", "taken", "known", "b", "e"]]
    assert grouped.groups["encode"] == grouped.groups["put"] == [["a", "b", "e"]]
    assert inset.progress.in_work == inset.progress.unfinished == 0


def test_nothing_is_nothing(tmp_path):
    assert asyncio.run(ingress(tmp_path).index_many([])) == []


def test_a_call_that_fails_fails_its_group(tmp_path):
    inset = ingress(tmp_path, group=2, **dict.fromkeys(HANDLES, Failing(ActorDiedError())))
    outcomes = asyncio.run(inset.index_many([NewPhoto(b"x", id=id) for id in "abc"]))
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3


# Photos that take too long


class Slow:
    """All deployments in one. Each call takes until its gate is opened.

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

    async def find(self, wanted):
        await self.call("find")
        return [None] * len(wanted)

    async def encode(self, photos):
        await self.call("encode")
        return photos

    async def encode_text(self, text):
        await self.call("encode_text")

    async def put(self, photos, encoded):
        await self.call("put")
        return [Stored(record(photo.id), created=True) for photo in photos]

    async def delete(self, id):
        await self.call("delete")
        return 7


LIMITS = {"limits": {"timeout_s": 0.2}}


@pytest.mark.parametrize("late", ["find", "encode"])
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


def test_photos_wait_in_the_ingress_for_their_place(tmp_path):
    """Serve's router would ask a full replica again and again whether it has room."""

    async def run():
        slow = Slow("encode")
        inset = ingress(tmp_path, **dict.fromkeys(HANDLES, slow))
        photos = [
            asyncio.create_task(inset.index(b"x", id=str(id))) for id in range(ON_THE_WAY + 9)
        ]
        while slow.begun.count("encode") < ON_THE_WAY:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        begun = slow.begun.count("encode")
        photos[-1].cancel()  # whoever hangs up while it waits is gone
        slow.gates["encode"].set()
        await asyncio.wait(photos)
        return begun, slow.ended.count("put"), photos[-1].cancelled()

    assert asyncio.run(run()) == (ON_THE_WAY, ON_THE_WAY + 8, True)


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


def test_a_search_that_would_take_too_long_is_refused_at_once(tmp_path):
    """Photos and searches are measured apart: a photo takes many times as long."""

    async def run():
        slow = Slow("encode_text")
        inset = ingress(tmp_path, {"limits": {"timeout_s": 40}}, **dict.fromkeys(HANDLES, slow))
        clock = Clock()
        inset.search_progress = Progress(clock, inset.search_progress.what)
        for _ in range(FEWEST):  # 10 s for a search
            with inset.search_progress.working() as answered:
                clock.now += 10
                answered()
        admitted = [asyncio.create_task(inset.search(text="a cat")) for _ in range(3)]
        while len(slow.begun) < 3:
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match=r"many searches.*Try again in 10 s") as caught:
            await inset.search(text="a cat")
        assert caught.value.retry_after_s == 10
        assert len(slow.begun) == 3  # no work was done for it
        for task in admitted:
            task.cancel()
        await asyncio.wait(admitted)

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

    async def find(self, wanted):
        self.ids.extend(id for id, _ in wanted)
        return [StoreFull("Full.")] * len(wanted)


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
