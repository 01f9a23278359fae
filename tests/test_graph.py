"""The whole graph in this process, and what each option of the config does to it.

`serve.run(..., _local_testing_mode=True)` runs the real boxes with the real models, without a
cluster. Where a box has to be looked into, it is built as the graph binds it: `box` below.
"""

import asyncio
import hashlib
import io
import json
import math
import os
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import batching
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.testclient import TestClient
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import graph
from deployments.detectors import find_detector
from deployments.errors import (
    BadParameter,
    BrokenImage,
    IdTaken,
    ModelUnavailable,
    NotAnImage,
    StartupError,
    StoreFull,
    TooLarge,
    Unavailable,
    UnknownId,
    UnknownSequence,
)
from deployments.http_api import build_app
from deployments.ingress import Inset
from deployments.metadata import Filter
from deployments.records import (
    Changes,
    Chunk,
    EncodedPhoto,
    EncoderState,
    Neighbours,
    Position,
    RankedPhoto,
    Record,
)
from deployments.store import Delete, Put

WAIT_S = 60


@pytest.fixture(scope="module", autouse=True)
def batches_without_replicas():
    """Let `serve.batch` work where no replica is around it.

    It keeps one queue for each method of a class, bound to the first event loop that calls it:
    right for replicas, which are processes. Here the replicas of a class are event loops.
    """
    queues = weakref.WeakKeyDictionary()

    def queue(self):
        here = queues.setdefault(asyncio.get_running_loop(), {})
        if self not in here:
            here[self] = batching._BatchQueue(
                self.max_batch_size,
                self.batch_wait_timeout_s,
                self.max_concurrent_batches,
                self.handle_batch_func,
                self.batch_size_fn,
            )
        return here[self]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching._LazyBatchQueueWrapper, "queue", property(queue))
        # It asks the replica around it how many requests that takes.
        name = "_warn_if_max_batch_size_exceeds_max_ongoing_requests"
        patch.setattr(batching._BatchQueue, name, lambda self: None)
        yield
    for loop, here in list(queues.items()):
        for queue in here.values() if loop.is_running() else ():
            loop.call_soon_threadsafe(queue._handle_batch_task.cancel)


def arguments(folder, changes=None):
    """The `args` of serve_config.yaml with a store of its own, and with changed options."""
    config = yaml.safe_load((Path(graph.__file__).parent / "serve_config.yaml").read_text())
    args = config["applications"][0]["args"]
    args["store"]["path"] = str(folder)
    for section, options in (changes or {}).items():
        args[section] |= options
    return args


def run(folder, changes=None):
    """Run the whole graph in this process; return the handle a client gets."""
    return serve.run(
        graph.build(arguments(folder, changes)), _local_testing_mode=True, name=f"inset-{folder}"
    )


def bound(folder, changes=None):
    """Every deployment that `graph.build` binds, by name."""
    found = {}

    def visit(application):
        deployment = application._bound_deployment
        found[deployment.name] = deployment
        for value in (*deployment.init_args, *deployment.init_kwargs.values()):
            if isinstance(value, serve.Application):
                visit(value)

    visit(graph.build(arguments(folder, changes)))
    return found


def box(name, folder, changes=None):
    """A box as the graph binds it, without a replica around it."""
    deployment = bound(folder, changes)[name]
    return deployment.func_or_class(*deployment.init_args, **deployment.init_kwargs)


class Handle:
    """Stands where a `DeploymentHandle` does, and calls an object in this very event loop."""

    def __init__(self, target):
        self.target = target

    def __getattr__(self, name):
        async def call(*args):
            args = [await a if isinstance(a, asyncio.Future) else a for a in args]
            return await getattr(self.target, name)(*args)

        return SimpleNamespace(remote=lambda *args: asyncio.ensure_future(call(*args)))


def ingress(folder, changes=None, **targets):
    """The service as the graph binds it, on other boxes; one that isn't given must not be asked."""
    kwargs = bound(folder, changes)["Ingress"].init_kwargs
    handles = {
        name: Handle(targets.get(name))
        for name, value in kwargs.items()
        if isinstance(value, serve.Application)
    }
    return Inset(**(kwargs | handles))


def call(method, *args, **kwargs):
    return method.remote(*args, **kwargs).result(timeout_s=WAIT_S)


def labels(photo):
    return [chunk.label for chunk in photo.chunks]


