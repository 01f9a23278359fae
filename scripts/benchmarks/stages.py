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
from common.own_service import OwnService
from common.paths import IMPORT_PATH

from benchmarks.closed_loop import Client
from benchmarks.spans import FOLDER

TRACING = "benchmarks.spans:build"  # the import path of a graph that records its times

# What a function's own time is spent on, in the order of a request.
STAGES = {
    "index": {
        "client": "HTTP, proxy, and the call of the ingress",
        "FastAPI.__call__": "ingress: HTTP and JSON",
        "Inset._store": "calls between deployments: queue, serialisation, transport",
        "StoreDeployment.find": "store: is it there already",
        "PhotoEncoderDeployment.encode": "photo encoder: batch wait",
        "Segmenter.segment": "segmenter: the rest",
        "Decoder.decode": "segmenter: decode",
        "scale_down": "segmenter: scale down",
        "make_thumbnail": "segmenter: thumbnail",
        "make_preview": "segmenter: preview",
        "CanvasDetector.detect": "segmenter: detect",
        "Segmenter.cut": "segmenter: crops",
        "Encoder.encode_photos": "encoder: forward",
        "Encoder.squares": "encoder: normalise",
        "StoreDeployment.put": "store: group wait",
        "Store.prepare": "store: checksums",
        "Store.commit": "store: write and sync",
    },
    "search": {
        "client": "HTTP, proxy, and the call of the ingress",
        "FastAPI.__call__": "ingress: HTTP and JSON",
        "Inset.search": "calls between deployments: queue, serialisation, transport",
        "QueryEncoderDeployment.encode_query": "encoder: scale, and batch wait",
        "Decoder.decode": "encoder: decode",
        "make_sketch": "encoder: sketch",
        "Encoder.encode_photos": "encoder: forward",
        "Encoder.squares": "encoder: normalise",
        "ChunkIndexDeployment.rank": "index: batch wait, ranker",
        "ChunkIndex.search": "index: search",
        "StoreDeployment.records": "store: read",
        "VerifierDeployment.verify": "verifier: previews and thread, calls between deployments",
        "StoreDeployment.previews": "store: read previews",
        "Verifier.verify": "verifier: the rest",
        "open_preview": "verifier: decode previews",
        "propose_by_correlation": "verifier: correlation",
        "describe_view": "verifier: corners of the query",
        "describe_region": "verifier: corners of photos",
        "propose_by_features": "verifier: pair corners",
        "align": "verifier: align, compare",
        "QueryEncoderDeployment.encode_looks": "second looks: encoder, scale and batch wait",
        "ChunkIndexDeployment.rank_all": "second looks: index, batch wait and ranker",
        "VerifierDeployment.verify_again": "second looks: previews and thread",
        "Verifier.verify_again": "second looks: verifier, the rest",
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


def start(service: OwnService, folder: Path) -> None:
    """Start a service, and return when it is ready.

    Args:
        service: made with `import_path=TRACING`.
        folder: gets the records.
    """
    service.launch(**{FOLDER: str(folder), "PYTHONPATH": IMPORT_PATH})
    service.wait_until_ready()


def stages(
    service: OwnService, folder: Path, photos: Iterator[bytes], queries: Iterator[bytes], count: int
) -> list[dict[str, Any]]:
    """Send requests one after another, and divide their time among the stages.

    Args:
        service: started by `start`.
        folder: has the records.
        photos: encoded, all different.
        queries: encoded.
        count: number of photos, and of queries.
    """
    requests = {
        "index": send(service, "/index", photos, count),
        "search": send(service, "/search", queries, count),
    }
    spans = sorted(read_spans(folder))
    return [row for name, sent in requests.items() for row in rows(name, STAGES[name], sent, spans)]


def send(service: OwnService, path: str, bodies: Iterator[bytes], count: int) -> list[Span]:
    """Send requests, and return the time of each, except of the first ones, which warm up."""
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
    """Read what all processes have recorded."""
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            begin, end, label = line.split(" ", 2)
            yield Span(int(begin), int(end), label)


def rows(
    request: str, names: Mapping[str, str], sent: Iterable[Span], spans: list[Span]
) -> list[dict[str, Any]]:
    """Return the mean time of each stage over requests of a kind, and their sum.

    Args:
        names: of the stages, by label.
        sent: the times of the requests at the client.
        spans: all that was recorded, sorted.
    """
    begins = [span.begin for span in spans]
    totals: dict[str, int] = defaultdict(int)
    whole = count = 0
    for client in sent:
        first, last = np.searchsorted(begins, [client.begin, client.end])
        inside = [s for s in spans[first:last] if s.end <= client.end and s.label in names]
        for label, own in own_times([client, *inside]).items():
            totals[label] += own
        whole, count = whole + client.end - client.begin, count + 1
    spent = {name: totals[label] for label, name in names.items()} | {"all": whole}
    return [
        {"request": request, "stage": name, "ms": ns / count / 1e6, "share": ns / whole}
        for name, ns in spent.items()
    ]


def own_times(spans: Iterable[Span]) -> dict[str, int]:
    """Divide time among functions: each moment counts for the one that began last.

    Args:
        spans: the first one contains all others.

    Returns:
        Nanoseconds by label; they add up to the length of the first span.
    """
    spans = list(spans)
    moments = sorted({moment for span in spans for moment in (span.begin, span.end)})
    own: dict[str, int] = defaultdict(int)
    for begin, end in itertools.pairwise(moments):
        running = [span for span in spans if span.begin <= begin and span.end >= end]
        own[max(running).label] += end - begin
    return dict(own)
