"""What each option of the config does to the deployments that it is for."""

import asyncio
import json
import os
import threading
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from deployments.errors import ModelUnavailable, StartupError, StoreFull, TooLarge, Unavailable
from deployments.ingress.app import build_app
from deployments.query import SearchOptions
from deployments.records import Changes, CheckedPhoto, EncoderState, Position
from deployments.segmenter.files import find_detector
from deployments.settings import SegmenterSettings
from tests.support.graph.graph_in_process import (
    HANDLES,
    OPERATIONS,
    Handle,
    bound,
    call,
    ingress,
    make,
    run,
)
from tests.support.photos.exif import SAID, of_a_phone
from tests.support.photos.pictures import encode, pixels

pytestmark = pytest.mark.usefixtures("batches_without_replicas")


# segmenter

# Small, so that it is fast; and exact.
SMALL = {"image_size": 64, "dtype": "float32", "device": "cpu"}


def encode_photo(data, tmp_path, threshold=None, **options):
    made = make("PhotoEncoder", tmp_path, {"segmenter": options})
    return asyncio.run(one(made.encode([checked(data, threshold)])))


def checked(data, threshold=None):
    return CheckedPhoto("a", "0" * 64, data, None, threshold, {})


async def one(outcomes):
    """Wait for what becomes of a single photo."""
    (outcome,) = await outcomes
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@pytest.mark.slow
def test_model_name_or_path(tmp_path):
    """A checkpoint somewhere else; and what `/stats` calls it."""
    file = tmp_path / "my" / "detector.pt"
    file.parent.mkdir()
    file.symlink_to(find_detector(SegmenterSettings()).path)
    changes = {"segmenter": SMALL | {"model_name_or_path": str(file)}}
    made = make("PhotoEncoder", tmp_path, changes)
    assert "motorcycle" in made.photo_encoder.segmenter.detector.names
    assert bound(tmp_path, changes)["Ingress"].init_kwargs["detector"] == "my/detector.pt"
    file.unlink()
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ModelUnavailable, match=r"detector\.pt"):
        make("PhotoEncoder", tmp_path, changes)


@pytest.mark.slow
def test_confidence_threshold(pictures, tmp_path):
    found = [
        len(
            encode_photo(
                pictures["coffee"], tmp_path, tiles=[], confidence_threshold=threshold
            ).chunks
        )
        for threshold in (0.05, 0.3, 0.95)
    ]
    assert found[0] > found[1] > found[2] == 1
    photo = encode_photo(pictures["coffee"], tmp_path, tiles=[], confidence_threshold=0.05)
    assert all(chunk.confidence > 0.05 for chunk in photo.chunks[:-1])


@pytest.mark.slow
def test_iou_threshold(pictures, tmp_path):
    def cups(iou_threshold):
        photo = encode_photo(pictures["coffee"], tmp_path, iou_threshold=iou_threshold)
        return [chunk.label for chunk in photo.chunks].count("cup")

    assert cups(0.45) == 1
    assert cups(1) > 1


@pytest.mark.slow
def test_image_size(tmp_path, pictures):
    """What the network is given, of a photo of 451 x 300 pixels."""
    shapes = []
    for size in (64, 320):
        made = make("PhotoEncoder", tmp_path, {"segmenter": SMALL | {"image_size": size}})
        segmenter = made.photo_encoder.segmenter
        segmenter.detector.network.register_forward_pre_hook(
            lambda _, args: shapes.append(tuple(args[0].shape[2:]))
        )
        segmenter.segment([pictures["chelsea"]])
    assert [max(shape) for shape in shapes] == [64, 320]


