"""The segmenter on genuine photos, with the genuine YOLOv5s."""

import io
import os

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from deployments import segmenter as segmenter_module
from deployments.detectors import Detections
from deployments.errors import BadParameter, BrokenImage, ModelUnavailable, NotAnImage, TooLarge
from deployments.images import ImageLimits, decode, scale_crop
from deployments.records import SegmentedPhoto
from deployments.segmenter import Segmenter


def photo(name):
    with open(os.path.join(skimage.data_dir, name), "rb") as file:
        return file.read()


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def segmenter():
    limits = ImageLimits(max_bytes=5_000_000, max_pixels=1_000_000)
    return Segmenter(dtype="float32", device="cpu", crop_size=64, limits=limits)


@pytest.mark.parametrize(
    ("name", "label", "near"),
    [
        ("astronaut.png", "person", (10, 10, 495, 512)),
        ("chelsea.png", "cat", (10, 0, 420, 298)),
        ("coffee.png", "cup", (170, 12, 424, 303)),
        ("motorcycle_left.png", "motorcycle", (80, 26, 690, 456)),
    ],
)
def test_finds_what_anyone_sees(segmenter, name, label, near):
    data = photo(name)
    [result] = segmenter.segment([data])
    best = result.chunks[0]
    assert best.label == label
    assert best.source == "detection"
    assert best.confidence > 0.3
    np.testing.assert_allclose(best.box, near, atol=15)
    confidences = [chunk.confidence for chunk in result.chunks[:-1]]
    assert confidences == sorted(confidences, reverse=True)


def test_the_crops_are_the_boxes_of_the_full_picture(segmenter):
    data = photo("motorcycle_left.png")
    [result] = segmenter.segment([data])
    pixels = torch.from_numpy(decode(data, ImageLimits()).pixels)
    assert (result.height, result.width) == pixels.shape[:2]
    assert result.media_type == "image/png"
    assert result.crops.shape == (len(result.chunks), 64, 64, 3)
    assert result.crops.dtype == np.uint8
    for chunk, crop in zip(result.chunks, result.crops, strict=True):
        x1, y1, x2, y2 = chunk.box
        assert 0 <= x1 < x2 <= result.width
        assert 0 <= y1 < y2 <= result.height
        np.testing.assert_array_equal(crop, scale_crop(pixels, chunk.box, 64))


def test_the_whole_picture_is_the_last_chunk(segmenter):
    [result] = segmenter.segment([encoded(Image.new("RGB", (50, 30), "red"))])
    [chunk] = result.chunks
    assert chunk.box == (0, 0, 50, 30)
    assert (chunk.source, chunk.label, chunk.confidence) == ("whole", None, None)
    assert (result.crops == [255, 0, 0]).all()


def test_a_bad_image_harms_no_other(segmenter):
    good = photo("chelsea.png")
    images = [
        good,
        b"hello",
        good[: len(good) // 2],
        encoded(Image.new("1", (2000, 1000))),
        b"",
        good,
        encoded(Image.new("L", (1, 1))),
    ]
    results = segmenter.segment(images)
    kinds = [SegmentedPhoto, NotAnImage, BrokenImage, TooLarge, BrokenImage, SegmentedPhoto]
    assert [type(result) for result in results] == [*kinds, SegmentedPhoto]
    assert results[0].chunks == results[5].chunks == segmenter.segment([good])[0].chunks
    assert segmenter.segment([]) == []


@pytest.mark.parametrize("size", [(9000, 3), (3, 9000), (1, 1), (7, 1)])
def test_extreme_shapes(segmenter, size):
    [result] = segmenter.segment([encoded(Image.new("RGB", size, "blue"))])
    assert result.crops.shape == (len(result.chunks), 64, 64, 3)
    assert result.chunks[-1].box == (0, 0, *size)


def test_each_image_may_have_its_own_threshold(segmenter):
    data = photo("chelsea.png")
    results = segmenter.segment([data] * 4, [None, 0.99, 0.0, 1.5])
    assert [chunk.label for chunk in results[0].chunks] == ["cat", None]
    assert [chunk.source for chunk in results[1].chunks] == ["whole"]
    assert len(results[2].chunks) > 5
    assert isinstance(results[3], BadParameter)
    assert "1.5" in results[3].detail
    with pytest.raises(ValueError, match="thresholds"):
        segmenter.segment([data], [0.1, 0.2])


class Recorder:
    """A detector that finds nothing and notes the batches it is given."""

    def __init__(self):
        self.batches = []

    def detect(self, images, thresholds):
        self.batches.append((len(images), list(thresholds)))
        empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [])
        return [empty] * len(images)


def test_no_more_than_a_batch_is_decoded_at_once(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(segmenter_module, "load_detector", lambda *args, **kwargs: recorder)
    segmenter = Segmenter(batch_size=2, confidence_threshold=0.6)
    images = [encoded(Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(5)]
    results = segmenter.segment([*images[:4], b"bad", images[4]], [None, 0.1, 0, 1, 1, None])
    assert recorder.batches == [(2, [0.6, 0.1]), (2, [0, 1]), (1, [0.6])]
    reds = [int(r.crops[0, 0, 0, 0]) for i, r in enumerate(results) if i != 4]
    assert reds == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence_threshold", -0.1),
        ("confidence_threshold", 1.1),
        ("iou_threshold", 2),
        ("image_size", 0),
        ("image_size", 650),
        ("image_size", -32),
        ("batch_size", 0),
        ("crop_size", 0),
        ("device", "tpu"),
        ("dtype", "int4"),
    ],
)
def test_values_outside_their_range(name, value):
    with pytest.raises(ValueError, match=name):
        Segmenter(**{name: value})


def test_an_unknown_model():
    with pytest.raises(ModelUnavailable, match=r"'yolov9'.*yolov5n, yolov5s.*yolov9.*hub name"):
        Segmenter("yolov9")