@pytest.fixture(scope="module")
def pictures(photos):
    names = ("chelsea.png", "coffee.png", "motorcycle_left.png", "astronaut.png")
    return {name.split(".")[0].split("_")[0]: (photos / name).read_bytes() for name in names}


def part(data, box):
    """A part of a picture, as PNG."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).crop(box).save(buffer, "PNG")
    return buffer.getvalue()


# The operations


@pytest.fixture(scope="module")
def inset(tmp_path_factory, pictures):
    """The graph of serve_config.yaml, with photos in it whose ids are their names."""
    handle = run(tmp_path_factory.mktemp("inset"))
    for name, data in pictures.items():
        call(handle.index, data, id=name, filename=f"{name}.png")
    return handle


def test_a_photo_becomes_a_record(inset, pictures):
    record = call(inset.record, "chelsea")
    assert record == call(inset.get, "chelsea")[0]
    assert record.filename == "chelsea.png"
    assert (record.width, record.height, record.media_type) == (451, 300, "image/png")
    assert record.sha256 == hashlib.sha256(pictures["chelsea"]).hexdigest()
    assert labels(record) == ["cat"] + [None] * (len(record.chunks) - 1)
    sources = [chunk.source for chunk in record.chunks]
    assert sources == ["detection"] + ["tile"] * (len(record.chunks) - 2) + ["whole"]
    assert len(sources) > 30
    assert record.chunks[-1].box == (0, 0, 451, 300)


def test_the_original_is_what_was_sent(inset, pictures):
    assert call(inset.get, "coffee")[1] == pictures["coffee"]


def test_the_same_photo_again_changes_nothing(inset, pictures):
    before = call(inset.stats).store
    again = call(inset.index, pictures["coffee"], id="coffee", filename="other.png")
    assert (again.status, again.filename) == ("exists", "coffee.png")
    assert call(inset.stats).store == before


def test_an_object_finds_the_photo_it_was_cut_from(inset, pictures):
    for name, cut in (("coffee", (170, 12, 424, 303)), ("chelsea", (10, 0, 420, 298))):
        nearest, *others = call(inset.search, part(pictures[name], cut))
        assert nearest.id == name
        np.testing.assert_allclose(nearest.box, cut, atol=15)
        assert {match.id for match in others} == pictures.keys() - {name}
        assert nearest.distance < others[0].distance / 2


def test_a_part_of_a_stored_photo_is_a_query(inset):
    (match,) = call(inset.search, id="chelsea", box=(0, 0, 451, 300), limit=1)
    assert (match.id, match.box, match.label) == ("chelsea", (0, 0, 451, 300), None)
    assert match.source == "whole"
    assert match.distance < 1e-3


def test_a_bit_that_is_no_object_is_found_by_a_tile(inset, pictures):
    """The saucer's edge and the table, of a photo in which only the cup is an object."""
    (tile, *_) = [c.box for c in call(inset.record, "coffee").chunks if c.source == "tile"]
    match = call(inset.search, part(pictures["coffee"], tile))[0]
    assert (match.id, match.box, match.source, match.label) == ("coffee", tile, "tile", None)
    assert match.distance < 1e-3
    assert match.chunks[0].source == "tile"


def test_what_is_too_far_is_no_match(inset, pictures):
    matches = call(inset.search, pictures["coffee"], max_distance=0.001)
    assert [match.id for match in matches] == ["coffee"]
    assert [chunk.source for chunk in matches[0].chunks] == ["whole"]


def test_records_are_listed_in_pages(inset, pictures):
    first = call(inset.list, limit=3)
    rest = call(inset.list, after=first[-1].id)
    assert [record.id for record in first + rest] == sorted(pictures)


def test_a_deleted_photo_is_gone_at_once(inset, pictures):
    data = part(pictures["astronaut"], (0, 0, 200, 200))
    id = call(inset.index, data).id
    assert id == hashlib.sha256(data).hexdigest()
    assert call(inset.search, data)[0].id == id
    call(inset.delete, id)
    assert id not in [match.id for match in call(inset.search, data)]
    with pytest.raises(UnknownId, match=id[:12]):
        call(inset.get, id)


