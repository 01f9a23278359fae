"""Photos of a store are encoded again, or are asked about themselves."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import read_settings
from tqdm import tqdm

from deployments.decoding.decoder import Decoder
from deployments.errors import InsetError, StoreFull, StoreUnusable
from deployments.records import EncoderIdentity, Facts
from deployments.settings import NetworkSection, SegmenterSettings, Settings
from deployments.store.asking import Ask, ask_again, ids_to_ask
from deployments.store.reindexing import (
    Encode,
    Originals,
    Reindexing,
    StoreInUse,
    needs_reindexing,
)
from deployments.store.store import Store
from upkeep.outcomes import NOT_IN_PLACE, WRONG, Refused

if TYPE_CHECKING:
    from common.photo_encoding import PhotoEncoding

# Photos that are encoded at once, at least; and that are asked about themselves.
REINDEXED_AT_ONCE, ASKED_AT_ONCE = 8, 32


def reindex(arguments: argparse.Namespace) -> int:
    """Encode all photos again with the configured encoder, and put the new store in place.

    If the store has vectors of that encoder, only ask its photos about themselves.

    Raises:
        Refused: the disk is full.
    """
    # Threads that spin while they wait would take the cores from the service, and from each other.
    # This must be in the environment before torch is loaded, which no other command needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from deployments.encoder.files import find_encoder

    settings = read_settings(arguments.config)
    encoder = find_encoder(settings.encoder).identity
    if not needs_reindexing(arguments.path, encoder):
        return ask_photos(arguments.path, encoder, settings)
    work = Reindexing(
        arguments.path,
        encoder,
        encoding(settings),
        made_by={"segmenter": chunk_options(settings.segmenter), "facts": settings.facts},
        batch=max(settings.segmenter.batch_size, REINDEXED_AT_ONCE),
    )
    with closing(work):
        try:
            with tqdm(total=work.photos, initial=work.done, unit="photo") as progress:
                for _ in work.catch_up():
                    progress.total = work.photos
                    progress.update(work.done - progress.n)
            done = work.swap(keep=not arguments.remove_old)
        except StoreFull as error:
            raise Refused(f"{error.detail} Then run this again: it continues.") from None
        except StoreInUse:
            list_left_out(work)
            print(
                f"{work.done:,} photos are ready in {work.folder}. To put the new store in place, "
                "stop the service, and whatever else has the old one open, and run this again, "
                "which takes seconds."
            )
            return NOT_IN_PLACE
    list_left_out(work)
    print(f"Reindexed {done.photos:,} photos with {encoder.name}: start the service.")
    if done.kept is not None:
        print(f"The old store is kept in {done.kept}. `restore` reads it. Remove it to free space.")
    return WRONG if work.left_out else 0


def ask_photos(path: Path, encoder: EncoderIdentity, settings: Settings) -> int:
    """Ask the photos of a store about themselves that were not asked; leave its vectors alone.

    Raises:
        Refused: the disk is full.
    """
    with closing(Originals(path)) as old:
        ids = list(ids_to_ask(old, settings.facts))
    if not ids:
        print(
            f"The store in {path} has vectors of {encoder.name}, and its photos were asked what "
            "the config says: nothing to do."
        )
        return 0
    try:
        store = Store(path, encoder, lock_timeout_s=0)
    except StoreUnusable as error:
        print(
            f"{error}\n{len(ids):,} photos are to be asked about themselves (date, camera, place). "
            "Stop the service, and run this again. It can be interrupted, and continues."
        )
        return NOT_IN_PLACE
    failed: dict[str, tuple[str | None, str]] = {}
    with (
        closing(store),
        ThreadPoolExecutor() as threads,
        tqdm(total=len(ids), unit="photo") as progress,
    ):
        for start in range(0, len(ids), ASKED_AT_ONCE):
            some = ids[start : start + ASKED_AT_ONCE]
            try:
                failed |= ask_again(store, some, settings.facts, asking(settings, threads))
            except StoreFull as error:
                raise Refused(f"{error.detail} Then run this again: it continues.") from None
            progress.update(len(some))
    for id, (filename, why) in failed.items():
        print(id, filename or "-", why, sep="\t")
    print(f"Asked {len(ids) - len(failed):,} photos about themselves; {len(failed):,} can't be.")
    return WRONG if failed else 0


def asking(settings: Settings, threads: Executor) -> Ask:
    """Return what asks photos about themselves."""
    decoder = Decoder(settings.limits.image)

    def ask(data: bytes) -> Facts | InsetError:
        try:
            return dict(decoder.decode(data).facts)
        except InsetError as error:
            return error

    return lambda images: list(threads.map(ask, images))


def chunk_options(settings: SegmenterSettings) -> dict[str, Any]:
    """Return the options that determine chunks; the others say what computes them."""
    return settings.model_dump(mode="json", exclude=set(NetworkSection.model_fields))


def encoding(settings: Settings) -> Encode:
    """Return what encodes photos as a config says. The networks are loaded when it is called."""

    @cache
    def load() -> PhotoEncoding:
        from common.photo_encoding import PhotoEncoding  # takes seconds

        return PhotoEncoding(settings)

    return lambda images: load().encode(images)


def list_left_out(work: Reindexing) -> None:
    """Print a line for each photo that can't be indexed, and then a sentence."""
    for id, (filename, why) in work.left_out.items():
        print(id, filename or "-", why, sep="\t")
    if work.left_out:
        print(
            f"{len(work.left_out):,} photos can't be indexed and are not in the new store; the "
            "old store is kept with them, whatever the options."
        )
