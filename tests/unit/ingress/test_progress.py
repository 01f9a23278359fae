"""The pace of a service that is simulated, and what is made of it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import TooLarge, Unavailable
from deployments.ingress.indexing import check_time
from deployments.ingress.progress import FEWEST, MOST, Progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(clock):
    return Progress(clock)


def index(progress, clock, photos, at_once, seconds):
    """Index photos, so many at once, by a machine that takes so long for each of them.

    The machine works at all of them in turns, as processors do.

    Args:
        photos: for each, whether it is really indexed.
        seconds: a function of that.
    """
    waiting = list(photos)
    running = []  # the seconds that are left, and what ends the work
    while waiting or running:
        while waiting and len(running) < at_once:
            real = waiting.pop(0)
            work = progress.working()
            running.append([seconds(real), work, work.__enter__() if real else lambda: None])
            if not real:
                work.__enter__()
        step = min(left for left, *_ in running)
        clock.now += step * len(running)
        for one in running:
            one[0] -= step
        for one in [one for one in running if one[0] <= 1e-9]:
            one[2]()
            one[1].__exit__(None, None, None)
            running.remove(one)


def test_nothing_measured_is_nothing_known(progress, clock):
    assert (progress.pace, progress.photos_within(1), progress.seconds_for(1000)) == (None,) * 3
    index(progress, clock, [True] * (FEWEST - 1), 1, lambda real: 1)
    assert progress.pace is None
    index(progress, clock, [True], 1, lambda real: 1)
    assert progress.pace == pytest.approx(1)


@given(at_once=st.integers(1, 32), seconds=st.floats(0.01, 10), count=st.integers(40, 200))
def test_the_pace_is_wall_time_by_photos_however_many_are_in_work(at_once, seconds, count):
    clock = Clock()
    progress = Progress(clock)
    start = clock.now
    index(progress, clock, [True] * count, at_once, lambda real: seconds)
    assert clock.now - start == pytest.approx(count * seconds)
    assert progress.pace == pytest.approx(seconds)


def test_idle_time_does_not_count(progress, clock):
    for _ in range(20):
        index(progress, clock, [True], 1, lambda real: 0.5)
        clock.now += 1000
    assert progress.pace == pytest.approx(0.5)


@pytest.mark.parametrize("of_others", [0.001, 0.1, 5])
def test_photos_that_existed_or_failed_change_nothing(progress, clock, of_others):
    """Whether they are quick, as most are, or take long to fail."""
    photos = [number % 3 == 0 for number in range(600)]
    index(progress, clock, photos, 16, lambda real: 1 if real else of_others)
    assert progress.pace == pytest.approx(1, rel=0.2)
    index(progress, clock, [False] * 10_000, 16, lambda real: of_others)
    assert progress.pace == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("error", [Unavailable("late"), asyncio.CancelledError()])
def test_the_time_of_photos_that_were_given_up_is_time_for_the_others(progress, clock, error):
    """Ten at a time, one is done in each second, and one is given up: two leave in a second."""
    waiting = []
    for number in range(400):
        work = progress.working()
        waiting.append((work, work.__enter__(), number % 2 == 0))
        if number >= 9:
            clock.now += 0.5
            work, indexed, is_stored = waiting.pop(0)
            if is_stored:
                indexed()
                work.__exit__(None, None, None)
            else:
                assert not work.__exit__(type(error), error, None)
    assert progress.pace == pytest.approx(1, rel=0.05)


def group(progress, clock, count, seconds, **done):
    """Work at some photos together, for so many seconds."""
    with progress.working(count) as tell:
        assert progress.in_work == count
        clock.now += seconds
        tell(**done)


def test_photos_that_go_together_take_their_time_together(progress, clock):
    for _ in range(10):
        group(progress, clock, 4, 2, indexed=4)
    assert progress.pace == pytest.approx(0.5)
    assert progress.in_work == 0


def test_those_of_a_group_that_existed_take_none(progress, clock):
    """A share of the time is theirs, and it doesn't count."""
    for _ in range(40):
        group(progress, clock, 4, 2, indexed=2)
    assert progress.pace == pytest.approx(0.5, rel=0.05)
    for _ in range(40):
        group(progress, clock, 4, 2, indexed=0)
    assert progress.pace == pytest.approx(0.5, rel=0.05)


def test_those_of_a_group_that_were_given_up_take_theirs(progress, clock):
    for _ in range(40):
        group(progress, clock, 4, 2, indexed=2, given_up=2)
    assert progress.pace == pytest.approx(1)


def test_older_ones_are_forgotten(progress, clock):
    index(progress, clock, [True] * 500, 4, lambda real: 3)
    index(progress, clock, [True] * MOST, 4, lambda real: 0.2)
    assert progress.pace == pytest.approx(0.2, rel=0.05)


def test_a_queue_that_grows_does_not_look_fast(progress, clock):
    """Each is worked at when those before it are done, and ten come in that time."""
    waiting = []
    for _ in range(300):
        for _ in range(10):
            work = progress.working()
            waiting.append((work, work.__enter__()))
            clock.now += 0.1
        work, indexed = waiting.pop(0)
        indexed()
        work.__exit__(None, None, None)
        assert progress.pace is None or progress.pace == pytest.approx(1)
    while waiting:  # and one that shrinks does not look slow
        clock.now += 1
        work, indexed = waiting.pop(0)
        indexed()
        work.__exit__(None, None, None)
        assert progress.pace == pytest.approx(1)


def test_unfinished_photos_come_first(progress, clock):
    index(progress, clock, [True] * 20, 4, lambda real: 0.5)
    assert progress.photos_within(60) == 120
    progress.unfinished = 100
    assert progress.photos_within(60) == 20
    assert progress.seconds_for(20) == pytest.approx(60)
    progress.unfinished = 500
    assert progress.photos_within(60) == 0


def test_a_request_is_refused_if_it_would_be_cut_off(progress, clock):
    check_time(progress, 1000, 60)  # nobody knows yet
    index(progress, clock, [True] * 20, 4, lambda real: 0.5)
    check_time(progress, 120, 60)
    check_time(progress, 1000, None)
    with pytest.raises(TooLarge) as caught:
        check_time(progress, 400, 60)
    assert caught.value.detail == (
        "400 photos would take about 200 s, and a request is cut off after 60 s: send at most 120 "
        "at once."
    )
    progress.unfinished = 100
    check_time(progress, 20, 60)
    with pytest.raises(TooLarge) as caught:
        check_time(progress, 21, 60)
    assert caught.value.detail == (
        "21 photos would take about 60 s, after 100 others, and a request is cut off after 60 s: "
        "send at most 20 at once."
    )


def test_a_single_photo_is_always_tried(progress, clock):
    index(progress, clock, [True] * 20, 1, lambda real: 100)
    check_time(progress, 1, 60)
    with pytest.raises(TooLarge, match="send at most 1 at once"):
        check_time(progress, 2, 60)


def test_nothing_is_older_than_now():
    times = iter(range(100))
    assert Progress(lambda: next(times)).oldest_s == 0
