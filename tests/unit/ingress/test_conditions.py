"""The headers by which a client asks for less, against what RFC 9110 says of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.ingress.conditions import Unsatisfiable, has_tag, read_range

TAG = '"abc"'

# What a tag is made of: all that may stand between its quotes, commas and `W/` included.
texts = st.text(st.sampled_from([chr(n) for n in range(0x21, 0x100) if n not in (0x22, 0x7F)]))
tags = st.builds('{}"{}"'.format, st.sampled_from(["", "W/"]), texts)
gaps = st.sampled_from([",", ", ", " ,\t", ",,", ", ,"])


@given(tags=st.lists(tags, min_size=1), gap=gaps, text=texts, data=st.data())
def test_a_list_names_its_tags_and_no_others(tags, gap, text, data):
    """The weak comparison: `W/` makes no difference."""
    header = gap.join(tags)
    for tag in tags:
        assert has_tag(header, tag.removeprefix("W/"))
    named = {tag.removeprefix("W/") for tag in tags}
    assert has_tag(header, f'"{text}"') == (f'"{text}"' in named)
    with_wings = data.draw(gaps) + header + data.draw(gaps)
    assert has_tag(with_wings, tags[0].removeprefix("W/"))


@pytest.mark.parametrize("header", ["*", " * ", TAG, f"W/{TAG}", f'"x", {TAG}', f',{TAG} ,\t"y"'])
def test_what_names_the_tag(header):
    assert has_tag(header, TAG)


@pytest.mark.parametrize(
    "header",
    [
        *("", ",", '"other"', "abc", '"abc', 'abc"', "'abc'", '"abc""x"', '"abc" "x"', '"abc";'),
        *('w/"abc"', 'W/ "abc"', 'W"abc"', '"xabc"', '"abc" , x', "**", '*, "abc"', '"abc", *'),
        *('"a\x7fc", "abc"', '"a c", "abc"', '"\u00e9", "abc"\x00'),
    ],
)
def test_what_is_malformed_or_another_names_nothing(header):
    assert not has_tag(header, TAG)


def test_a_long_header_is_read_quickly():
    for header in ('"a",' * 20_000 + "x", "," * 60_000 + "x", 'W/"' * 20_000, '" , ' * 20_000):
        assert not has_tag(header, TAG)


bounds = st.integers(0, 40)


@given(first=bounds, last=bounds, content=st.binary(min_size=1, max_size=30))
def test_a_range_is_the_slice(first, last, content):
    size = len(content)

    def asked(header):
        found = read_range(header, None, TAG, size)
        return None if found is None else content[found.start : found.stop]

    if last < first:
        assert asked(f"bytes={first}-{last}") is None
    elif first < size:
        assert asked(f"bytes={first}-{last}") == content[first : last + 1]
        assert asked(f"bytes={first}-") == content[first:]
    else:
        for header in (f"bytes={first}-{last}", f"bytes={first}-"):
            with pytest.raises(Unsatisfiable):
                asked(header)
    if last:
        assert asked(f"bytes=-{last}") == content[-last:]
    else:
        with pytest.raises(Unsatisfiable):
            asked("bytes=-0")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", range(1)),
        ("BYTES=00-09", range(10)),
        ("bytes= 0-9 ", range(10)),
        ("bytes=90-" + "9" * 50, range(90, 100)),
        ("bytes=-" + "9" * 50, range(100)),
    ],
)
def test_ranges(header, expected):
    assert read_range(header, None, TAG, 100) == expected


@pytest.mark.parametrize(
    "header",
    [
        *("", "bytes", "bytes=", "bytes=-", "bytes=0-1,3-4", "bytes=0-1, ", "bytes=,0-1"),
        *("bytes=1", "bytes=a-b", "bytes=0x1-2", "bytes=--1", "bytes=1--2", "bytes=+1-2"),
        *("items=0-1", "bytes 0-1", "bytes =0-1", "bytes=0 -1", "bytes=\u0661-\u0662", "0-1"),
        *("bytes=2-1", "bytes=0-" + "9" * 5000, "bytes=" + "0" * 60_000),
    ],
)
def test_what_is_no_single_range_is_the_whole(header):
    assert read_range(header, None, TAG, 100) is None


@pytest.mark.parametrize(
    ("if_range", "counts"),
    [
        *((TAG, True), (f" {TAG} ", True), (f"W/{TAG}", False), ('"other"', False), ("", False)),
        *((f'{TAG}, "x"', False), ("*", False), ("Sat, 28 Nov 2026 02:10:00 GMT", False)),
    ],
)
def test_a_range_counts_only_if_the_original_is_the_same(if_range, counts):
    """By the strong comparison: a weak tag says that the bytes may differ."""
    assert (read_range("bytes=0-1", if_range, TAG, 100) is not None) is counts
    if not counts:  # also where it would be unsatisfiable
        assert read_range("bytes=100-", if_range, TAG, 100) is None
