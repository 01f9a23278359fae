"""What a walk through a container finds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deployments.errors import BrokenImage

# A larger profile or EXIF block is no profile and no EXIF. CMYK profiles take 0.5 to 3 MiB.
MAX_METADATA = 8 * 2**20


@dataclass(slots=True)
class Found:
    """A picture in its container.

    Attributes:
        data: a file with this picture and next to nothing else, for the decoder.
        width, height: its size as it is stored, before it is turned upright.
        allocated: how many pixels the decoder allocates for it, at least width times height.
        samples: bytes a pixel that the decoder keeps besides the pixels, where the file decides.
        exif: the EXIF block, from its byte order mark on; empty if there is none.
        orientation: how it is to be turned, 1 to 8, where the container says so outside of EXIF.
        profile: the ICC profile; empty if there is none.
        animated: it is the first frame of an animation.
        skipped: how many other pictures the file holds.
        media_type: what the file is, where its format alone does not say.
        ended: the file has its end, or needs none.
    """

    data: bytes
    width: int
    height: int
    allocated: int = 0
    samples: float = 0
    exif: bytes = b""
    orientation: int | None = None
    profile: bytes = b""
    animated: bool = False
    skipped: int = 0
    media_type: str | None = None
    ended: bool = True

    def __post_init__(self) -> None:
        self.allocated = max(self.allocated, self.width * self.height)


def cut(what: str) -> BrokenImage:
    """Return the error for a file that ends too early, or is out of joint."""
    return BrokenImage(f"The image can't be read: {what}. Send the whole file again.")


def xmp_orientation(xmp: bytes) -> int | None:
    """Return the orientation that an XMP block gives, or None."""
    match = re.search(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b", xmp[:MAX_METADATA])
    return int(match[1]) if match else None