def test_metadata_is_kept_and_filtered_by(inset, pictures):
    """Before the limit: the only photo that fits is found, though others are nearer."""
    data = part(pictures["motorcycle"], (0, 0, 150, 150))
    metadata = {"year": 2024, "camera": "Canon EOS", "flash": False}
    created = call(inset.index, data, id="meta", metadata=metadata)
    assert created.metadata == call(inset.record, "meta").metadata == metadata
    again = call(inset.index, data, id="meta", metadata={"year": 1999})
    assert (again.status, again.metadata) == ("exists", metadata)
    assert call(inset.record, "coffee").metadata == {}

    def found(filter):
        return [match.id for match in call(inset.search, id="coffee", limit=1, filter=filter)]

    assert found(()) == ["coffee"]
    assert found("year>=2024") == found(["camera=Canon EOS", "flash=false"]) == ["meta"]
    assert found(["year>=2024", "flash=true"]) == found("lens!=x") == []
    call(inset.delete, "meta")
    assert found("year>=2024") == []


def test_stats_say_what_is_loaded(inset, pictures):
    call(inset.check)
    stats = call(inset.stats)
    assert stats.store.photos == stats.chunk_index.photos == len(pictures)
    assert stats.store.chunks == stats.chunk_index.chunks
    assert (stats.segmenter, stats.encoder.name) == ("yolov5s", "models/compact")
    assert stats.encoder.text is False


@pytest.mark.parametrize(
    ("operation", "args", "kwargs", "error"),
    [
        ("index", [b"no image"], {}, NotAnImage),
        ("index", [b""], {}, BrokenImage),
        ("index", [b"x"], {"id": "not/an/id"}, BadParameter),
        ("index", [b"x"], {"confidence_threshold": 1.5}, BadParameter),
        ("index", [b"x"], {"confidence_threshold": float("nan")}, BadParameter),
        ("index", [b"x"], {"metadata": {"year": None}}, BadParameter),
        ("index", [b"x"], {"metadata": "year"}, BadParameter),
        ("index", [b"x"], {"id": "coffee"}, IdTaken),
        ("search", [], {}, BadParameter),
        ("search", [b"x"], {"id": "coffee"}, BadParameter),
        ("search", [], {"text": "a cup"}, BadParameter),
        ("search", [], {"text": "a cup", "box": (0, 0, 1, 1)}, BadParameter),
        ("search", [b"no image"], {}, NotAnImage),
        ("search", [], {"id": "nobody"}, UnknownId),
        ("search", [], {"id": "coffee", "box": (600, 0, 700, 10)}, BadParameter),
        ("search", [], {"id": "coffee", "limit": 0}, BadParameter),
        ("search", [], {"id": "coffee", "limit": 1001}, BadParameter),
        ("search", [], {"id": "coffee", "max_distance": 2.1}, BadParameter),
        ("search", [], {"id": "coffee", "filter": "year"}, BadParameter),
        ("search", [], {"id": "coffee", "filter": ""}, BadParameter),
        ("search", [], {"id": "coffee", "filter": ["a=1"] * 17}, BadParameter),
        ("search", [], {"id": "coffee", "min_sequence": 10**6}, UnknownSequence),
        ("get", ["nobody"], {}, UnknownId),
        ("get", ["../coffee"], {}, BadParameter),
        ("record", ["nobody"], {}, UnknownId),
        ("list", [], {"limit": 0}, BadParameter),
        ("list", [], {"after": "a b"}, BadParameter),
        ("delete", ["nobody"], {}, UnknownId),
    ],
)
def test_errors_are_our_own(inset, operation, args, kwargs, error):
    with pytest.raises(error) as caught:
        call(getattr(inset, operation), *args, **kwargs)
    assert caught.value.detail


def test_a_mistake_in_the_config_ends_the_build(tmp_path, capsys):
    with pytest.raises(StartupError, match=r"segmenter\.conf is not an option"):
        graph.build({"segmenter": {"conf": 0.5}})
    assert "Inset can't start: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"segmenter": {"model_name_or_path": "no-such-detector"}},
        {"encoder": {"pretrained_model_name_or_path": "tests"}},
    ],
)
def test_a_model_that_is_none_ends_the_build(tmp_path, changes):
    ((name,),) = (options.values() for options in changes.values())
    with pytest.raises(ModelUnavailable, match=name):
        graph.build(arguments(tmp_path, changes))


# segmenter

# Small, so that it is fast; and exact.
SMALL = {"image_size": 64, "dtype": "float32", "device": "cpu"}


