"""HAProxy in front of the service: what it opens, and what happens when it dies."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
import pytest
from common.own_service import command

from tests.support.photos.pictures import picture
from tests.support.running.waiting import wait_until
from tests.support.service.http_client import PNG
from tests.support.service.services import OwnService


def haproxies(service: OwnService) -> list[psutil.Process]:
    return [process for process in service.processes() if "/haproxy " in command(process)]


def listens(processes: Sequence[psutil.Process]) -> set[tuple[str, int]]:
    return {
        tuple(connection.laddr)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.fixture(autouse=True)
def _is_there(service: OwnService) -> None:
    if not haproxies(service):
        pytest.skip("there is no HAProxy for this machine")


def test_it_listens_at_the_port_of_the_service_and_nowhere_else(service: OwnService) -> None:
    """By Ray's own config it has statistics and metrics for everybody on the network."""
    assert listens(haproxies(service)) == {("127.0.0.1", service.port)}


def test_nobody_else_may_give_it_orders(service: OwnService) -> None:
    words = command(haproxies(service)[0]).split()
    config = Path(words[words.index("-f") + 1])
    socket = next(
        Path(line.split()[2])
        for line in config.read_text().splitlines()
        if line.split()[:2] == ["stats", "socket"]
    )
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    folder = next(parent for parent in config.parents if parent.name.startswith("inset-"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_url_may_be_long(client: httpx.Client) -> None:
    """As behind Ray Serve's own proxy."""
    answer = client.get(f"/nothing?text={'x' * 60_000}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_another_one_takes_the_place_of_one_that_died(service: OwnService) -> None:
    killed = haproxies(service)
    for process in killed:
        process.kill()
    wait_until(service.is_ready, "the service answers again", 90)
    assert {process.pid for process in haproxies(service)}.isdisjoint(p.pid for p in killed)


def test_while_no_ingress_lives_requests_wait_or_are_told_to_come_back(
    service: OwnService, client: httpx.Client
) -> None:
    for process in service.replicas("Ingress"):
        process.kill()
    answers = []

    def is_back() -> bool:
        try:
            answers.append(client.post("/search", content=picture("front"), headers=PNG))
        except httpx.TransportError:  # of a request that the killed one had got
            return False
        return answers[-1].status_code == 200

    wait_until(is_back, "a search is answered", 90)
    for answer in answers[:-1]:
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) > 0
