"""Photos in folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

# What the service reads, some of it only with the extra `formats`; without it, its answer says so.
# The page has the same list, in files.js.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif"}
    | {".tif", ".tiff", ".bmp", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
    | {".heic", ".heif", ".hif", ".jxl"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}  # of cameras
)
NAMED_SUFFIXES = 8  # in a sentence


def find_images(folders: Iterable[Path], suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Return the files below folders that look like images by their suffix.

    Args:
        folders: a single file is returned whatever its suffix.
        suffixes: in lower case, as `.jpg`.

    Returns:
        The files in the order of the folders, sorted within each.
    """
    return sort_files(folders, suffixes)[0]


def sort_files(
    folders: Iterable[Path], suffixes: Collection[str] = SUFFIXES
) -> tuple[list[Path], list[Path]]:
    """Return what `find_images` finds below folders, and the other files there."""
    images: list[Path] = []
    others: list[Path] = []
    for folder in folders:
        if folder.is_file():
            images.append(folder)
            continue
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            (images if file.suffix.lower() in suffixes else others).append(file)
    return images, others


def describe_others(files: Sequence[Path]) -> str:
    """Return how many files are left out, and which: `12 files ...: 10 .txt, 2 .mp4`."""
    counts = Counter(file.suffix.lower() or "without a suffix" for file in files).most_common()
    kinds = [f"{count} {suffix}" for suffix, count in counts[:NAMED_SUFFIXES]]
    rest = sum(count for _, count in counts[NAMED_SUFFIXES:])
    if rest:
        kinds.append(f"{rest} others")
    what = (
        "1 file that is no photo" if len(files) == 1 else f"{len(files)} files that are no photos"
    )
    return f"{what}: {', '.join(kinds)}"


def free_photos() -> Path:
    """Return the folder of the free photos in scikit-image's wheel."""
    import skimage  # a development dependency: most commands don't need it

    return Path(skimage.__file__).parent / "data"
