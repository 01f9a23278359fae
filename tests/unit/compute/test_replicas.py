"""The threads that networks run in."""

import os
import sys
import threading

import pytest

from deployments.compute.replicas import NICENESS, Passes, load_with_threads
from deployments.settings import EncoderSettings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no thread has its own")


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_only_the_threads_of_patient_passes_let_others_go_first():
    before = niceness()
    for patient, expected in ((True, max(NICENESS, before)), (False, before)):
        passes = Passes(EncoderSettings(), threads=1, at_once=1, patient=patient)
        assert passes.run(niceness) == expected
    assert load_with_threads(1, niceness) == before  # else it might hardly ever start
    assert niceness() == before