@pytest.mark.slow
def test_tiles_their_overlap_max_tiles_and_min_tile_contrast(pictures, tmp_path):
    def count(**options):
        photo = encode_photo(pictures["coffee"], tmp_path, **SMALL, **options)
        return [chunk.source for chunk in photo.chunks].count("tile")

    assert count(tiles=[]) == 0
    assert count(tiles=[2]) == count(tiles=[2], max_tiles=9) == 9
    assert count(tiles=[2, 3], tile_overlap=0.5) == 34
    with pytest.raises(StartupError, match=r"34 tiles .* max_tiles must be at least that"):
        count(tiles=[2, 3], tile_overlap=0.5, max_tiles=33)
    assert 0 < count(tiles=[2, 3], min_tile_contrast=30) < 25


async def begin_in_turn(calls, sizes, waiting):
    """Make calls one after another: while each waits for the next, or when it has begun.

    Args:
        calls: functions that return coroutines.
        sizes: of the batches that have begun.
        waiting: whether a call waits for the next one; None if all are made at once.
    """
    begun = []
    for begin in calls:
        begun.append(asyncio.ensure_future(begin()))
        if waiting is not None:
            await asyncio.sleep(0.3)
        while waiting is False and len(sizes) < len(begun):
            await asyncio.sleep(0.01)
    await asyncio.gather(*begun)


async def photo_batches(made, photos, waiting=None):
    """How many photos went through the network at once; see `begin_in_turn`."""
    sizes = []
    made.photo_encoder.segmenter.detector.network.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    calls = [lambda photo=photo: one(made.encode([checked(photo)])) for photo in photos]
    await asyncio.wait_for(begin_in_turn(calls, sizes, waiting), 60)
    return sizes


async def crop_batches(encoder, pictures, waiting=None):
    """The same for queries."""
    sizes = []
    encoder.encoder.tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    calls = [
        lambda picture=picture: encoder.encode_query(picture, None, False) for picture in pictures
    ]
    await asyncio.wait_for(begin_in_turn(calls, sizes, waiting), 60)
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "expected"), [(1, [1, 1, 1]), (2, [2, 1]), (4, [3])])
def test_batch_size_of_the_segmenter(tmp_path, pictures, batch_size, expected):
    options = SMALL | {"batch_size": batch_size, "batch_wait_ms": 1000, "threads": 1}
    made = make("PhotoEncoder", tmp_path, {"segmenter": options})
    assert asyncio.run(photo_batches(made, [pictures["chelsea"]] * 3)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("batch_wait_ms", "expected"), [(0, [1, 1]), (10_000, [2])])
def test_batch_wait_ms_of_the_segmenter(tmp_path, pictures, batch_wait_ms, expected):
    options = SMALL | {"batch_size": 2, "batch_wait_ms": batch_wait_ms}
    made = make("PhotoEncoder", tmp_path, {"segmenter": options})
    start = time.monotonic()
    sizes = asyncio.run(photo_batches(made, [pictures["chelsea"]] * 2, batch_wait_ms > 0))
    assert sizes == expected
    assert time.monotonic() - start < 9  # a batch that is full goes at once


# encoder


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "expected"), [(1, [1, 1, 1]), (2, [2, 1]), (4, [3])])
def test_batch_size_of_the_encoder(tmp_path, pictures, batch_size, expected):
    options = {"batch_size": batch_size, "batch_wait_ms": 1000}
    encoder = make("QueryEncoder", tmp_path, {"encoder": options})
    assert asyncio.run(crop_batches(encoder, [pictures["chelsea"]] * 3)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("batch_wait_ms", "expected"), [(0, [1, 1]), (10_000, [2])])
def test_batch_wait_ms_of_the_encoder(tmp_path, pictures, batch_wait_ms, expected):
    options = {"batch_size": 2, "batch_wait_ms": batch_wait_ms}
    encoder = make("QueryEncoder", tmp_path, {"encoder": options})
    start = time.monotonic()
    sizes = asyncio.run(crop_batches(encoder, [pictures["chelsea"]] * 2, batch_wait_ms > 0))
    assert sizes == expected
    assert time.monotonic() - start < 9


