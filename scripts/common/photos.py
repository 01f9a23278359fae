"""Photos in folders."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from PIL import Image


def find_images(folders: Iterable[Path], suffixes: Collection[str] | None = None) -> list[Path]:
    """Return the files below folders that look like images by their suffix.

    Args:
        folders: a single file is returned whatever its suffix.
        suffixes: in lower case, as `.jpg`; None for those of all formats that Pillow knows.

    Returns:
        The files in the order of the folders, sorted within each.
    """
    wanted = set(Image.registered_extensions()) if suffixes is None else suffixes
    files = []
    for folder in folders:
        if folder.is_file():
            files.append(folder)
            continue
        found = (path for path in folder.rglob("*") if path.suffix.lower() in wanted)
        files += sorted(path for path in found if path.is_file())
    return files


def free_photos() -> Path:
    """Return the folder of the free photos in scikit-image's wheel."""
    import skimage  # a development dependency: most commands don't need it

    return Path(skimage.__file__).parent / "data"
