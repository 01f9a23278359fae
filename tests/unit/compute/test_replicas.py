"""The threads that networks run in."""

import os
import sys

import pytest

from deployments.compute.replicas import Passes, load_with_threads
from deployments.settings import EncoderSettings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no such policy")


def policy():
    return os.sched_getscheduler(0)


@pytest.mark.parametrize(("patient", "expected"), [(True, "SCHED_IDLE"), (False, "SCHED_OTHER")])
def test_only_the_threads_of_patient_passes_let_others_go_first(patient, expected):
    passes = Passes(EncoderSettings(), threads=1, at_once=1, patient=patient)
    assert passes.run(policy) == getattr(os, expected)
    assert load_with_threads(1, policy) == os.SCHED_OTHER  # else it might hardly ever start
    assert policy() == os.SCHED_OTHER
