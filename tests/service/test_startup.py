"""Services that can't start."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.records import EncoderIdentity
from deployments.store.store import Store
from tests.support.running.waiting import wait_until
from tests.support.service.services import OwnService

START_FAILURE_S = 180  # two of them start at the same time


@pytest.fixture(scope="module")
def failures(slow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, OwnService]]:
    """Services that can't start: one while the graph is built, one in a replica. They are started
    together, because each takes a while to say so.
    """

    def folder(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    services = {
        "unknown key": OwnService(folder("key"), {"segmenter": {"confidence": 0.5}}),
        "other encoder": OwnService(folder("other")),
    }
    other = EncoderIdentity("other/encoder", 256, "ab" * 32)
    Store(services["other encoder"].store, other).close()
    # As in a script that starts it with `&`, where Ctrl-C reaches nobody.
    in_background = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    try:
        for name, service in services.items():
            prefix = in_background if name == "unknown key" else ()
            service.launch(*prefix, HF_HUB_OFFLINE="1")
        yield services
    finally:
        for service in services.values():
            service.kill_everything()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("unknown key", ["segmenter.confidence is not an option", "confidence_threshold"]),
        ("other encoder", ["other/encoder", "models/compact", "scripts/store.py reindex --path"]),
    ],
)
def test_a_service_that_can_not_start_says_why_and_ends(failures, name, parts):
    service = failures[name]
    wait_until(lambda: service.process.poll() is not None, "serve run ends", START_FAILURE_S)
    sentence = "Inset can't start: "
    lines = [line for line in service.output().splitlines() if sentence in line]
    assert lines, service.output()[-3000:]
    assert len({line.partition(sentence)[2] for line in lines}) == 1
    for part in parts:
        assert part in lines[0]
