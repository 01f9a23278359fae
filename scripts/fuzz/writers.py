"""Image files written byte by byte, so that they can say what no encoder would write.

All pixels are zero, and every writer packs them as tightly as its container can: the files are
small, whatever size they declare.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from PIL import Image

# Tags of TIFF and EXIF.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIPS, SAMPLES, ROWS_PER_STRIP, STRIP_SIZES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES = 322, 323, 324, 325
SUB_IFDS, ORIENTATION, EXIF_IFD, GPS_IFD = 330, 274, 0x8769, 0x8825
SHORT, LONG = 3, 4

# A tag's type and values; of bytes, each is a value.
Field = tuple[int, Sequence[int] | bytes]


@cache
def deflated_zeros(count: int) -> bytes:
    """Return a zlib stream of so many zero bytes, about a thousandth of that.

    A block that ends in a full flush depends on nothing before it, so it can be repeated.
    """
    piece = 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = packer.compress(bytes(count % piece)) + packer.flush()
    # Adler-32 of zeros: the first sum stays 1, and the second counts them.
    return b"\x78\xda" + block * (count // piece) + rest + struct.pack(">HH", count % 65521, 1)


# PNG

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def png_chunk(kind: bytes, body: bytes, *, right: bool = True) -> bytes:
    """Return a chunk of a PNG file; its checksum is wrong unless `right`."""
    checksum = zlib.crc32(kind + body) ^ (not right)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png_head(
    width: int, height: int, depth: int = 8, colour: int = RGB, interlaced: bool = False
) -> bytes:
    """Return the first chunk of a PNG file."""
    return png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    )


def png(
    width: int,
    height: int,
    depth: int = 8,
    colour: int = RGB,
    *,
    before: bytes = b"",
    after: bytes = b"",
    pixels: bytes | None = None,
) -> bytes:
    """Return a PNG file.

    Args:
        before: chunks before the pixels.
        after: chunks after the pixels.
        pixels: a zlib stream; None for black.
    """
    if pixels is None:
        pixels = deflated_zeros(height * (1 + (width * depth * CHANNELS[colour] + 7) // 8))
    palette = png_chunk(b"PLTE", bytes(3 * 2 ** min(depth, 8))) if colour == PALETTE else b""
    head = png_head(width, height, depth, colour) + palette
    return PNG_MAGIC + head + before + png_chunk(b"IDAT", pixels) + after + PNG_END


# GIF


def gif_head(width: int, height: int) -> bytes:
    """Return the head of a GIF file with four colours."""
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0b1000_0001, 0, 0) + bytes(12)


def gif_frame(width: int, height: int, left: int = 0, top: int = 0) -> bytes:
    """Return a frame of a GIF file."""
    packed = lzw_zeros(width * height)
    blocks = [packed[start : start + 255] for start in range(0, len(packed), 255)]
    data = b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x02" + data


def gif(width: int, height: int) -> bytes:
    """Return a GIF file of one frame."""
    return gif_head(width, height) + gif_frame(width, height) + b";"


@cache
def lzw_zeros(count: int) -> bytes:
    """Return so many zeros as LZW with codes of 3 to 12 bits; a code stands for up to 4,090."""
    clear, end, following, width = 4, 5, 6, 3
    codes, left = [(clear, width)], count
    first = True
    while left:
        # The string of n zeros is the code 0 if n is 1, and otherwise the code n + 4.
        length = 1 if first else min(following - 4, 4091)
        length = min(length, left)
        codes.append((0 if length == 1 else length + 4, width))
        left -= length
        if not first and following < 4096:
            following += 1
            if following == 2**width and width < 12:
                width += 1
        first = False
    return pack_bits([*codes, (end, width)])


def pack_bits(codes: Iterable[tuple[int, int]]) -> bytes:
    """Return codes of so many bits each as bytes, the lowest bits first."""
    packed, buffer, held = bytearray(), 0, 0
    for code, width in codes:
        buffer |= code << held
        held += width
        while held >= 8:
            packed.append(buffer & 255)
            buffer >>= 8
            held -= 8
    return bytes(packed) + bytes([buffer] if held else [])


# TIFF and EXIF


def directory(fields: Mapping[int, Field], place: int, following: int = 0) -> bytes:
    """Return a directory of TIFF or EXIF (little-endian) and, after it, its longer values.

    Args:
        place: where it begins in the file.
        following: where the next one begins; 0 for none.
    """
    entries, values = b"", b""
    behind = place + 2 + 12 * len(fields) + 4
    for tag, (kind, value) in sorted(fields.items()):
        if isinstance(value, bytes):
            packed = value
        else:
            packed = struct.pack(f"<{len(value)}{'H' if kind == SHORT else 'I'}", *value)
        entries += struct.pack("<HHI", tag, kind, len(value))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", behind + len(values))
            values += packed + b"\0" * (len(packed) % 2)
    return struct.pack("<H", len(fields)) + entries + struct.pack("<I", following) + values


def exif(fields: Mapping[int, Field], following: int = 0, rest: bytes = b"") -> bytes:
    """Return EXIF whose first directory begins at 8; `rest` is what comes after it."""
    return b"II*\0\x08\0\0\0" + directory(fields, 8, following) + rest


def tiff(
    width: int,
    height: int,
    data: bytes,
    compression: int = 1,
    *,
    bits: Sequence[int] = (8,),
    photometric: int | None = None,
    strips: int = 1,
    tile: tuple[int, int] | None = None,
    fields: Mapping[int, Field] | None = None,
    following: int = 0,
) -> bytes:
    """Return a TIFF file of one page (little-endian): its pixels first, then its directory.

    Args:
        data: of a strip or a tile; all have the same.
        compression: the number that TIFF has for it.
        bits: of each sample of a pixel.
        photometric: what samples mean; None for grey or RGB.
        strips: number of strips or tiles.
        tile: width and height of a tile; None for strips.
        fields: more fields, or others.
        following: where the next directory begins.
    """
    if photometric is None:
        photometric = 2 if len(bits) > 2 else 1
    offsets, sizes = [8] * strips, [len(data)] * strips
    place: dict[int, Field]
    if tile:
        place = {
            TILE_WIDTH: (LONG, [tile[0]]),
            TILE_HEIGHT: (LONG, [tile[1]]),
            TILES: (LONG, offsets),
            TILE_SIZES: (LONG, sizes),
        }
    else:
        place = {
            STRIPS: (LONG, offsets),
            ROWS_PER_STRIP: (LONG, [-(-height // strips)]),
            STRIP_SIZES: (LONG, sizes),
        }
    page: dict[int, Field] = {
        WIDTH: (LONG, [width]),
        HEIGHT: (LONG, [height]),
        BITS: (SHORT, bits),
        COMPRESSION: (SHORT, [compression]),
        PHOTOMETRIC: (SHORT, [photometric]),
        SAMPLES: (SHORT, [len(bits)]),
        PLANAR: (SHORT, [1]),
        **place,
        **(fields or {}),
    }
    padded = data + b"\0" * (len(data) % 2)
    start = 8 + len(padded)
    return b"II*\0" + struct.pack("<I", start) + padded + directory(page, start, following)


def packbits_zeros(count: int) -> bytes:
    """Return so many zeros as PackBits: two bytes for 128."""
    rest = count % 128
    return b"\x81\0" * (count // 128) + (bytes([257 - rest, 0]) if rest > 1 else bytes(2 * rest))


def tiff_lzw_zeros(count: int) -> bytes:
    """Return so many zeros as the LZW of TIFF: highest bits first, and wider codes one earlier."""
    codes, left, following, width = [(256, 9)], count, 258, 9
    first = True
    while left:
        length = min(1 if first else following - 256, left)
        codes.append((0 if length == 1 else length + 256, width))
        left -= length
        if not first:
            following += 1
        width = max(width, (following + 1).bit_length()) if not first else 9
        first = False
        if following == 4094:  # the table is nearly full: begin anew
            codes.append((256, 12))
            following, width, first = 258, 9, True
    packed, buffer, held = bytearray(), 0, 0
    for code, size in [*codes, (257, width)]:
        buffer, held = buffer << size | code, held + size
        while held >= 8:
            held -= 8
            packed.append(buffer >> held)
            buffer &= (1 << held) - 1
    return bytes(packed) + (bytes([buffer << (8 - held)]) if held else b"")


# JPEG


def segment(marker: int, body: bytes) -> bytes:
    """Return a segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def jpeg_tables(alternating: int) -> bytes:
    """Return a quantization table, and Huffman tables with one code of one bit each.

    Args:
        alternating: what the code of the alternating coefficients stands for.
    """
    one_code = bytes([1]) + bytes(15)
    return (
        segment(0xDB, bytes([0]) + bytes([1]) * 64)
        + segment(0xC4, bytes([0x00]) + one_code + bytes([0]))
        + segment(0xC4, bytes([0x10]) + one_code + bytes([alternating]))
    )


