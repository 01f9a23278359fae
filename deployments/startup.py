"""End `serve run` with one sentence if the service can't start with its configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.errors import StartupError

# Deployments send each other more than an image: its vectors, its preview, changes of the store.
BESIDES_BYTES = 64 * 2**20
# Time for a worker's output to reach the terminal of `serve run`.
PRINTING_S = 2
# Longer than `serve run` needs to end, and to end this process.
ENDING_S = 20


@contextmanager
def ending_serve_run(kind: type[StartupError] = StartupError) -> Iterator[None]:
    """Print an error of this kind, and end the `serve run` that waits for this application.

    Otherwise `serve run CONFIG` would wait forever for an application that can't be built. A
    cluster that was started with `ray start` keeps running, and `serve status` shows the error.
    """
    try:
        yield
    except kind as error:
        print(f"\nInset can't start: {error}\n", file=sys.stderr, flush=True)
        driver = _find_serve_run()
        if driver is not None:
            time.sleep(PRINTING_S)
            os.kill(driver, signal.SIGTERM if _ignores_interrupts(driver) else signal.SIGINT)
            time.sleep(ENDING_S)  # otherwise Ray would print the stack several times
        raise


def check_messages(max_image_bytes: int) -> None:
    """Check that deployments may send each other an image of so many bytes.

    Ray Serve decides it by the environment (private; seen in 2.60).

    Raises:
        StartupError
    """
    from ray.serve._private import constants  # here, because the rest of this module needs no Ray

    most = constants.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH
    if constants.RAY_SERVE_USE_GRPC_BY_DEFAULT and most < max_image_bytes + BESIDES_BYTES:
        raise StartupError(
            f"deployments may send each other {most:,} bytes, too little for an image of "
            f"limits.max_image_bytes: {max_image_bytes}. In the config's runtime_env.env_vars, set "
            'RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH: "2147483647", as in serve_config.yaml.'
        )


def _ignores_interrupts(process: int) -> bool:
    """Return whether a process ignores SIGINT, like a background job (`&`) of a shell script."""
    listing = ["ps", "-o", "ignored=", "-p", str(process)]
    mask = subprocess.run(listing, capture_output=True, text=True).stdout
    return bool(int(mask.strip() or "0", 16) & 1 << (signal.SIGINT - 1))


def _find_serve_run() -> int | None:
    """Return the id of the `serve run` process among the ancestors of this process, if any."""
    process = os.getppid()
    while process > 1:
        listing = ["ps", "-ww", "-o", "ppid=,args=", "-p", str(process)]
        try:
            status = subprocess.run(listing, capture_output=True, text=True).stdout.split(
                maxsplit=1
            )
        except OSError:  # small container images have no ps
            return None
        if len(status) < 2:
            return None
        parent, command = status
        words = command.split()
        if any(
            os.path.basename(word) == "serve" and words[position + 1 : position + 2] == ["run"]
            for position, word in enumerate(words)
        ):
            return process
        process = int(parent)
    return None
