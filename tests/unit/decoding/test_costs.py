"""What decoding costs: never more than is said before, as a process of its own measures."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deployments.decoding.image import open_image
from tests.unit.decoding.files import LIMITS, encoded, texture

MEASURE = """
import sys
from deployments.decoding.image import open_image
from deployments.limits import ImageLimits

def peak():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

data, before = sys.stdin.buffer.read(), peak()
opened = open_image(data, ImageLimits())
opened.read()
print(opened.cost, peak() - before, opened.pixels_declared)
"""


def deep(dtype):
    return Image.fromarray(np.asarray(texture(1, 2000, 1500).convert("L")).astype(dtype))


FILES = {
    "JPEG": ("JPEG", "RGB", {}),
    "JPEG, progressive": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    "JPEG, CMYK": ("JPEG", "CMYK", {"progressive": True}),
    "PNG": ("PNG", "RGBA", {"compress_level": 1}),
    "PNG, grey": ("PNG", "L", {"compress_level": 1}),
    "PNG, 16 bits": ("PNG", np.uint16, {"compress_level": 1}),
    "WebP": ("WEBP", "RGBA", {"method": 0}),
    "AVIF": ("AVIF", "RGBA", {"speed": 10}),
    "TIFF": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "TIFF, float": ("TIFF", np.float32, {}),
    "JPEG 2000": ("JPEG2000", "RGB", {}),
}


@pytest.mark.parametrize("name", FILES)
def test_the_cost_is_the_most_that_it_takes(name):
    kind, mode, options = FILES[name]
    image = texture(1, 2000, 1500).convert(mode) if isinstance(mode, str) else deep(mode)
    content = encoded(image, kind, **options)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], input=content, capture_output=True, check=True
    )
    said, taken, pixels = map(int, done.stdout.split())
    assert pixels == 3_000_000
    assert 3 * pixels < taken <= said
    assert said < 6 * taken  # it is of use, too


def test_a_larger_picture_costs_more():
    small, large = (
        open_image(encoded(texture(1, side, side), "PNG"), LIMITS).cost for side in (100, 400)
    )
    assert large - small >= 7 * (400 * 400 - 100 * 100)
