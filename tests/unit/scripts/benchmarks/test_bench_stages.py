"""Where the time of a request goes: the parts are all of the whole, and none is another's."""

import asyncio
import time

import pytest
from benchmarks import spans
from benchmarks.spans import FOLDER, traced
from benchmarks.stages import STAGES, Span, own_times, read_spans, rows
from hypothesis import given
from hypothesis import strategies as st

parts = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 100), st.sampled_from("abc")).map(
        lambda part: Span(min(part[:2]), max(part[:2]), part[2])
    ),
    max_size=12,
)


@given(parts)
def test_the_parts_are_all_of_the_whole(inside):
    own = own_times([Span(0, 100, "client"), *inside])
    assert sum(own.values()) == 100
    assert min(own.values()) >= 0


def test_a_moment_belongs_to_the_function_that_began_last():
    spans = [Span(0, 100, "client"), Span(10, 90, "a"), Span(20, 30, "b"), Span(40, 95, "b")]
    assert own_times(spans) == {"client": 10 + 5, "a": 10 + 10, "b": 10 + 55}


def test_rows_are_means_of_the_requests_of_a_kind():
    ms = 1_000_000
    sent = [Span(0, 10 * ms, "client"), Span(100 * ms, 130 * ms, "client")]
    spans = [Span(2 * ms, 8 * ms, "a"), Span(50 * ms, 60 * ms, "a"), Span(105 * ms, 107 * ms, "a")]
    spans += [Span(129 * ms, 131 * ms, "a"), Span(120 * ms, 121 * ms, "other")]
    found = rows("search", {"client": "outside", "a": "inside"}, sent, sorted(spans))
    assert [(row["stage"], row["ms"], row["share"]) for row in found] == [
        ("outside", 16, 0.8),
        ("inside", 4, 0.2),
        ("all", 20, 1),
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    spans._file.cache_clear()
    yield tmp_path
    spans._file.cache_clear()


def test_functions_note_when_they_began_and_ended(folder):
    def wait(seconds):
        time.sleep(seconds)
        return seconds

    async def fail():
        await asyncio.sleep(0.02)
        raise KeyError

    assert traced(wait, "to wait")(0.01) == 0.01
    with pytest.raises(KeyError):
        asyncio.run(traced(fail, "fail")())
    waited, failed = sorted(read_spans(folder))
    assert (waited.label, failed.label) == ("to wait", "fail")
    assert waited.end - waited.begin >= 10_000_000
    assert failed.end - failed.begin >= 20_000_000
    assert waited.end <= failed.begin


def test_all_that_is_a_stage_is_noted():
    """Each name of a stage is that of a function that `install` wraps."""
    labels = []

    def remember(owner, name):
        labels.append(getattr(owner, name).__qualname__)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "trace", remember)
        spans.install()
    assert {label for names in STAGES.values() for label in names} - {"client"} == set(labels)
