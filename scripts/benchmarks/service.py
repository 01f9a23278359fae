"""The whole service as its clients see it: over HTTP, from the same machine and its cores.

Each measurement has a service of its own, with its store in a temporary folder. Photos are sent
again and again, each time with other bytes, so that each is new; queries are parts of the photos.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.client import fetch_stats
from common.own_service import OwnService
from tqdm import tqdm

from benchmarks.closed_loop import (
    Client,
    ClosedLoop,
    Stretch,
    complete,
    steady,
    wait_until_answered,
)
from benchmarks.memory import MIB, Memory, Peak, growth, measure_roles, total
from benchmarks.photos import cut_queries, endless

WARM_UP = 8  # photos
SAMPLES = 40  # of the memory, during the requests
SEARCHERS = 8  # clients, while the memory is watched
ALL = "all together"


class Pictures:
    """What is sent.

    Args:
        files: the photos.

    Attributes:
        count: how many photos there are.
        photos: endless encoded photos, no two with the same bytes.
        others: the same for warming up, so that the measured photos are always the same.
        queries: parts of the photos, again and again.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.count = len(files)
        self.photos: Iterator[bytes] = endless(files)
        self.others: Iterator[bytes] = endless(files, first=2**32)
        self.queries: Iterator[bytes] = itertools.cycle(cut_queries(files))


@contextmanager
def prepared(
    encoder: Path,
    args: dict[str, dict[str, Any]],
    import_path: str = "graph:build",
    base: str = "serve_config.yaml",
) -> Iterator[OwnService]:
    """Configure a service with a store of its own; both are removed at the end.

    Args:
        encoder: folder of a CLIP.
        args: sections of `args` that differ from the config.
        import_path: of the function that builds it.
        base: the config's name, in the repository's root.
    """
    chosen = {"pretrained_model_name_or_path": str(encoder)}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        args = args | {"encoder": chosen | args.get("encoder", {})}
        with OwnService(Path(folder), args, import_path=import_path, base=base) as service:
            yield service


def index_loop(service: OwnService, photos: Iterator[bytes], in_flight: int) -> ClosedLoop:
    """Return clients that index photos, and count the chunks of each."""
    return ClosedLoop(service.url, "/index", photos, in_flight, count_chunks)


def search_loop(service: OwnService, queries: Iterator[bytes], clients: int) -> ClosedLoop:
    """Return clients that search."""
    return ClosedLoop(service.url, "/search", queries, clients)


def count_chunks(content: bytes) -> int:
    """Return the number of chunks of all photos in an answer of `/index`."""
    return sum(len(image["chunks"]) for image in json.loads(content)["images"])


INDEX_COLUMNS = {
    "in_flight": ("requests in flight", "{}"),
    "photos": ("photos", "{}"),
    "errors": ("errors", "{}"),
    "photos_per_second": ("photos/s", "{:.2f}"),
    "crops_per_photo": ("crops/photo", "{:.1f}"),
    "crops_per_second": ("crops/s", "{:.1f}"),
    "p50": ("p50, ms", "{:,.0f}"),
    "p99": ("p99, ms", "{:,.0f}"),
    "pss": ("peak PSS, MiB", "{:,.0f}"),
}


def index(service: OwnService, pictures: Pictures, photos: int, in_flight: int) -> dict[str, Any]:
    """Index photos.

    Args:
        photos: how many are measured; others are indexed before, because the first are slow.
        in_flight: requests at a time.
    """
    warm_up(service, pictures)
    with (
        Peak(service.processes) as peak,
        index_loop(service, itertools.islice(pictures.photos, photos), in_flight) as loop,
    ):
        stretch = complete(loop, photos, "photo")
    crops = sum(answer.found for answer in stretch.good)
    return {
        "in_flight": in_flight,
        "photos": len(stretch.good),
        "errors": stretch.errors,
        "photos_per_second": stretch.rate,
        "crops_per_photo": crops / max(1, len(stretch.good)),
        "crops_per_second": crops / stretch.seconds,
        **stretch.latency,
        "pss": peak.pss / MIB,
    }


def warm_up(service: OwnService, pictures: Pictures) -> None:
    """Send some photos, and a query."""
    with index_loop(service, itertools.islice(pictures.others, WARM_UP), WARM_UP) as loop:
        complete(loop, WARM_UP, "photo")
    with search_loop(service, itertools.islice(pictures.queries, WARM_UP), 1) as loop:
        complete(loop, WARM_UP, "query")


SEARCH_COLUMNS = {
    "clients": ("clients", "{}"),
    "searches": ("searches", "{}"),
    "errors": ("errors", "{}"),
    "p50": ("p50, ms", "{:.1f}"),
    "p95": ("p95, ms", "{:.1f}"),
    "p99": ("p99, ms", "{:.1f}"),
    "per_second": ("searches/s", "{:.1f}"),
    "ratio": ("against 1 client", "{:.2f}"),
}