@pytest.mark.slow
def test_batches_of_crops_are_limited_by_their_number(tmp_path, pictures):
    """A photo with more crops than a batch takes, together with another one."""
    changes = {"segmenter": {"batch_size": 2}, "encoder": {"batch_size": 4, "dtype": "float32"}}
    made = make("PhotoEncoder", tmp_path, changes)
    sizes = []
    made.photo_encoder.encoder.tower.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    photos = made.photo_encoder.encode([pictures["coffee"], pictures["chelsea"]])
    assert len(photos[0].chunks) > 4
    assert max(sizes) <= 4
    assert sum(sizes) == sum(len(photo.chunks) for photo in photos)
    assert len(sizes) == -(-sum(sizes) // 4)


@pytest.mark.slow
def test_the_encoder_can_be_a_folder(tmp_path, pictures):
    """Named so in the config; the store belongs to it, and the crops have its size."""
    folder = tmp_path / "my" / "clip"
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = CLIPVisionConfig(
        **tower, num_attention_heads=2, image_size=48, patch_size=8, projection_dim=24
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    deployments = bound(tmp_path, {"encoder": {"pretrained_model_name_or_path": str(folder)}})
    encoder = make(
        "QueryEncoder", tmp_path, {"encoder": {"pretrained_model_name_or_path": str(folder)}}
    )
    vector = asyncio.run(encoder.encode_query(pictures["chelsea"], None, False)).vector
    assert vector.shape == (24,)
    identity = encoder.encoder.files.identity
    assert identity.name == "my/clip"
    assert deployments["Ingress"].init_kwargs["encoder"] == EncoderState(
        name="my/clip", dimension=24, digest=identity.digest, text=False
    )
    assert identity in deployments["Store"].init_args
    assert 24 in deployments["ChunkIndex"].init_args
    changes = {"encoder": {"pretrained_model_name_or_path": str(folder)}}
    segmenter = make("PhotoEncoder", tmp_path, changes).photo_encoder.segmenter
    assert (segmenter.crop_size, segmenter.squash) == (48, False)
    preprocessing = {"size": {"height": 48, "width": 48}, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    assert make("PhotoEncoder", tmp_path, changes).photo_encoder.segmenter.squash


# device, dtype, threads: of every deployment that computes


def computing(name, folder, section, options):
    """A deployment, where its network computes, and the network."""
    made = make(name, folder, {section: options})
    both = made.photo_encoder if name == "PhotoEncoder" else made
    if section == "segmenter":
        return made, both.segmenter.placement.device, both.segmenter.detector.network
    return made, both.encoder.placement.device, both.encoder.tower


COMPUTING = [
    ("PhotoEncoder", "segmenter"),
    ("PhotoEncoder", "encoder"),
    ("QueryEncoder", "encoder"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "section"), COMPUTING)
def test_device(tmp_path, name, section):
    options = SMALL if section == "segmenter" else {}
    if torch.cuda.is_available():
        _, device, network = computing(name, tmp_path, section, options | {"device": "cuda"})
        assert device.type == next(network.parameters()).device.type == "cuda"
    else:
        with pytest.warns(UserWarning, match="device 'cuda' was asked for"):
            _, device, _ = computing(name, tmp_path, section, options | {"device": "cuda"})
        assert device.type == "cpu"
    _, device, network = computing(name, tmp_path, section, options | {"device": "cpu"})
    assert device.type == next(network.parameters()).device.type == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "section"), COMPUTING)
def test_backend(monkeypatch, tmp_path, name, section):
    """By as many threads as torch would have."""
    options = SMALL if section == "segmenter" else {}
    options = options | {"backend": "openvino", "device": "auto", "threads": 1}
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # of photos' passes, the segmenter says it
    _, device, network = computing(name, tmp_path, section, options)
    assert device.type == "cpu"
    compiled = network.compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "section"), COMPUTING)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(tmp_path, name, section, dtype):
    options = SMALL if section == "segmenter" else {}
    _, _, network = computing(name, tmp_path, section, options | {"dtype": dtype})
    assert next(network.parameters()).dtype == getattr(torch, dtype)