def segment(data, tmp_path, threshold=None, **options):
    async def once(segmenter):
        return await segmenter.segment(data, threshold)

    return asyncio.run(once(box("Segmenter", tmp_path, {"segmenter": options})))


def test_model_name_or_path(tmp_path):
    """A checkpoint somewhere else; and what `/stats` calls it."""
    file = tmp_path / "my" / "detector.pt"
    file.parent.mkdir()
    file.symlink_to(find_detector("yolov5s"))
    changes = {"segmenter": SMALL | {"model_name_or_path": str(file)}}
    segmenter = box("Segmenter", tmp_path, changes)
    assert "motorcycle" in segmenter.segmenter.detector.names
    assert bound(tmp_path, changes)["Ingress"].init_kwargs["detector"] == "my/detector.pt"
    file.unlink()
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ModelUnavailable, match=r"detector\.pt"):
        box("Segmenter", tmp_path, changes)


def test_confidence_threshold(pictures, tmp_path):
    found = [
        len(segment(pictures["coffee"], tmp_path, tiles=[], confidence_threshold=threshold).chunks)
        for threshold in (0.05, 0.3, 0.95)
    ]
    assert found[0] > found[1] > found[2] == 1
    photo = segment(pictures["coffee"], tmp_path, tiles=[], confidence_threshold=0.05)
    assert all(chunk.confidence > 0.05 for chunk in photo.chunks[:-1])


def test_confidence_threshold_of_a_request(inset, pictures):
    found = []
    for number, threshold in enumerate((None, 0.5, 1.0)):
        id = f"threshold{number}"
        record = call(inset.index, pictures["coffee"], id=id, confidence_threshold=threshold)
        assert record.status == "created"
        assert labels(call(inset.record, id)) == labels(record)
        found.append([chunk.label for chunk in record.chunks if chunk.source == "detection"])
        call(inset.delete, id)
    assert found[0] == ["cup", "dining table", "fork"]
    assert found[1] == ["cup"]
    assert found[2] == []


def test_iou_threshold(pictures, tmp_path):
    apart = segment(pictures["coffee"], tmp_path, iou_threshold=0.45)
    all_of_them = segment(pictures["coffee"], tmp_path, iou_threshold=1)
    assert labels(apart).count("cup") == 1
    assert labels(all_of_them).count("cup") > 1


def test_image_size(tmp_path, pictures):
    """What the network is given, of a photo of 451 x 300 pixels."""
    shapes = []
    for size in (64, 320):
        segmenter = box("Segmenter", tmp_path, {"segmenter": SMALL | {"image_size": size}})
        segmenter.segmenter.detector.network.register_forward_pre_hook(
            lambda _, args: shapes.append(tuple(args[0].shape[2:]))
        )
        segmenter.segmenter.segment([pictures["chelsea"]])
    assert [max(shape) for shape in shapes] == [64, 320]


def test_tiles_max_tiles_and_min_tile_contrast(pictures, tmp_path):
    def count(**options):
        photo = segment(pictures["coffee"], tmp_path, **SMALL, **options)
        return [chunk.source for chunk in photo.chunks].count("tile")

    assert count(tiles=[]) == 0
    assert count(tiles=[2]) == count(tiles=[2, 3], max_tiles=33) == 9
    assert count(tiles=[2, 3]) == 34
    assert 0 < count(tiles=[2, 3], min_tile_contrast=30) < 34


async def photo_batches(segmenter, photos, pause_s=0.0):
    """How many photos went through the network at once, when photos come one after another."""
    sizes = []
    segmenter.segmenter.detector.network.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    calls = []
    for photo in photos:
        calls.append(asyncio.ensure_future(segmenter.segment(photo, None)))
        await asyncio.sleep(pause_s)
    await asyncio.gather(*calls)
    return sizes


async def crop_batches(encoder, pictures, pause_s=0.0):
    """The same for queries."""
    sizes = []
    encoder.encoder._images.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    calls = []
    for picture in pictures:
        calls.append(asyncio.ensure_future(encoder.encode_query(picture, None)))
        await asyncio.sleep(pause_s)
    await asyncio.gather(*calls)
    return sizes


@pytest.mark.parametrize(("batch_size", "expected"), [(1, [1, 1, 1]), (2, [2, 1]), (4, [3])])
def test_batch_size_of_the_segmenter(tmp_path, pictures, batch_size, expected):
    options = SMALL | {"batch_size": batch_size, "batch_wait_ms": 300}
    segmenter = box("Segmenter", tmp_path, {"segmenter": options})
    assert asyncio.run(photo_batches(segmenter, [pictures["chelsea"]] * 3)) == expected


