"""BMP: it holds nothing but pixels."""

from __future__ import annotations

import struct

from deployments.decoding.containers.found import Found, cut


def find(data: bytes) -> Found:
    """Find the size of the picture."""
    if len(data) < 26:
        raise cut("the BMP is cut in its header")
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<Ii", data, 18)
    return Found(data, width, abs(height))
