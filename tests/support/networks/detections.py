"""Photos for a detector, and what must be true of its answers."""

import numpy as np
import torch
from PIL import Image

from tests.support.paths import PHOTOS


def photo(name, size=None):
    image = Image.open(PHOTOS / name).convert("RGB")
    return torch.from_numpy(np.array(image if size is None else image.resize(size)))


def some_photos():
    return [
        photo("astronaut.png"),
        photo("chelsea.png"),
        photo("coffee.png"),
        photo("astronaut.png").flip(1),
        photo("motorcycle_left.png", (300, 100)),
        photo("coffee.png", (3, 400)),
        photo("coffee.png", (1, 1)),
    ]


def check(found, image, threshold):
    """Check what holds for every detector's answer."""
    height, width = image.shape[:2]
    n = len(found.labels)
    assert found.boxes.shape == (n, 4)
    assert found.boxes.dtype == found.confidences.dtype == np.float32
    assert found.confidences.shape == (n,)
    assert (found.confidences > threshold).all()
    assert (found.confidences <= 1).all()
    assert (np.diff(found.confidences) <= 0).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [width, height, width, height]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def assert_same(a, b, atol=0.05):
    assert a.labels == b.labels
    np.testing.assert_allclose(a.confidences, b.confidences, atol=1e-3)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=atol)
