"""The segmenter on genuine photos, with the genuine YOLOv5s."""

import io
import os
from functools import partial

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from deployments.compute.crops import scale_crop, scale_crops
from deployments.compute.previews import make_preview
from deployments.decoding.image import decode
from deployments.errors import BadParameter, BrokenImage, ModelUnavailable, NotAnImage, TooLarge
from deployments.limits import ImageLimits
from deployments.segmenter import segmenter as segmenter_module
from deployments.segmenter.detection import Detections
from deployments.segmenter.segmenter import SegmentedPhoto, Segmenter
from deployments.segmenter.thumbnails import make_thumbnail
from deployments.settings import SegmenterSettings
from deployments.tiles import tile_boxes


def photo(name):
    with open(os.path.join(skimage.data_dir, name), "rb") as file:
        return file.read()


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def segmenter(slow):
    limits = ImageLimits(max_bytes=5_000_000, max_pixels=1_000_000)
    return Segmenter(
        SegmenterSettings(dtype="float32", device="cpu", image_size=640, tiles=[]),
        crop_size=64,
        limits=limits,
    )


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


@pytest.mark.slow
@pytest.mark.parametrize("squash", [False, True])
def test_the_crops_are_the_boxes_of_the_full_picture(squash):
    segmenter = Segmenter(
        SegmenterSettings(dtype="float32", device="cpu"), crop_size=64, squash=squash
    )
    data = photo("motorcycle_left.png")
    [result] = segmenter.segment([data])
    assert {chunk.source for chunk in result.chunks} == {"detection", "tile", "whole"}
    pixels = torch.from_numpy(decode(data, ImageLimits()).pixels)
    assert (result.height, result.width) == pixels.shape[:2]
    assert result.media_type == "image/png"
    assert result.crops.shape == (len(result.chunks), 64, 64, 3)
    assert result.crops.dtype == torch.uint8
    for chunk, crop in zip(result.chunks, result.crops, strict=True):
        x1, y1, x2, y2 = chunk.box
        assert 0 <= x1 < x2 <= result.width
        assert 0 <= y1 < y2 <= result.height
        np.testing.assert_array_equal(crop, scale_crop(pixels, chunk.box, 64, squash))


def test_a_photo_comes_with_its_thumbnail_and_preview(segmenter):
    names = ("chelsea.png", "motorcycle_left.png")  # smaller and larger than a preview
    results = segmenter.segment([photo(name) for name in names])
    for name, result in zip(names, results, strict=True):
        pixels = decode(photo(name), ImageLimits()).pixels
        expected = make_thumbnail(pixels)
        assert result.thumbnail == segmenter.thumbnail(photo(name)) == expected
        assert result.preview == make_preview(pixels)


def test_small_pictures_lie_as_the_photo_does(segmenter):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    data = io.BytesIO()
    Image.new("RGB", (800, 400), "red").save(data, "JPEG", exif=exif)
    [result] = segmenter.segment([data.getvalue()])
    assert (result.width, result.height) == (400, 800)
    with Image.open(io.BytesIO(result.thumbnail)) as thumbnail:
        assert thumbnail.size == (160, 320)
        assert not thumbnail.getexif()  # or a browser would turn it once more
    with Image.open(io.BytesIO(result.preview)) as preview:
        assert preview.size == (320, 640)
        assert not preview.getexif()


def test_no_thumbnail_of_what_is_no_photo(segmenter):
    large = encoded(Image.new("1", (2000, 1000)))
    cases = [(b"hello", NotAnImage), (photo("chelsea.png")[:999], BrokenImage), (large, TooLarge)]
    for data, error in cases:
        with pytest.raises(error):
            segmenter.thumbnail(data)


