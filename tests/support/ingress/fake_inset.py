"""A service that only remembers what it was asked, and a request for each of its operations."""

import hashlib
from dataclasses import astuple
from types import MappingProxyType

from deployments.errors import Unavailable
from deployments.ingress.indexing import index_each
from deployments.ingress.progress import Progress
from deployments.records import (
    Chunk,
    EncoderState,
    IndexedImage,
    IndexState,
    Match,
    MatchedChunk,
    Readiness,
    Record,
    SearchAnswer,
    Stats,
    StoreState,
    Summary,
)
from deployments.settings import LimitSettings

LIMITS = LimitSettings(max_image_bytes=1000, max_request_bytes=5000, max_pixels=10**6, timeout_s=1)
PICTURE = b"picture"
THUMBNAIL = b"small picture"
DIGEST = hashlib.sha256(PICTURE).hexdigest()
ETAG = f'"{DIGEST}"'
BOX = (0, 0, 20, 10)
PNG = {"content-type": "image/png"}

REQUESTS = {
    "index": ("POST", "/index", {"content": PICTURE, "headers": PNG}),
    "search": ("POST", "/search", {"content": PICTURE, "headers": PNG}),
    "list": ("GET", "/images", {}),
    "get": ("GET", "/images/a", {}),
    "thumbnail": ("GET", "/images/a/thumbnail", {}),
    "record": ("GET", "/images/a/record", {}),
    "delete": ("DELETE", "/images/a", {}),
    "check": ("GET", "/healthz", {}),
    "ready": ("GET", "/readyz", {}),
    "stats": ("GET", "/stats", {}),
}
STATUSES = {"index": 201, "delete": 204}
# What an operation asks for first.
ASKS = {"get": ["record"]}


def known(id, filename=None, metadata=MappingProxyType({}), content=PICTURE):
    return Record(
        id=id,
        filename=filename,
        media_type="image/png",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        width=20,
        height=10,
        animated=False,
        indexed_at="2026-01-01T00:00:00.000+00:00",
        sequence=1,
        metadata=metadata,
        chunks=[Chunk(box=BOX, source="whole")],
    )


class FakeInset:
    """Remembers each call; raises an error where it is told to."""

    limits = LIMITS

    def __init__(self):
        self.calls = []
        self.error = None
        self.bad = {}  # errors of the images with these bytes
        self.ids = ["a", "b", "c"]
        self.content = PICTURE  # of every photo
        self.existing = set()  # images with these bytes are stored already
        self.progress = Progress()
        self.search_progress = Progress()
        self.full = None  # the progress that has no room
        self.work = None  # an async function that is awaited with the bytes of each image

    def remember(self, *call):
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def check_room(self, progress):
        if progress is self.full:
            raise Unavailable("There is no room.", retry_after_s=7)

    def index_each(self, photos):
        return index_each(photos, self._index, self.progress, group=1)

    async def _index(self, photos):
        return [await self.index(*astuple(photo)) for photo in photos]

    async def index(self, data, id, filename, confidence_threshold, metadata):
        self.remember("index", data, id, filename, confidence_threshold, metadata)
        with self.progress.working() as indexed:
            if self.work is not None:
                await self.work(data)
            if data in self.bad:
                raise self.bad[data]
            status = "exists" if data in self.existing else "created"
            if status == "created":
                indexed()
        return IndexedImage(
            status=status, **dict(known(id or "generated", filename, metadata or {}))
        )

    async def search(self, data, **query):
        self.remember("search", data, query)
        chunk = MatchedChunk(box=BOX, source="tile", distance=0.25, label=None)
        match = {"id": "a", "distance": 0.25, "chunks": [chunk]}
        nearest = {"box": BOX, "source": "tile", "label": None}
        of_photo = {"filename": None, "width": 20, "height": 10, "url": "/images/a"}
        return SearchAnswer(found=None, matches=[Match(**match, **nearest, **of_photo)])

    async def get(self, id):
        self.remember("get", id)
        return known(id, content=self.content), self.content

    async def part(self, id, sha256, start, stop):
        self.remember("part", id, start, stop)
        same = sha256 == hashlib.sha256(self.content).hexdigest()
        return self.content[start:stop] if same else None

    async def thumbnail(self, id):
        self.remember("thumbnail", id)
        return THUMBNAIL

    async def record(self, id):
        self.remember("record", id)
        return known(id, content=self.content)

    async def list(self, after, limit, chunks):
        self.remember("list", after, limit, chunks)
        records = [known(id) for id in self.ids if after is None or id > after][:limit]
        return records if chunks else [Summary(**dict(record)) for record in records]

    async def delete(self, id):
        self.remember("delete", id)
        return 2

    async def stats(self):
        self.remember("stats")
        sizes = {"original_bytes": 1, "used_bytes": 1, "map_bytes": 1}
        return Stats(
            store=StoreState(photos=1, chunks=1, sequence=1, **sizes),
            chunk_index=IndexState(
                engine="exact",
                photos=1,
                chunks=1,
                sequence=1,
                digest="0" * 16,
                waiting=0,
                removed=0,
                snapshot=None,
                snapshot_bytes=0,
            ),
            encoder=EncoderState(name="clip", dimension=4, digest="0" * 64, text=False),
            segmenter="yolov5s",
        )

    async def ready(self):
        self.remember("ready")
        return Readiness(
            photos_in_work=0, oldest_s=0, room_bytes=10**9, index_lag=0, index_unfollowed_s=1
        )

    async def check(self):
        self.remember("check")
