"""The tests of Inset; `support` has what they share."""

import pytest

# Its assertions explain themselves as those of tests do.
pytest.register_assert_rewrite("tests.support")
