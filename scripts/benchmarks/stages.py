"""Where the milliseconds of a request go, one request at a time.

The processes of the service record when their functions begin and end (`benchmarks.spans`), and the
client records when it sends a request and when it has the answer. Each moment counts for the
function that began last. So the parts add up to the whole, and the time a function waits for
something that isn't measured (a call to another process, the gathering of a batch) is its own.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common.own_service import Service
from common.paths import IMPORT_PATH

from benchmarks.closed_loop import Client
from benchmarks.spans import FOLDER

NOTING = "benchmarks.spans:build"

# What each function's own time is, in the order of a request.
STAGES = {
    "index": {
        "client": "HTTP, proxy, and the call of the ingress",
        "FastAPI.__call__": "ingress: HTTP and JSON",
        "Inset.index": "calls between the boxes: queue, serialisation, transport",
        "StoreDeployment.find": "store: is it there already",
        "SegmenterDeployment.segment": "segmenter: batch wait",
        "Segmenter.segment": "segmenter: the rest",
        "decode": "segmenter: decode",
        "make_thumbnail": "segmenter: thumbnail",
        "YoloV5Detector.detect": "segmenter: detect",
        "Segmenter._cut": "segmenter: crops",
        "EncoderDeployment.encode_photo": "encoder: batch wait",
        "Encoder.encode_images": "encoder: forward",
        "Encoder.preprocess": "encoder: normalise",
        "StoreDeployment.put": "store: group wait",
        "Store.apply": "store: write and sync",
    },
    "search": {
        "client": "HTTP, proxy, and the call of the ingress",
        "FastAPI.__call__": "ingress: HTTP and JSON",
        "Inset.search": "calls between the boxes: queue, serialisation, transport",
        "EncoderDeployment.encode_query": "encoder: scale, and batch wait",
        "decode": "encoder: decode",
        "Encoder.encode_images": "encoder: forward",
        "Encoder.preprocess": "encoder: normalise",
        "ChunkIndexDeployment.rank": "index: batch wait, ranker",
        "ChunkIndex.search": "index: search",
        "StoreDeployment.records": "store: read",
    },
}
COLUMNS = {
    "request": ("request", "{}"),
    "stage": ("stage", "{}"),
    "ms": ("ms", "{:.2f}"),
    "share": ("of all", "{:.0%}"),
}


class Span(NamedTuple):
    """A call of a function; nanoseconds."""

    begin: int
    end: int
    label: str


def start(service: Service, folder: Path) -> None:
    """Start a service that was made with `import_path=NOTING`, and have it note its times.

    Args:
        folder: where to.
    """
    service.launch(**{FOLDER: str(folder), "PYTHONPATH": IMPORT_PATH})
    service.wait_until_ready()


def stages(
    service: Service, folder: Path, photos: Iterator[bytes], queries: Iterator[bytes], count: int
) -> list[dict[str, Any]]:
    """Send requests one after another, and tell where the time went.

    Args:
        service: a running one that notes.
        folder: where to.
        photos: encoded, each another one.
        queries: encoded.
        count: of photos, and of queries.
    """
    requests = {
        "index": send(service, "/index", photos, count),
        "search": send(service, "/search", queries, count),
    }
    spans = sorted(read_spans(folder))
    return [row for name, sent in requests.items() for row in rows(name, STAGES[name], sent, spans)]


def send(service: Service, path: str, bodies: Iterator[bytes], count: int) -> list[Span]:
    """Send requests, and return when; the first ones, which warm up, are left out."""
    client, sent = Client(service.url), []
    warm_up = max(2, count // 5)
    for number in range(warm_up + count):
        body, begin = next(bodies), time.monotonic_ns()
        client.post(path, body)
        if number >= warm_up:
            sent.append(Span(begin, time.monotonic_ns(), "client"))
    client.close()
    return sent


def read_spans(folder: Path) -> Iterator[Span]:
    """Read what all processes have noted."""
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            begin, end, label = line.split(" ", 2)
            yield Span(int(begin), int(end), label)


def rows(
    request: str, names: Mapping[str, str], sent: Iterable[Span], spans: list[Span]
) -> list[dict[str, Any]]:
    """Return the mean of each stage over requests of a kind, and their sum."""
    begins = [span.begin for span in spans]
    totals, whole, count = defaultdict(int), 0, 0
    for client in sent:
        first, last = np.searchsorted(begins, [client.begin, client.end])
        inside = [s for s in spans[first:last] if s.end <= client.end and s.label in names]
        for label, own in own_times([client, *inside]).items():
            totals[label] += own
        whole, count = whole + client.end - client.begin, count + 1
    found = [
        {"request": request, "stage": name, "ms": totals[label] / count / 1e6,
         "share": totals[label] / whole}
        for label, name in names.items()
    ]  # fmt: skip
    return [*found, {"request": request, "stage": "all", "ms": whole / count / 1e6, "share": 1.0}]


def own_times(spans: Iterable[Span]) -> dict[str, int]:
    """Divide the time among the functions: each moment is that one's which began last.

    Args:
        spans: the first one holds all others.

    Returns:
        Nanoseconds by label; they add up to the first one's length.
    """
    spans = list(spans)
    moments = sorted({moment for span in spans for moment in (span.begin, span.end)})
    own: dict[str, int] = defaultdict(int)
    for begin, end in itertools.pairwise(moments):
        running = [span for span in spans if span.begin <= begin and span.end >= end]
        own[max(running).label] += end - begin
    return dict(own)