@pytest.fixture
def eight_cores(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "section", "threads", "expected"),
    [
        ("PhotoEncoder", "segmenter", None, 8 * [1]),
        ("PhotoEncoder", "segmenter", 3, 3 * [1]),
        ("QueryEncoder", "encoder", None, [1]),
        ("QueryEncoder", "encoder", 3, [3]),
    ],
)
def test_threads(eight_cores, tmp_path, name, section, threads, expected):
    """A pass in each, for photos; all of them in one, or one alone, for queries."""
    options = SMALL if section == "segmenter" else {}
    made, _, _ = computing(name, tmp_path, section, options | {"threads": threads})
    assert teams(made) == expected


def teams(deployment):
    """How many threads of torch each pass of a deployment's network has."""
    everyone = threading.Barrier(deployment.passes._threads._max_workers)

    def size():
        everyone.wait(timeout=10)
        return torch.get_num_threads()

    return [
        f.result()
        for f in [deployment.passes._threads.submit(size) for _ in range(everyone.parties)]
    ]


@pytest.mark.slow
def test_threads_for_the_queries_of_a_large_encoder(eight_cores, tmp_path, monkeypatch):
    monkeypatch.setattr("deployments.encoder.files.SMALL_BYTES", 0)
    made, _, _ = computing("QueryEncoder", tmp_path, "encoder", {})
    assert teams(made) == [8]


# chunk_index and ranker


class EmptyStore:
    async def changes(self, position, wait_s, follower, kept):
        await asyncio.sleep(wait_s)
        return Changes(position is None, [], Position("history", 0, 0), 0)


@asynccontextmanager
async def chunk_index_deployment(folder, changes):
    """The deployment as the graph binds it, on a store that has nothing."""
    deployment = bound(folder, changes)["ChunkIndex"]
    *args, _ = deployment.init_args
    made = deployment.func_or_class.__new__(deployment.func_or_class)
    await made.__init__(*args, Handle(EmptyStore()))
    await made.check_health()
    yield made
    for task in made._tasks:
        task.cancel()


def chunk_index(folder, **options):
    async def start():
        async with chunk_index_deployment(folder, {"chunk_index": options}) as made:
            return made.follower.index

    return asyncio.run(start())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_of_the_chunk_index(tmp_path, dtype):
    """What is remembered of a vector is as exact as the number format, and no more."""
    index = chunk_index(tmp_path, engine="exact", dtype=dtype)
    vector = np.random.default_rng(0).standard_normal(index.dimension).astype(np.float32)
    vector = (vector / np.linalg.norm(vector)).astype(np.float16)  # as it comes from the store
    index.put("a", vector[None])
    assert index._segments[0].engine._blocks.dtype == getattr(torch, dtype)
    (remembered,) = index._segments[0].engine.vectors(np.array([0]))
    error = np.abs(remembered - vector).max()
    assert (error == 0) == (dtype != "bfloat16")


def test_device_of_the_chunk_index(tmp_path):
    def device(name):
        return (
            chunk_index(tmp_path, engine="exact", device=name)
            ._segments[0]
            .engine._blocks.device.type
        )

    if torch.cuda.is_available():
        assert device("cuda") == "cuda"
    else:
        with pytest.warns(UserWarning, match="device 'cuda' was asked for"):
            assert device("cuda") == "cpu"
    assert device("cpu") == "cpu"


