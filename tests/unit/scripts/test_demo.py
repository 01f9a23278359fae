"""How the demo stops its service."""

import signal
import subprocess
import sys

import demo
import pytest

# Stands for `serve run`: tells which signals it gets, and ends at the first that it doesn't ignore.
SERVICE = """
import signal, sys, time
def heard(number, frame):
    print(signal.Signals(number).name, flush=True)
    if signal.Signals(number).name not in sys.argv[1:]:
        sys.exit()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, heard)
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


class Service:
    """A service that was launched."""

    def __init__(self, *ignored):
        command = [sys.executable, "-c", SERVICE, *ignored]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def launched(self):
        return self.process


@pytest.fixture
def heard():
    """Stop a service, and return the signals that it got."""
    services = []

    def stop(service, **options):
        services.append(service)
        demo.stop(service, **options)
        return service.process.communicate(timeout=20)[0].split()

    yield stop
    for service in services:
        service.process.kill()
        service.process.wait()


def test_the_service_is_stopped_as_ctrl_c_does(heard):
    assert heard(Service(), interrupted=False) == ["SIGINT"]


def test_what_ctrl_c_has_reached_is_left_to_end(heard):
    """A terminal sends it to all; a second one would end the service at once."""
    service = Service()
    service.process.send_signal(signal.SIGINT)
    assert heard(service, interrupted=True) == ["SIGINT"]


def test_a_service_that_does_not_end_is_ended(heard, monkeypatch):
    monkeypatch.setattr(demo, "STOP_S", 1)
    assert heard(Service("SIGINT"), interrupted=False) == ["SIGINT", "SIGTERM"]
    everything = Service("SIGINT", "SIGTERM")
    assert heard(everything, interrupted=False) == ["SIGINT", "SIGTERM"]
    assert everything.process.returncode == -signal.SIGKILL