def jpeg_frame(width: int, height: int, marker: int = 0xC0, components: int = 1) -> bytes:
    """Return the segment that tells the size of a JPEG file."""
    body = struct.pack(">BHHB", 8, height, width, components)
    return segment(marker, body + b"".join(bytes([n + 1, 0x11, 0]) for n in range(components)))


def jpeg_scan(first: int, last: int, data: bytes, components: int = 1) -> bytes:
    """Return a scan of a JPEG file: coefficients `first` to `last` of all components."""
    names = b"".join(bytes([n + 1, 0]) for n in range(components))
    return segment(0xDA, bytes([components]) + names + bytes([first, last, 0])) + data


def jpeg(width: int, height: int, *, segments: bytes = b"", components: int = 1) -> bytes:
    """Return a grey (or coloured) baseline JPEG file, two bits for each block."""
    blocks = -(-width // 8) * -(-height // 8) * components
    data = bytes(-(-2 * blocks // 8))
    frame = jpeg_frame(width, height, 0xC0, components)
    scan = jpeg_scan(0, 63, data, components)
    return b"\xff\xd8" + segments + jpeg_tables(0) + frame + scan + b"\xff\xd9"


def progressive_jpeg(width: int, height: int, scans: int) -> bytes:
    """Return a grey progressive JPEG file with so many scans of alternating coefficients.

    Each scan says of 16,384 blocks at a time, in 15 bits, that they have none.
    """
    blocks = -(-width // 8) * -(-height // 8)
    runs = bytes(-(-15 * -(-blocks // 2**14) // 8))
    direct = jpeg_scan(0, 0, bytes(-(-blocks // 8)))
    frame = jpeg_frame(width, height, 0xC2)
    return (
        b"\xff\xd8"
        + jpeg_tables(0xE0)
        + frame
        + direct
        + jpeg_scan(1, 63, runs) * scans
        + b"\xff\xd9"
    )


def mpo(pictures: Sequence[bytes], *, count: int | None = None, offset: int | None = None) -> bytes:
    """Return JPEG files as one of several pictures (MPO).

    Args:
        count: how many pictures it says that it has.
        offset: where it says that each picture after the first begins.
    """
    count = len(pictures) if count is None else count
    entries = len(pictures) * 16
    # Offsets count from the index's own head, which comes 2 + 4 + 4 bytes into the file.
    index = 2 + 4 + 4
    size = index + 8 + 2 + 3 * 12 + 4 + entries
    table, place = b"", size + len(pictures[0]) - 2
    for number, picture in enumerate(pictures):
        where = 0 if number == 0 else place - index if offset is None else offset
        table += struct.pack("<IIIHH", 0x030000 if number == 0 else 0, len(picture), where, 0, 0)
        place += len(picture) if number else 0
    fields: dict[int, Field] = {
        0xB000: (7, b"0100"),
        0xB001: (LONG, [count]),
        0xB002: (7, table),
    }
    head = segment(0xE2, b"MPF\0" + exif(fields))
    return b"\xff\xd8" + head + pictures[0][2:] + b"".join(pictures[1:])


# WebP


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP file of chunks: their kinds and contents."""
    body = b"WEBP" + b"".join(riff_chunk(kind, data) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a WebP file."""
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp_pixels(width: int, height: int, alpha: bool = True) -> bytes:
    """Return a lossless picture whose pixels take no bits: each of its codes has one symbol."""
    head = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (alpha, 1), (0, 3)]
    no_transform, no_cache, no_groups = (0, 1), (0, 1), (0, 1)
    one_symbol = [(1, 1), (0, 1), (0, 1), (0, 1)]  # a simple code, of one symbol, of one bit: 0
    return pack_bits([*head, no_transform, no_cache, no_groups, *(5 * one_symbol)])


def webp(width: int, height: int, alpha: bool = True) -> bytes:
    """Return a lossless WebP file of 34 bytes or less."""
    return riff((b"VP8L", webp_pixels(width, height, alpha)))


def webp_canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """Return the chunk that tells the size of an extended WebP file."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + size


def webp_animation(width: int, height: int, frames: int) -> bytes:
    """Return an animated WebP file; each frame covers the canvas."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    pixels = riff_chunk(b"VP8L", webp_pixels(width, height))
    frame = (b"ANMF", bytes(6) + size + (100).to_bytes(3, "little") + b"\0" + pixels)
    return riff(webp_canvas(width, height, 0b10), (b"ANIM", bytes(6)), *[frame] * frames)


# ISO base media: AVIF and JPEG 2000


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box of an ISO file."""
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """Return a box of an ISO file that has a version."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


@cache
def avif_tile(side: int) -> tuple[bytes, bytes]:
    """Return a black square as AV1: its configuration, and its data."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "AVIF", speed=10, max_threads=1)
    data = file.getvalue()
    start = data.index(b"av1C")
    size = struct.unpack(">I", data[start - 4 : start])[0]
    return data[start + 4 : start - 4 + size], data[data.index(b"mdat") + 4 :]


def avif(
    columns: int,
    rows: int,
    side: int,
    size: tuple[int, int] | None = None,
    declared: tuple[int, int] | None = None,
) -> bytes:
    """Return an AVIF file: a grid whose tiles are all the same bytes.

    Args:
        side: of a tile, at least 64 pixels.
        size: of the grid's picture; None for all of the tiles.
        declared: what the picture's property says instead.
    """
    configuration, tile = avif_tile(side)
    width, height = size or (columns * side, rows * side)
    count = columns * rows
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    ids = range(2, 2 + count)
    entries = [full_box(b"infe", 2, 0, struct.pack(">HH4sB", 1, 0, b"grid", 0))]
    entries += [full_box(b"infe", 2, 1, struct.pack(">HH4sB", id, 0, b"av01", 0)) for id in ids]
    properties = box(
        b"ipco",
        full_box(b"ispe", 0, 0, struct.pack(">II", *(declared or (width, height)))),
        full_box(b"ispe", 0, 0, struct.pack(">II", side, side)),
        full_box(b"pixi", 0, 0, b"\x03\x08\x08\x08"),
        box(b"av1C", configuration),
    )
    of_grid = struct.pack(">HBBB", 1, 2, 1, 3)
    of_tiles = b"".join(struct.pack(">HBBBB", id, 3, 2, 3, 0x84) for id in ids)

    def meta(place: int) -> bytes:
        where = struct.pack(">BBH", 0x44, 0, 1 + count)
        where += struct.pack(">HHHII", 1, 0, 1, place, len(grid))
        for id in ids:
            where += struct.pack(">HHHII", id, 0, 1, place + len(grid), len(tile))
        return full_box(
            b"meta",
            0,
            0,
            full_box(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, 0, struct.pack(">H", 1)),
            full_box(b"iloc", 0, 0, where),
            full_box(b"iinf", 0, 0, struct.pack(">H", 1 + count), *entries),
            full_box(b"iref", 0, 0, box(b"dimg", struct.pack(f">HH{count}H", 1, count, *ids))),
            box(
                b"iprp",
                properties,
                full_box(b"ipma", 0, 0, struct.pack(">I", 1 + count), of_grid, of_tiles),
            ),
        )

    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miafMA1A")
    place = len(head) + len(meta(0)) + 8
    return head + meta(place) + box(b"mdat", grid, tile)


def codestream(
    width: int, height: int, components: int = 1, tile: tuple[int, int] | None = None
) -> bytes:
    """Return a JPEG 2000 codestream of empty packets.

    Args:
        tile: width and height of a tile; None for one that has all. Only the first is there.
    """
    tile_width, tile_height = tile or (width, height)
    size = struct.pack(
        ">HIIIIIIIIH", 0, width, height, 0, 0, tile_width, tile_height, 0, 0, components
    )
    levels = 5
    style = struct.pack(">BBHBBBBBB", 0, 0, 1, 0, levels, 4, 4, 0, 1)
    quantization = bytes([2 << 5]) + bytes([8 << 3]) * (3 * levels + 1)
    packets = bytes((levels + 1) * components)
    part = struct.pack(">HIBB", 0, 12 + 2 + len(packets), 0, 1)
    return (
        b"\xff\x4f"
        + segment(0x51, size + bytes([7, 1, 1]) * components)
        + segment(0x52, style)
        + segment(0x5C, quantization)
        + segment(0x90, part)
        + b"\xff\x93"
        + packets
        + b"\xff\xd9"
    )


def jpeg_2000(
    width: int, height: int, components: int = 1, *, declared: tuple[int, int] | None = None
) -> bytes:
    """Return a JPEG 2000 file.

    Args:
        declared: the size that the container says instead of the codestream's.
    """
    says = declared or (width, height)
    head = box(b"ihdr", struct.pack(">IIHBBBB", says[1], says[0], components, 7, 7, 0, 0))
    colour = box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17 if components == 1 else 16))
    return (
        box(b"jP  ", b"\r\n\x87\n")
        + box(b"ftyp", b"jp2 ", bytes(4), b"jp2 ")
        + box(b"jp2h", head, colour)
        + box(b"jp2c", codestream(width, height, components))
    )


# BMP


def bmp(
    width: int,
    height: int,
    data: bytes,
    bits: int = 8,
    *,
    compression: int = 0,
    colours: int = 0,
    palette: bytes | None = None,
    head_size: int = 40,
    offset: int | None = None,
) -> bytes:
    """Return a BMP file; `palette` is black if it is None, and `offset` where pixels begin."""
    if palette is None:
        palette = bytes(4 * 2**bits) if bits <= 8 else b""
    info = struct.pack(
        "<IiiHHIIiiII", head_size, width, height, 1, bits, compression, len(data), 0, 0, colours, 0
    )
    start = 14 + len(info) + len(palette) if offset is None else offset
    size = 14 + len(info) + len(palette) + len(data)
    return b"BM" + struct.pack("<IHHI", size & 0xFFFFFFFF, 0, 0, start) + info + palette + data


# What is not an image format of the service


def iptc(inner: bytes, width: int, height: int) -> bytes:
    """Return an IPTC file that says a size and holds another picture, in pieces."""

    def field(record: int, dataset: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, dataset, len(data)) + data

    head = field(3, 60, b"\1\0") + field(3, 20, struct.pack(">H", width))
    head += field(3, 30, struct.pack(">H", height)) + field(3, 120, b"\x05")
    pieces = range(0, len(inner), 30_000)
    return head + b"".join(field(8, 10, inner[start : start + 30_000]) for start in pieces)


def ico(inner: bytes, side: int = 16, *, kind: int = 1) -> bytes:
    """Return an icon (or a cursor: 2) that says it is small, whatever the picture in it is."""
    entry = struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(inner), 22)
    return struct.pack("<HHH", 0, kind, 1) + entry + inner


def icns(inner: bytes) -> bytes:
    """Return an icon of macOS that says 16 x 16."""
    entry = b"icp4" + struct.pack(">I", 8 + len(inner)) + inner
    return b"icns" + struct.pack(">I", 8 + len(entry)) + entry


def psd(width: int, height: int, layers: bytes, channels: int = 3) -> bytes:
    """Return a Photoshop file; `layers` is the content of its section of layers."""
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, height, width, 8, 3)
    section = struct.pack(">I", len(layers)) + layers
    return head + bytes(4) + bytes(4) + section + bytes(2) + bytes(width * height * channels)


def tiff_fields(data: bytes) -> dict[int, int]:
    """Return where the entries of the first directory of a TIFF have their types, by tag."""
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    places = range(start + 2, start + 2 + 12 * count, 12)
    return {struct.unpack_from("<H", data, place)[0]: place + 2 for place in places}


def patched(data: bytes, *places: tuple[int, str, int]) -> bytes:
    """Return a file with numbers written over: where, as what, and which."""
    changed = bytearray(data)
    for place, form, number in places:
        struct.pack_into(form, changed, place, number)
    return bytes(changed)