@pytest.mark.parametrize(("batch_wait_ms", "expected"), [(0, [1, 1]), (10_000, [2])])
def test_batch_wait_ms_of_the_segmenter(tmp_path, pictures, batch_wait_ms, expected):
    options = SMALL | {"batch_size": 2, "batch_wait_ms": batch_wait_ms}
    segmenter = box("Segmenter", tmp_path, {"segmenter": options})
    start = time.monotonic()
    sizes = asyncio.run(photo_batches(segmenter, [pictures["chelsea"]] * 2, pause_s=0.3))
    assert sizes == expected
    assert time.monotonic() - start < 5  # a batch that is full goes at once


# encoder


@pytest.mark.parametrize(("batch_size", "expected"), [(1, [1, 1, 1]), (2, [2, 1]), (4, [3])])
def test_batch_size_of_the_encoder(tmp_path, pictures, batch_size, expected):
    options = {"batch_size": batch_size, "batch_wait_ms": 300}
    encoder = box("QueryEncoder", tmp_path, {"encoder": options})
    assert asyncio.run(crop_batches(encoder, [pictures["chelsea"]] * 3)) == expected


@pytest.mark.parametrize(("batch_wait_ms", "expected"), [(0, [1, 1]), (10_000, [2])])
def test_batch_wait_ms_of_the_encoder(tmp_path, pictures, batch_wait_ms, expected):
    options = {"batch_size": 2, "batch_wait_ms": batch_wait_ms}
    encoder = box("QueryEncoder", tmp_path, {"encoder": options})
    start = time.monotonic()
    sizes = asyncio.run(crop_batches(encoder, [pictures["chelsea"]] * 2, pause_s=0.3))
    assert sizes == expected
    assert time.monotonic() - start < 5


def test_batches_of_crops_are_limited_by_their_number(tmp_path, pictures):
    """A photo with more crops than a batch takes, together with others."""
    photo = segment(pictures["coffee"], tmp_path, confidence_threshold=0.05)
    assert len(photo.chunks) > 4
    encoder = box("IndexEncoder", tmp_path, {"encoder": {"batch_size": 4, "dtype": "float32"}})
    sizes = []
    encoder.encoder._images.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )

    async def both():
        return await asyncio.gather(encoder.encode_photo(photo), encoder.encode_photo(photo))

    first, second = asyncio.run(both())
    assert max(sizes) <= 4
    assert sum(sizes) == 2 * len(photo.chunks)
    np.testing.assert_allclose(first.vectors, second.vectors, atol=1e-5)
    np.testing.assert_allclose(first.vectors, encoder.encoder.encode_images(photo.crops), atol=1e-5)