def search(
    service: OwnService, pictures: Pictures, clients: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Search with so many clients at a time.

    Args:
        clients: the numbers of clients, each measured alone.
        seconds: how long each number of clients is measured.

    Returns:
        A row for each number; the ratio is that of the searches per second.
    """
    rows = []
    for number in clients:
        with search_loop(service, pictures.queries, number) as loop:
            (stretch,) = steady([loop], seconds)
        rows.append(
            {
                "clients": number,
                "searches": len(stretch.good),
                "errors": stretch.errors,
                **stretch.latency,
                "per_second": stretch.rate,
            }
        )
    alone = next((row["per_second"] for row in rows if row["clients"] == 1), None)
    return [row | {"ratio": alone and row["per_second"] / alone} for row in rows]


MIXED_COLUMNS = {
    "load": ("load", "{}"),
    "p50": ("search p50, ms", "{:.1f}"),
    "p99": ("search p99, ms", "{:.1f}"),
    "searches_per_second": ("searches/s", "{:.1f}"),
    "photos_per_second": ("photos/s", "{:.2f}"),
    "errors": ("errors", "{}"),
}


def mixed(
    service: OwnService, pictures: Pictures, in_flight: int, seconds: float
) -> list[dict[str, Any]]:
    """Search with one client, index at full rate, then do both at once.

    Args:
        in_flight: requests to index at a time.
        seconds: how long each is measured.
    """
    with search_loop(service, pictures.queries, 1) as searches:
        (searching,) = steady([searches], seconds)
    with index_loop(service, pictures.photos, in_flight) as photos:
        (indexing,) = steady([photos], seconds)
    with (
        index_loop(service, pictures.photos, in_flight) as photos,
        search_loop(service, pictures.queries, 1) as searches,
    ):
        both = steady([searches, photos], seconds)
    alone = search_figures(searching) | index_figures(indexing)
    together = search_figures(both[0]) | index_figures(both[1])
    ratios = {key: together[key] / alone[key] for key in together.keys() & alone.keys()}
    errors = sum(stretch.errors for stretch in both)
    return [
        {"load": "searching", **search_figures(searching), "errors": searching.errors},
        {"load": "indexing", **index_figures(indexing), "errors": indexing.errors},
        {"load": "both", **together, "errors": errors},
        {"load": "both / alone", **ratios},
    ]


def search_figures(searching: Stretch) -> dict[str, float]:
    """Return latencies, ms, and searches per second."""
    return {**searching.latency, "searches_per_second": searching.rate}


def index_figures(indexing: Stretch) -> dict[str, float]:
    """Return photos per second."""
    return {"photos_per_second": indexing.rate}


MEMORY_COLUMNS = {
    "process": ("process", "{}"),
    "ready": ("PSS when ready, MiB", "{:,.0f}"),
    "searched": ("after the searches", "{:,.0f}"),
    "indexed": ("after the photos", "{:,.0f}"),
    "per_1000_searches": ("growth per 1,000 searches, MiB", "{:+.2f}"),
    "per_1000_photos": ("per 1,000 photos", "{:+.2f}"),
}


def memory(
    service: OwnService, pictures: Pictures, searches: int, photos: int, in_flight: int
) -> list[dict[str, Any]]:
    """Measure the memory of all processes during searches, then during indexing.

    The growth is that of the second half of each, without pages of files. The chunk index may grow
    with photos, which it keeps; nothing may grow with searches.

    Args:
        searches, photos: numbers of requests.
        in_flight: requests to index at a time.
    """
    ready = measure_roles(service.processes())
    warm_up(service, pictures)
    queries = itertools.islice(pictures.queries, searches)
    with search_loop(service, queries, SEARCHERS) as loop:
        searched = watch(service, loop, searches)
    with index_loop(service, itertools.islice(pictures.photos, photos), in_flight) as loop:
        indexed = watch(service, loop, photos)
    return memory_rows(ready, searched, indexed)


# The memory by role, after so many answers.
Samples = list[tuple[int, dict[str, Memory]]]


def watch(service: OwnService, loop: ClosedLoop, requests: int) -> Samples:
    """Measure the memory again and again until a loop has ended."""
    samples: Samples = []
    running, count = True, 0
    with tqdm(total=requests, unit="request") as bar:
        while running:
            wait_until_answered(loop, min(requests, count + max(1, requests // SAMPLES)))
            running = loop.is_running()
            count = len(loop.answers)
            bar.update(count - bar.n)
            samples.append((count, measure_roles(service.processes())))
    return samples


def memory_rows(
    ready: dict[str, Memory], searched: Samples, indexed: Samples
) -> list[dict[str, Any]]:
    """Return a row for each role, the largest first, and one for all processes together."""
    names = sorted(indexed[-1][1], key=lambda name: -indexed[-1][1][name].pss)
    return [
        {
            "process": name,
            "ready": pick(ready, name).pss / MIB,
            "searched": pick(searched[-1][1], name).pss / MIB,
            "indexed": pick(indexed[-1][1], name).pss / MIB,
            "per_1000_searches": growth_of(searched, name),
            "per_1000_photos": growth_of(indexed, name),
        }
        for name in [*names, ALL]
    ]


def pick(roles: dict[str, Memory], name: str) -> Memory:
    """Return the memory of a role, or of all."""
    return total(roles) if name == ALL else roles.get(name, Memory(0, 0))


def growth_of(samples: Samples, name: str) -> float | None:
    """Return the growth of a role or of all, MiB per 1,000 requests."""
    counts = [count for count, _ in samples]
    return growth(counts, [pick(roles, name).own / MIB for _, roles in samples])


STARTUP_COLUMNS = {
    "photos": ("photos in the store", "{:,}"),
    "seconds": ("from `serve run` to the first answer, s", "{:.1f}"),
}


def startup(service: OwnService, pictures: Pictures) -> dict[str, Any]:
    """Start a service, and search until there is an answer; return the figures.

    Raises:
        ServiceFailed: the service ended, or doesn't answer in time.
    """
    query = next(pictures.queries)
    client = Client(service.url)
    began = time.perf_counter()
    service.launch()
    service.wait_until_ready(lambda: client.post("/search", query).is_good)
    seconds = time.perf_counter() - began
    client.close()
    stats = fetch_stats(service.url)
    return {"photos": stats["store"]["photos"], "seconds": seconds}
