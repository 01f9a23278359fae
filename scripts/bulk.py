"""Index many photos without HTTP: on all cores, GPUs and nodes of a Ray, straight into the store.

    scripts/bulk.py FOLDER... [--path STORE]              into a store that no service has open
    scripts/bulk.py FOLDER... --address auto              beside a running service, into its store

Each source is a folder, a file, a bucket of S3 or a folder in one (s3://photos/2024; options go
behind a question mark: s3://photos?region=eu-north-1), or a text file (.txt) with a file or a URI
in each line. Credentials of S3 are looked for where Amazon's own tools look for them.

With --address the work is done on the nodes of that Ray: `auto` is the one of this machine. If a
service runs there, the photos go through its store and are found at once; give the config that it
runs with. On several nodes each must reach the sources by the same names.

A photo whose bytes are stored already is left alone. So an interrupted run continues when the same
command is given again. Exit status 1 if any photo failed.

It needs Ray Data: pip install -e '.[bulk]'
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from common.config import DEFAULT_CONFIG, read_settings
from common.ending import end_on_signals, exit_status
from common.options import positive
from common.paths import IMPORT_PATH, ROOT
from tqdm import tqdm

from deployments.errors import InsetError, StartupError
from deployments.metadata import parse_metadata
from deployments.settings import Settings

BATCH = 16  # photos that a worker reads, encodes and stores together, at least
CONNECT_S = 10
AT_ONCE = 2  # batches of a worker: one is read or stored while the other is encoded


class Refused(Exception):
    """The run can't begin or go on; the message says why."""


def run(arguments: argparse.Namespace) -> int:
    """Index the sources; return the exit status.

    Raises:
        Refused: it can't begin, or not go on.
    """
    # Before Ray is loaded: it asks for a token by default, but doesn't look for it. And it would
    # say that workers which die may not come back; what fails is told at the end.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    from loading.sources import NoSource, find_sources
    from loading.stores import OwnStore, ServiceStore, service_encoder

    from deployments.encoder.files import find_encoder

    settings = read_settings(arguments.config)
    metadata = parse_metadata(arguments.metadata) if arguments.metadata else {}
    encoder = find_encoder(settings.encoder).identity
    try:
        sources = find_sources(arguments.sources)
    except NoSource as error:
        raise Refused(str(error)) from None
    if not sources:
        raise Refused("There are no photos in there (they are recognised by their suffix).")
    connect(arguments.address)
    known = service_encoder() if arguments.address else None
    if known is not None and known.digest != encoder.digest:
        raise Refused(
            f"The service's store has vectors of {known.name}, and {arguments.config} names "
            f"{encoder.name}: give the config of the service (--config)."
        )
    path = (arguments.path or ROOT / settings.store.path).absolute()
    own = OwnStore(path, encoder, settings.store.max_bytes) if known is None else None
    counts: Counter[str] = Counter()
    failures: list[tuple[str, str]] = []
    with closing(own) if own else nullcontext(), tqdm(total=len(sources), unit="photo") as bar:
        store = own or ServiceStore()
        workers = arguments.workers or count_workers(ray.cluster_resources())
        for file, status, reason in work(sources, settings, store, metadata, workers):
            if status == "full":
                raise Refused(f"{reason} Then run this again: it continues.")
            counts[status] += 1
            if status == "failed":
                failures.append((file, reason))
            bar.set_postfix(counts, refresh=False)
            bar.update()
    print(
        f"{len(sources):,} photos: {counts['created']:,} indexed, {counts['exists']:,} were "
        f"already stored, {counts['failed']:,} failed."
    )
    for file, reason in failures:
        print(f"  {file}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def connect(address: str | None) -> None:
    """Connect to a Ray, or start one for this run.

    Raises:
        Refused: there is none.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if address and address != "auto":
        host, _, port = address.rpartition(":")
        try:  # Ray would try for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except (OSError, ValueError, OverflowError) as error:
            raise Refused(f"There is no Ray at {address}: {error}") from None
    try:
        ray.init(
            address=address or "local",
            namespace="serve",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": IMPORT_PATH, "OMP_WAIT_POLICY": "PASSIVE"}},
            include_dashboard=None if address else False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise Refused(f"There is no Ray at {address}: {error}") from None
    end_on_signals()  # Ray has just put its own way to end in their place


def count_workers(resources: dict[str, float]) -> int:
    """Return how many workers a Ray has room for: one for each GPU, or else for each node."""
    nodes = sum(name.startswith("node:") and name != "node:__internal_head__" for name in resources)
    return int(resources.get("GPU", 0)) or max(1, nodes)


def work(
    sources: list[Any], settings: Settings, store: Any, metadata: dict[str, Any], workers: int
) -> Iterator[tuple[str, str, str]]:
    """Let workers store the sources; yield file, status and reason of each that is done."""
    import ray
    from loading.worker import Worker

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # there is one already
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    batch = max(BATCH, settings.segmenter.batch_size)
    rows = [{"bucket": source.bucket, "path": source.path} for source in sources]
    done = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / batch)).map_batches(
        Worker,
        fn_constructor_args=(settings, store, metadata),
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=2 * AT_ONCE,
            max_concurrent_calls_per_actor=AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=0,  # its threads use all cores of its node, beside whatever runs there
        num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
    )
    for row in done.iter_rows():
        yield row["file"], row["status"], row["reason"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="folder, file, URI or list")
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="of the service (%(default)s)"
    )
    parser.add_argument(
        "--path", type=Path, metavar="STORE", help="the store (store.path of the config)"
    )
    parser.add_argument("--address", help="of a Ray to work in: auto, or HOST:PORT")
    parser.add_argument(
        "--workers", type=positive, help="(one for each GPU, or else for each node)"
    )
    parser.add_argument(
        "--metadata",
        metavar="JSON",
        help="given to each photo of this run, to filter searches by, as '{\"year\": 2024}'",
    )
    return parser


def main() -> int:
    arguments = make_parser().parse_args()
    end_on_signals()
    try:
        return run(arguments)
    except ModuleNotFoundError as error:
        if error.name not in ("pyarrow", "pandas"):
            raise
        print("Ray Data is missing: pip install -e '.[bulk]'", file=sys.stderr)
    except InsetError as error:
        print(error.detail, file=sys.stderr)
    except (Refused, StartupError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt as interrupt:
        print("\nInterrupted. The photos counted are stored; the same command continues from here.")
        return exit_status(interrupt)
    return 1


if __name__ == "__main__":
    sys.exit(main())