@pytest.mark.slow
def test_a_gpus_way_to_cut_gives_the_same_photos(monkeypatch):
    segmenter = Segmenter(
        SegmenterSettings(dtype="float32", device="cpu", min_tile_contrast=8), crop_size=48
    )
    picture = Image.open(io.BytesIO(photo("motorcycle_left.png"))).convert("RGB")
    sizes = [(240, 160), (160, 240), (300, 20)]
    images = [*(encoded(picture.resize(size)) for size in sizes), b"bad"]
    expected = segmenter.segment(images)
    together = partial(scale_crops, together_on={"cpu"})
    monkeypatch.setattr(segmenter_module, "scale_crops", together)
    actual = segmenter.segment(images)
    assert type(actual.pop()) is type(expected.pop()) is NotAnImage
    for a, b in zip(actual, expected, strict=True):
        assert (a.width, a.height, a.chunks) == (b.width, b.height, b.chunks)
        assert a.crops.shape == b.crops.shape
        assert (a.crops.int() - b.crops.int()).abs().max() <= 2


def test_the_whole_picture_is_the_last_chunk(segmenter):
    [result] = segmenter.segment([encoded(Image.new("RGB", (50, 30), "red"))])
    [chunk] = result.chunks
    assert chunk.box == (0, 0, 50, 30)
    assert (chunk.source, chunk.label, chunk.confidence) == ("whole", None, None)
    assert (result.crops == torch.tensor([255, 0, 0])).all()


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
    """A detector that finds the same in every image, and notes the batches it is given."""

    def __init__(self):
        self.boxes = []
        self.batches = []

    def detect(self, images, thresholds):
        self.batches.append((len(images), list(thresholds)))
        boxes = np.array(self.boxes, np.float32).reshape(-1, 4)
        confidences = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
        return [Detections(boxes, confidences, ["thing"] * len(boxes))] * len(images)


@pytest.fixture
def recorder(monkeypatch):
    """The detector of every segmenter of a test."""
    recorder = Recorder()
    monkeypatch.setattr(segmenter_module, "load_detector", lambda *args, **kwargs: recorder)
    return recorder


def boxes(photo, source="tile"):
    return [chunk.box for chunk in photo.chunks if chunk.source == source]


def test_objects_come_first_then_tiles_then_the_whole_picture(recorder):
    recorder.boxes = [(10, 10, 60, 60), (50.5, 20, 90, 70)]
    [result] = Segmenter(crop_size=16).segment([encoded(Image.new("RGB", (200, 150)))])
    assert boxes(result, "detection") == [(10, 10, 60, 60), (50, 20, 90, 70)]
    assert boxes(result) == tile_boxes(200, 150, (3,), 64, 0.3)
    sources = [chunk.source for chunk in result.chunks]
    assert sources == ["detection"] * 2 + ["tile"] * 16 + ["whole"]
    assert {(c.label, c.confidence) for c in result.chunks[2:]} == {(None, None)}
    assert len(result.crops) == 19


def test_without_tiles_there_are_objects_and_the_whole_picture(recorder):
    recorder.boxes = [(10, 10, 60, 60)]
    [result] = Segmenter(SegmenterSettings(tiles=[]), crop_size=16).segment(
        [encoded(Image.new("RGB", (200, 150)))]
    )
    assert [chunk.source for chunk in result.chunks] == ["detection", "whole"]


@pytest.mark.parametrize(
    ("tiles", "max_tiles", "tile_overlap", "count"),
    [
        ((2,), 64, 0.5, 9),
        ((2,), 9, 0.5, 9),
        ((3, 2), 34, 0.5, 34),
        ((), 1, 0.5, 0),
        ((3, 2), 64, 0.3, 25),
        ((3,), 9, 0, 9),
        ((2,), 64, 0.75, 25),
    ],
)
def test_scales_and_number_of_tiles(recorder, tiles, max_tiles, tile_overlap, count):
    settings = SegmenterSettings(tiles=tiles, max_tiles=max_tiles, tile_overlap=tile_overlap)
    segmenter = Segmenter(settings, crop_size=16)
    [result] = segmenter.segment([encoded(Image.new("RGB", (200, 200)))])
    assert len(boxes(result)) == count


