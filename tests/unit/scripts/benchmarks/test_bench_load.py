"""Clients in a closed loop, against a server that answers as it is told."""

from __future__ import annotations

import itertools
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from benchmarks import overload
from benchmarks.closed_loop import Answer, ClosedLoop, Stretch, complete, percentiles, steady

from tests.support.service.services import free_port


class Handler(BaseHTTPRequestHandler):
    """Answers a body with itself: 200 after 20 ms; `busy` with 503, `gone` not at all.

    What is sent as `early` is answered when as many have come as `meeting` waits for.
    """

    protocol_version = "HTTP/1.1"
    connections: ClassVar[set] = set()
    most, now = 0, 0
    meeting = threading.Barrier(3)
    lock = threading.Lock()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.connections.add(self.client_address)
        if body == b"gone":
            self.close_connection = True
            return
        with self.lock:
            Handler.now += 1
            Handler.most = max(Handler.most, Handler.now)
        if body.startswith(b"early"):
            self.meeting.wait(20)
        time.sleep(0.02)
        with self.lock:
            Handler.now -= 1
        self.send_response(503 if body == b"busy" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    Handler.connections.clear()
    Handler.most = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_each_client_keeps_its_connection_and_sends_one_request_at_a_time(url):
    # The first ones wait for each other: else a slow client might find nothing left to send.
    bodies = [b"early %d" % number for number in range(3)] + [b"%d" % n for n in range(3, 12)]
    with ClosedLoop(url, "/", iter(bodies), 3, bytes.decode) as loop:
        stretch = complete(loop, len(bodies), "request")
    assert sorted(answer.found for answer in stretch.good) == sorted(map(bytes.decode, bodies))
    assert (len(Handler.connections), Handler.most) == (3, 3)
    assert stretch.errors == 0
    assert min(answer.ended - answer.began for answer in loop.answers) >= 0.02
    assert stretch.seconds >= 4 * 0.02


def test_errors_are_told_and_count_neither_as_latency_nor_as_rate(url):
    bodies = [b"fine", b"busy", b"gone", b"fine"]
    with ClosedLoop(url, "/", iter(bodies), 1) as loop:
        stretch = complete(loop, len(bodies), "request")
    assert [answer.status for answer in stretch.answers] == [200, 503, 0, 200]
    assert [answer.found for answer in stretch.answers] == [4, None, None, 4]
    assert stretch.errors == 2
    assert stretch.rate == pytest.approx(2 / stretch.seconds)


def test_a_service_that_is_down_ends_the_loop_too():
    with ClosedLoop(f"http://127.0.0.1:{free_port()}", "/", iter([b"a", b"b"]), 2) as loop:
        stretch = complete(loop, 2, "request")
    assert [answer.status for answer in stretch.answers] == [0, 0]


def test_a_steady_stretch_begins_when_all_are_busy_and_has_enough_answers(url):
    with ClosedLoop(url, "/", itertools.repeat(b"fine"), 3) as loop:
        (stretch,) = steady([loop], seconds=0)
        assert loop.is_running()
    assert not loop.is_running()
    assert not set(loop.answers[:3]) & set(stretch.answers)
    assert len(stretch.answers) >= 4 * 3
    assert stretch.rate < 3 / 0.02


def test_figures_of_a_stretch_by_hand():
    answers = [Answer(0, 0.001 * ms, 200, None) for ms in range(1, 102)]
    stretch = Stretch([*answers, Answer(0, 9, 500, None)], 2)
    assert stretch.latency == pytest.approx({"p50": 51, "p95": 96, "p99": 100})
    assert (stretch.rate, stretch.errors) == (50.5, 1)
    assert percentiles([]) == {}


# At a fixed rate


def test_bodies_come_at_a_rate_and_what_nobody_took_is_not_made_up_for(monkeypatch):
    now, slept = 100.0, []

    def sleep(seconds):
        nonlocal now
        slept.append(round(seconds, 3))
        now += seconds

    monkeypatch.setattr(overload.time, "perf_counter", lambda: now)
    monkeypatch.setattr(overload.time, "sleep", sleep)
    bodies = overload.at_rate(iter([b"a", b"b", b"c", b"d"]), rate=10)
    assert [next(bodies), next(bodies)] == [b"a", b"b"]
    now += 5
    assert [next(bodies), next(bodies)] == [b"c", b"d"]
    assert slept == [0.1, 0.1, 0, 0.1]
