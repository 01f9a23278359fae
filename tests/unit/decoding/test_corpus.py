"""What decoding makes of files that are hostile, odd, or only large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fuzz.bombs import bombs
from fuzz.corpus import GROUPS, group_files
from fuzz.good_files import CorpusFile, Group
from fuzz.sizes import at_the_limit

from deployments.decoding.decoder import Decoder
from deployments.errors import InsetError
from deployments.limits import ImageLimits

Read = Callable[[bytes], Any]

# They take seconds each, many of them, on purpose.
HEAVY: tuple[Group, ...] = (at_the_limit, bombs)
# What is large may be read or refused; less time for it makes the test shorter.
SHORT = ImageLimits(seconds_per_megapixel=0.005)
LIGHT = tuple(group for group in GROUPS if group not in HEAVY)


@pytest.fixture(scope="module")
def read() -> Iterator[Read]:
    """Return what decodes a file, or raises an error for the client."""
    decoder = Decoder(ImageLimits())
    yield decoder.decode
    decoder.close()


def check(files: list[CorpusFile], read: Read) -> None:
    """Compare the answers with those that are allowed, and tell of all that differ."""
    wrong = []
    for file in files:
        try:
            read(file.data)
            status, said = 200, ""
        except InsetError as error:
            status, said = error.status, error.detail
        if status not in file.expected:
            wrong.append(f"{file.name}: {status} {said} instead of {sorted(file.expected)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("group", LIGHT, ids=lambda group: group.__name__)
def test_files_get_an_answer_that_fits_them(group, read):
    check(group_files(group), read)


@pytest.mark.slow
def test_files_at_the_limit_get_an_answer_that_fits_them(read):
    check(group_files(at_the_limit), read)


@pytest.mark.slow
def test_bombs_get_an_answer_that_fits_them():
    decoder = Decoder(SHORT)
    check(group_files(bombs), decoder.decode)
    decoder.close()