def test_the_encoder_can_be_a_folder(tmp_path, pictures):
    """Named so in the config; the store belongs to it, and the crops have its size."""
    folder = tmp_path / "my" / "clip"
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = CLIPVisionConfig(
        **tower, num_attention_heads=2, image_size=48, patch_size=8, projection_dim=24
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    boxes = bound(tmp_path, {"encoder": {"pretrained_model_name_or_path": str(folder)}})
    encoder = box(
        "QueryEncoder", tmp_path, {"encoder": {"pretrained_model_name_or_path": str(folder)}}
    )
    vector = asyncio.run(encoder.encode_query(pictures["chelsea"], None))
    assert vector.shape == (24,)
    identity = encoder.encoder.files.identity
    assert identity.name == "my/clip"
    assert boxes["Ingress"].init_kwargs["encoder"] == EncoderState(
        name="my/clip", dimension=24, digest=identity.digest, text=False
    )
    assert identity in boxes["Store"].init_args
    assert 24 in boxes["ChunkIndex"].init_args
    assert 48 in boxes["Segmenter"].init_args
    segmenter = box(
        "Segmenter", tmp_path, {"encoder": {"pretrained_model_name_or_path": str(folder)}}
    )
    assert not segmenter.segmenter.squash
    preprocessing = {"size": {"height": 48, "width": 48}, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    segmenter = box(
        "Segmenter", tmp_path, {"encoder": {"pretrained_model_name_or_path": str(folder)}}
    )
    assert segmenter.segmenter.squash


# device, dtype, threads: of every box that computes


def computing(name, folder, section, options):
    """A box, where its network computes, and the network."""
    made = box(name, folder, {section: options})
    if name == "Segmenter":
        return made, made.segmenter.device, made.segmenter.detector.network
    return made, made.encoder.device, made.encoder._images


BOXES = [("Segmenter", "segmenter"), ("IndexEncoder", "encoder"), ("QueryEncoder", "encoder")]


@pytest.mark.parametrize(("name", "section"), BOXES)
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


@pytest.mark.parametrize(("name", "section"), BOXES)
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


@pytest.mark.parametrize(
    ("name", "section", "share"),
    [("Segmenter", "segmenter", 4), ("IndexEncoder", "encoder", 4), ("QueryEncoder", "encoder", 8)],
)
def test_threads(eight_cores, tmp_path, name, section, share):
    """As the thread that computes sees it; null is this box's share of the cores."""
    options = SMALL if section == "segmenter" else {}
    for threads, expected in ((3, 3), (None, share)):
        made, _, _ = computing(name, tmp_path, section, options | {"threads": threads})
        assert made._thread.submit(torch.get_num_threads).result() == expected


# chunk_index and ranker


class EmptyStore:
    async def changes(self, position, wait_s, follower, kept):
        await asyncio.sleep(wait_s)
        return Changes(position is None, [], Position("history", 0, 0), 0)


def chunk_index(folder, **options):
    async def start():
        deployment = bound(folder, {"chunk_index": options})["ChunkIndex"]
        settings, dimension, _ = deployment.init_args
        made = deployment.func_or_class.__new__(deployment.func_or_class)
        await made.__init__(settings, dimension, Handle(EmptyStore()))
        await made.check_health()
        for task in made._tasks:
            task.cancel()
        return made.index

    return asyncio.run(start())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_of_the_chunk_index(tmp_path, dtype):
    """What is remembered of a vector is as exact as the number format, and no more."""
    index = chunk_index(tmp_path, engine="exact", dtype=dtype)
    vector = np.random.default_rng(0).standard_normal(index.dimension).astype(np.float32)
    vector = (vector / np.linalg.norm(vector)).astype(np.float16)  # as it comes from the store
    index.put("a", vector[None])
    assert index._engine.dtype == getattr(torch, dtype)
    (remembered,) = index._engine.vectors(np.array([0]))
    error = np.abs(remembered - vector).max()
    assert (error == 0) == (dtype != "bfloat16")


def test_device_of_the_chunk_index(tmp_path):
    def device(name):
        return chunk_index(tmp_path, engine="exact", device=name)._engine.device.type

    if torch.cuda.is_available():
        assert device("cuda") == "cuda"
    else:
        with pytest.warns(UserWarning, match="device 'cuda' was asked for"):
            assert device("cuda") == "cpu"
    assert device("cpu") == "cpu"


class TwoPhotos:
    """One with a chunk that is near and one that is far, one with two between them."""

    async def search(self, query, count, sequence, filter):
        distances = [np.array([0.1, 0.9]), np.array([0.3, 0.4])]
        return Neighbours(["extreme", "moderate"], distances, float("inf")), 7


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("min", [("extreme", 0.1), ("moderate", 0.3)]),
        ("mean", [("moderate", 0.35), ("extreme", 0.5)]),
        ("max", [("moderate", 0.4), ("extreme", 0.9)]),
    ],
)
def test_aggregation(tmp_path, aggregation, expected):
    deployment = bound(tmp_path, {"ranker": {"aggregation": aggregation}})["Ranker"]

    async def rank():
        ranker = deployment.func_or_class(deployment.init_args[0], Handle(TwoPhotos()))
        return await ranker.rank(np.zeros(4), 2, 2.0, 0, None)

    ranked, seen = asyncio.run(rank())
    assert [(photo.id, pytest.approx(photo.distance)) for photo in ranked] == expected
    assert seen == 7


# store and limits


@pytest.fixture(scope="module")
def strict_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strict") / "new" / "store"


@pytest.fixture(scope="module")
def strict(strict_folder):
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
    assert call(inset.search, large, limit=1)[0].id == "chelsea"


def test_max_pixels(strict, inset, pictures):
    data = pictures["motorcycle"]
    for refused in (strict.index, strict.search):
        with pytest.raises(TooLarge, match="250,000 are accepted"):
            call(refused, data)
    assert call(inset.search, data, limit=1)[0].id == "motorcycle"


