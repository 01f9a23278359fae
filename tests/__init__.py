"""The tests of Inset; `support` has what they share."""

import os

import pytest

# Threads that wait for each other sleep, not spin: beside other processes they would spin for ten
# times as long as they compute. Torch reads it when it is loaded, also in the services.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Its assertions explain themselves as those of tests do.
pytest.register_assert_rewrite("tests.support")