def test_a_tile_that_is_nearly_an_object_is_dropped(recorder):
    tiles = tile_boxes(200, 200, (2,), 64, 0.3)
    first, _, third = tiles[:3]
    near = (0, 0, 100, 75)  # three quarters of the first
    far = (100, 0, 200, 60)  # six tenths of the third
    segmenter = Segmenter(SegmenterSettings(tiles=[2]), crop_size=16)
    for found, dropped in [([], []), ([near], [first]), ([far], []), ([far, third], [third])]:
        recorder.boxes = found
        [result] = segmenter.segment([encoded(Image.new("RGB", (200, 200)))])
        assert boxes(result) == [tile for tile in tiles if tile not in dropped]


def test_flat_tiles_are_dropped_if_it_is_said(recorder):
    """Nothing else is, however flat."""
    recorder.boxes = [(10, 10, 60, 60)]
    picture = Image.new("RGB", (200, 200), "skyblue")
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    picture.paste(Image.fromarray(noise), (100, 100))
    everything = tile_boxes(200, 200, (2,), 64, 0.3)
    structured = [box for box in everything if box[2] > 100 and box[3] > 100]
    for least, tiles in [(0, everything), (2, structured), (128, [])]:
        segmenter = Segmenter(SegmenterSettings(tiles=[2], min_tile_contrast=least), crop_size=100)
        [result] = segmenter.segment([encoded(picture)])
        assert boxes(result) == tiles
        assert (len(boxes(result, "detection")), result.chunks[-1].source) == (1, "whole")
        pixels = torch.from_numpy(np.array(picture))
        for chunk, crop in zip(result.chunks, result.crops, strict=True):
            np.testing.assert_array_equal(crop, scale_crop(pixels, chunk.box, 100))


def test_no_contrast_is_computed_for_nothing(recorder, monkeypatch):
    monkeypatch.setattr(segmenter_module, "contrasts", lambda crops: pytest.fail("computed"))
    [result] = Segmenter(crop_size=16).segment([encoded(Image.new("RGB", (200, 150)))])
    assert len(boxes(result)) == 16


def test_no_more_than_a_batch_is_decoded_at_once(recorder):
    segmenter = Segmenter(SegmenterSettings(batch_size=2, confidence_threshold=0.6))
    images = [encoded(Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(5)]
    results = segmenter.segment([*images[:4], b"bad", images[4]], [None, 0.1, 0, 1, 1, None])
    assert recorder.batches == [(2, [0.6, 0.1]), (2, [0, 1]), (1, [0.6])]
    reds = [int(r.crops[0, 0, 0, 0]) for i, r in enumerate(results) if i != 4]
    assert reds == [0, 1, 2, 3, 4]


def test_an_unexpected_error_harms_no_other_image_either(recorder, monkeypatch):
    segmenter = Segmenter(SegmenterSettings(batch_size=3))
    images = [encoded(Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(4)]
    decode_one = segmenter.decoder.decode

    def decode_or_fail(data):
        if data == images[1]:
            raise ValueError("a bug")
        return decode_one(data)

    monkeypatch.setattr(segmenter.decoder, "decode", decode_or_fail)
    results = segmenter.segment(images)
    assert isinstance(results[1], ValueError)
    reds = [int(r.crops[0, 0, 0, 0]) for i, r in enumerate(results) if i != 1]
    assert reds == [0, 2, 3]


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
        ("tiles", [1]),
        ("tiles", [2, 17]),
        ("tiles", [3, 3]),
        ("max_tiles", 0),
        ("max_tiles", 15),
        ("tile_overlap", -0.1),
        ("tile_overlap", 0.8),
        ("min_tile_contrast", -1),
        ("device", "tpu"),
        ("dtype", "int4"),
    ],
)
def test_values_outside_their_range(name, value):
    with pytest.raises(ValueError, match=name):
        SegmenterSettings(**{name: value})


def test_crops_of_no_size():
    with pytest.raises(ValueError, match="crop_size"):
        Segmenter(crop_size=0)


def test_an_unknown_model():
    with pytest.raises(ModelUnavailable, match=r"'yolov9'.*yolov5n, yolov5s.*yolov9.*hub name"):
        Segmenter(SegmenterSettings(model_name_or_path="yolov9"))