def at(*distances):
    """Vectors at these cosine distances from the first axis."""
    cosines = 1 - np.array(distances)
    vectors = np.zeros((len(distances), 256), np.float32)
    vectors[:, 0], vectors[:, 1] = cosines, np.sqrt(1 - cosines**2)
    return vectors


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("min", [("extreme", 0.1), ("moderate", 0.3)]),
        ("mean", [("moderate", 0.35), ("extreme", 0.5)]),
        ("max", [("moderate", 0.4), ("extreme", 0.9)]),
    ],
)
def test_aggregation(tmp_path, aggregation, expected):
    """One has a chunk that is near and one that is far, the other has two between them."""

    async def rank():
        async with chunk_index_deployment(
            tmp_path, {"ranker": {"aggregation": aggregation}}
        ) as made:
            made.follower.index.put("extreme", at(0.1, 0.9))
            made.follower.index.put("moderate", at(0.3, 0.4))
            (query,) = at(0)
            return await made.rank(query, SearchOptions(2, max_chunks=1), 0)

    ranked, _ = asyncio.run(rank())
    assert [(photo.id, pytest.approx(photo.distance, abs=1e-3)) for photo in ranked] == expected
    assert [len(photo.chunks) for photo in ranked] == [1, 1]


# store and limits


@pytest.fixture(scope="module")
def strict_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strict") / "new" / "store"


@pytest.fixture(scope="module")
def strict(slow, batches_without_replicas, strict_folder):
    """A graph that refuses what the other one takes."""
    limits = {"max_image_bytes": 2 * 2**20, "max_pixels": 250_000}
    return run(strict_folder, {"limits": limits, "store": {"max_bytes": 2**20}})


def test_path_of_the_store(strict, strict_folder):
    assert (strict_folder / "data.mdb").is_file()


def test_max_bytes_of_the_store(strict, inset, pictures):
    large = pictures["chelsea"] + os.urandom(2**20)  # what comes after its end is ignored
    with pytest.raises(StoreFull, match="1,048,576 bytes"):
        call(strict.index, large)
    assert call(strict.index, pictures["chelsea"]).status == "created"
    assert call(inset.index, large, id="large").status == "created"
    call(inset.delete, "large")


def test_max_image_bytes(strict, inset, pictures):
    large = pictures["chelsea"] + os.urandom(2 * 2**20)
    for refused in (strict.index, strict.search):
        with pytest.raises(TooLarge, match="2,097,152 are accepted"):
            call(refused, large)
    assert call(inset.search, large, limit=1).matches[0].id == "chelsea"


def test_max_pixels(strict, inset, pictures):
    data = pictures["motorcycle"]
    for refused in (strict.index, strict.search):
        with pytest.raises(TooLarge, match="250,000 are accepted"):
            call(refused, data)
    assert call(inset.search, data, limit=1).matches[0].id == "motorcycle"


def test_max_request_bytes(tmp_path, pictures):
    app = build_app(ingress(tmp_path, {"limits": {"max_request_bytes": 1000}}))
    answer = TestClient(app, base_url="http://localhost").post(
        "/index", files=[("file", ("a", b"x" * 600))] * 2
    )
    assert answer.status_code == 413
    assert "1,000 bytes" in answer.json()["detail"]


class Hung:
    """A deployment that never answers."""

    def __getattr__(self, name):
        async def hang(*args):
            await asyncio.Event().wait()

        return hang


# What the store has got is awaited: see tests/unit/ingress/test_inset.py.
LIMITED = [one for one in OPERATIONS if one[0] != "delete"]


@pytest.mark.parametrize(("operation", "args"), LIMITED)
def test_timeout_s(tmp_path, operation, args):
    targets = dict.fromkeys(HANDLES, Hung())
    inset = ingress(tmp_path, {"limits": {"timeout_s": 0.1}}, **targets)
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"longer than 0\.1 s"):
        asyncio.run(getattr(inset, operation)(*args))
    assert 0.1 <= time.monotonic() - start < 10


# exif


@pytest.mark.slow
def test_exif(tmp_path):
    """What is not wanted doesn't leave the photo encoder."""
    photo = encode(pixels("exif"), "JPEG", exif=of_a_phone())
    without = {name: SAID[name] for name in ("date_taken", "camera", "lens")}
    for exif, facts in ((True, SAID), ("no-location", without), (False, {})):
        made = make("PhotoEncoder", tmp_path, {"segmenter": SMALL, "exif": exif})
        encoded = asyncio.run(one(made.encode([checked(photo)])))
        assert encoded.facts == facts
