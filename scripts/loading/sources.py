"""Where photos come from: folders, buckets of S3, and lists of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.photos import SUFFIXES, find_images
from pyarrow import fs

from deployments.errors import TooLarge

READ_AT_ONCE = 2**20  # bytes


class NoSource(Exception):
    """Nothing can be read there; the message says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file that may be a photo.

    Attributes:
        bucket: the URI of its bucket, with options (`s3://photos?region=eu-north-1`); "" for a file
            of this machine or of a network drive.
        path: in that bucket, beginning with its name; or of the file.
    """

    bucket: str
    path: str

    def __str__(self) -> str:
        return f"{urlsplit(self.bucket).scheme}://{self.path}" if self.bucket else self.path

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def read(self, max_bytes: int) -> bytes:
        """Return its bytes.

        Raises:
            OSError
            TooLarge: it has more than `max_bytes`, which are not read.
        """
        if not self.bucket:
            with open(self.path, "rb") as file:
                return _read(file, max_bytes)
        with file_system(self.bucket).open_input_stream(self.path) as stream:
            return _read(stream, max_bytes)


def find_sources(names: Sequence[str]) -> list[Source]:
    """Return the photos that are named.

    Args:
        names: folders, files, URIs of buckets or of folders in them (`s3://photos/2024`), and
            lists: text files (`.txt`) that have a file or a URI in each line.

    Raises:
        NoSource: one isn't there, or can't be read.
    """
    found: dict[Source, None] = {}
    for name in names:
        try:
            found |= dict.fromkeys(_find(name))
        except (OSError, ValueError) as error:  # pyarrow's are these
            raise NoSource(f"{name}: {error}") from None
    return list(found)


def _find(name: str) -> Iterator[Source]:
    if "://" in name:
        bucket, path = split(name)
        wanted = fs.FileSelector(path, recursive=True)
        for info in file_system(bucket).get_file_info(wanted):
            suffix = f".{info.extension.lower()}"
            if info.type == fs.FileType.File and suffix in SUFFIXES:
                yield Source(bucket, info.path)
    elif name.endswith(".txt") and Path(name).is_file():
        for line in Path(name).read_text().splitlines():
            if "://" in line:
                yield Source(*split(line.strip()))
            elif line.strip():
                yield Source("", str(Path(line.strip()).absolute()))
    elif Path(name).exists():
        for file in find_images([Path(name)]):
            yield Source("", str(file.absolute()))
    else:
        raise NoSource(f"{name}: no such file or folder.")


def split(uri: str) -> tuple[str, str]:
    """Return the URI of a bucket, with the options of a URI, and the path in it.

    The path isn't decoded: keys may have any characters.
    """
    bare, mark, options = uri.partition("?")
    scheme, _, path = bare.partition("://")
    bucket = path.split("/", 1)[0]
    return f"{scheme}://{bucket}{mark}{options}", path.rstrip("/")


@lru_cache
def file_system(bucket: str) -> Any:
    """Return what reads a bucket.

    Raises:
        OSError, ValueError: it is no URI that pyarrow knows, or the bucket can't be reached.
    """
    system, _ = fs.FileSystem.from_uri(bucket)
    return system


def _read(stream: Any, max_bytes: int) -> bytes:
    data = bytearray()
    while piece := stream.read(READ_AT_ONCE):
        data += piece
        if len(data) > max_bytes:
            raise TooLarge(f"It has more than {max_bytes:,} bytes (limits.max_image_bytes).")
    return bytes(data)