def test_max_request_bytes(tmp_path, pictures):
    app = build_app(ingress(tmp_path, {"limits": {"max_request_bytes": 1000}}))
    answer = TestClient(app).post("/index", files=[("file", ("a", b"x" * 600))] * 2)
    assert answer.status_code == 413
    assert "1,000 bytes" in answer.json()["detail"]


class Hung:
    """A box that never answers."""

    def __getattr__(self, name):
        async def hang(*args):
            await asyncio.Event().wait()

        return hang


OPERATIONS = [
    ("index", [b"x"]),
    ("search", [b"x"]),
    ("get", ["a"]),
    ("record", ["a"]),
    ("list", []),
    ("delete", ["a"]),
    ("stats", []),
    ("check", []),
]
HANDLES = ["segmenter", "index_encoder", "query_encoder", "ranker", "chunk_index", "store"]


@pytest.mark.parametrize(("operation", "args"), OPERATIONS)
def test_timeout_s(tmp_path, operation, args):
    targets = dict.fromkeys(HANDLES, Hung())
    inset = ingress(tmp_path, {"limits": {"timeout_s": 0.1}}, **targets)
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"longer than 0\.1 s"):
        asyncio.run(getattr(inset, operation)(*args))
    assert 0.1 <= time.monotonic() - start < 2


# What the ingress makes of its boxes' failures


class Failing:
    """A box whose every call fails."""

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
    ],
)
def test_a_box_that_is_busy_or_gone_is_a_sentence(tmp_path, error, sentence):
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, Failing(error)))
    for operation, args in OPERATIONS:
        with pytest.raises(Unavailable, match=sentence):
            asyncio.run(getattr(inset, operation)(*args))


def test_an_error_of_ours_passes_as_it_is(tmp_path):
    error = UnknownId("There is no photo 'a'.")
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, Failing(error)))
    with pytest.raises(UnknownId) as caught:
        asyncio.run(inset.get("a"))
    assert caught.value is error


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
    """All boxes of a search in one; things happen to the store after the photos were ranked.

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

    async def encode_query(self, data, box):
        return np.zeros(4)

    async def rank(self, vector, limit, max_distance, sequence, filter):
        self.asked.append(sequence)
        self.filters.append(filter)
        if sequence > self.sequence:
            raise UnknownSequence(f"The change {sequence} has not happened.")
        if sequence > self.index[1]:  # a search waits for what it must know, and sees no more
            self.index = dict(self.store), self.sequence
        photos, _ = self.index
        ranked = [
            RankedPhoto(id, number / 10, [(chunk, number / 10) for chunk in range(len(r.chunks))])
            for number, (id, r) in enumerate(photos.items())
        ][:limit]
        if self.events:
            self.events.pop(0)(self)
        return ranked, self.index[1]

    async def records(self, ids):
        found = [None if id in self.damaged else self.store.get(id) for id in ids]
        return found, self.sequence

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
        return [match.id for match in await inset.search(b"x", limit=limit)]

    return asyncio.run(both())


def test_a_quiet_search_ranks_once(tmp_path):
    moving = Moving("abcd")
    assert search(tmp_path, moving, 2) == ["a", "b"]
    assert moving.asked == [0]


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
    assert moving.asked == [0, 5]


def test_several_deletions_one_after_another(tmp_path):
    moving = Moving("abcd", [deletion("a"), deletion("b"), deletion("c")])
    assert search(tmp_path, moving, 2) == ["d"]
    assert moving.asked == [0, 5, 6, 7]


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
    assert moving.asked == [0, 4]


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
        return moving.asked, [[match.id for match in matches] for matches in (first, second)]

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
    assert asyncio.run(inset.search(b"x", min_sequence=4))
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
    store = box("Store", tmp_path / "store")
    whole = [Chunk(box=(0, 0, 10, 10), source="whole")]
    vectors = np.zeros((1, 256), np.float32)
    photo = EncodedPhoto(10, 10, "image/png", False, whole, vectors)
    store.store.apply([Put("a", b"x", None, photo)])
    (deleted,) = store.store.apply([Delete("a")])
    (missing,), sequence = asyncio.run(store.records(["a"]))
    store.store.close()
    assert missing is None
    assert sequence >= deleted
