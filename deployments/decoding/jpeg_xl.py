"""JPEG XL by pylibjxl, as a plugin of Pillow. Importing this module fails without the package."""

from __future__ import annotations

from typing import ClassVar

import pylibjxl
from PIL import Image, ImageFile


class JpegXlImageFile(ImageFile.ImageFile):
    """A JPEG XL file: its first frame, in 8 bits, already upright."""

    format = "JXL"
    MODES: ClassVar = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

    def _open(self) -> None:
        assert self.fp is not None
        self._data = self.fp.read()
        header = pylibjxl.probe(self._data)
        self._size = header["width"], header["height"]
        self._mode = self.MODES[header["channels"]]
        self.is_animated = header["have_animation"]
        self.tile = []

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the pixels, once."""
        if self._im is None:
            with pylibjxl.JXL(threads=1) as decoder:
                pixels, blocks = decoder.decode(self._data, metadata=True)
            if pixels.shape[:2] != self.size[::-1]:
                raise OSError("its size is another than its header says")
            self.im = Image.fromarray(pixels).im
            self._mode = self.im.mode
            for name in ("exif", "icc"):
                if blocks.get(name):
                    self.info[name] = blocks[name]
            self._data = b""
        return super().load()
