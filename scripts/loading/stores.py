"""The two ways into a store: through a running service, and as its only owner."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.errors import Unavailable, first_line
from deployments.outcomes import Outcome, go_on
from deployments.records import CheckedPhoto, EncodedPhoto, EncoderIdentity, Record, Stored
from deployments.store.operations import Put
from deployments.store.store import Store

T = TypeVar("T")

APPLICATION = "inset"
ATTEMPTS = 6  # with pauses of 1, 2, 4, ... seconds: a deployment that died is back by then


class StoreAccess(Protocol):
    """What is asked of a store; see `StoreDeployment`."""

    def find(self, wanted: list[tuple[str, str]]) -> list[Outcome[Record | None]]: ...

    def put(
        self, photos: list[CheckedPhoto], encoded: list[Outcome[EncodedPhoto]]
    ) -> list[Outcome[Stored]]: ...


class ServiceStore:
    """The store of a service that runs in the same Ray. It can be sent to other processes."""

    def __init__(self) -> None:
        self._handle = serve.get_deployment_handle("Store", APPLICATION)

    def find(self, wanted: list[tuple[str, str]]) -> list[Outcome[Record | None]]:
        return patiently(lambda: self._handle.find.remote(wanted).result())

    def put(
        self, photos: list[CheckedPhoto], encoded: list[Outcome[EncodedPhoto]]
    ) -> list[Outcome[Stored]]:
        return patiently(lambda: self._handle.put.remote(photos, encoded).result())


class OwnStore:
    """A store that no service has open. It can be sent to other processes, of one Ray.

    Raises:
        StoreUnusable, EncoderMismatch
    """

    def __init__(self, path: Path, encoder: EncoderIdentity, max_bytes: int | None) -> None:
        # LMDB's file has one owner, on the machine that this is called on.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # If it dies it comes back, and is asked again: what is stored by then, it finds.
        process: Any = ray.remote(StoreProcess)
        self._process = process.options(
            num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
        ).remote(path, encoder, max_bytes)
        _answer(self._process.find.remote([]))

    def find(self, wanted: list[tuple[str, str]]) -> list[Outcome[Record | None]]:
        found: list[Outcome[Record | None]] = _answer(self._process.find.remote(wanted))
        return found

    def put(
        self, photos: list[CheckedPhoto], encoded: list[Outcome[EncodedPhoto]]
    ) -> list[Outcome[Stored]]:
        stored: list[Outcome[Stored]] = _answer(self._process.put.remote(photos, encoded))
        return stored

    def close(self) -> None:
        _answer(self._process.close.remote())


class StoreProcess:
    """The process that owns a store."""

    def __init__(self, path: Path, encoder: EncoderIdentity, max_bytes: int | None) -> None:
        self._open = lambda: Store(path, encoder, max_bytes=max_bytes, lock_timeout_s=0)

    @cached_property
    def store(self) -> Store:
        """The store. It is opened by the first call, which can raise an error as it is."""
        return self._open()

    def find(self, wanted: list[tuple[str, str]]) -> list[Outcome[Record | None]]:
        """See `StoreReader.find_all`."""
        return self.store.find_all(wanted)

    def put(
        self, photos: list[CheckedPhoto], encoded: list[Outcome[EncodedPhoto]]
    ) -> list[Outcome[Stored]]:
        """See `StoreDeployment.put`."""
        puts = [
            Put(photo.id, photo.data, photo.filename, one, photo.metadata)
            for photo, one in zip(photos, encoded, strict=True)
            if not isinstance(one, Exception)
        ]
        return go_on(encoded, self.store.apply(puts) if puts else [])  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def patiently(call: Callable[[], list[Outcome[T]]]) -> list[Outcome[T]]:
    """Call a service until it answers, and nothing in its answer is `Unavailable`.

    Raises:
        Unavailable: it didn't.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        try:
            outcomes = call()
        except RayTaskError:
            raise
        except (RayError, RayServeException, BackPressureError, Unavailable) as error:
            reason = first_line(error)
            continue
        late = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
        if not late:
            return outcomes
        reason = late[0].detail
    raise Unavailable(f"The service's store didn't take it, in {ATTEMPTS} attempts: {reason}")


def _answer(reference: Any) -> Any:
    """Wait for an actor; raise its error as it was raised there."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause or error from None


def service_encoder() -> EncoderIdentity | None:
    """Return the encoder of the service that runs in this Ray; None if there is none.

    Raises:
        Unavailable: it runs, but does not answer.
    """
    if APPLICATION not in serve.status().applications:
        return None
    encoder = serve.get_app_handle(APPLICATION).stats.remote().result().encoder
    return EncoderIdentity(encoder.name, encoder.dimension, encoder.digest)
