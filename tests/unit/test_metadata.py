"""Metadata and filters: what is accepted, what a filter means, and columns that agree with it."""

import json
import pickle
import re
import time
import tracemalloc
import unicodedata
from contextlib import suppress
from itertools import count
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.chunk_index import columns as module
from deployments.chunk_index.columns import MetadataColumns
from deployments.errors import BadParameter
from deployments.metadata import (
    CONDITION_PATTERN,
    KINDS,
    MAX_TEXT,
    OPERATORS,
    Condition,
    Filter,
    add_facts,
    check_metadata,
    normalised,
    parse_metadata,
)
from tests.support.running.examples import examples

keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", fullmatch=True)
values = (
    st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
# Few, so that photos and conditions often meet; and those that are easily taken for one another.
common = st.sampled_from(
    [
        True,
        False,
        0,
        1,
        1.0,
        -0.0,
        2.5,
        2**53,
        -1e300,
        "",
        "0",
        "1",
        "true",
        "a",
        "A",
        "a\0",
        "é",
        "e\u0301",  # the same in NFD
        "\uffff",
        "\U0001f600",
        "2024-05-31",
    ]
)
photos = st.dictionaries(st.sampled_from("kl"), common | values)


def in_nfc(metadata):
    return {
        key: unicodedata.normalize("NFC", value) if isinstance(value, str) else value
        for key, value in metadata.items()
    }


def types(metadata):
    return {key: type(value) for key, value in metadata.items()}


# Metadata


@given(st.dictionaries(keys, values, max_size=64))
def test_metadata_is_kept_as_it_was_sent_but_for_its_spelling(metadata):
    parsed = parse_metadata(json.dumps(metadata))
    assert parsed == in_nfc(metadata)
    assert types(parsed) == types(metadata)
    assert check_metadata(MappingProxyType(metadata)) == parsed
    assert check_metadata(parsed) == parsed  # the store checks again


# Comparing each key with each other would take minutes.
MANY_KEYS = "{" + ", ".join(f'"{number % 50_000}": 1' for number in range(50_001)) + "}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is not JSON"),
        ("camera=Canon", 'send an object like {"year": 2024}'),
        ("[1]", r"metadata \[1\] is not an object"),
        ("null", "is not an object"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": %s}' % ("1" * 5000), "is not JSON"),
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' twice"),
        ('{"a": null}', "'a' must be a string, a number, true or false, not NoneType"),
        ('{"a": [1]}', "'a' must be .* not list: .* several keys"),
        ('{"a": {"b": 1}}', "'a' must be .* not dict"),
        ('{"a": NaN}', "'a' is nan: send a finite"),
        ('{"a": -Infinity}', "'a' is -inf"),
        ('{"a": 1e999}', "'a' is inf"),
        ('{"a": 9007199254740993}', r"'a' is beyond 2\*\*53.*as a string"),
        ('{"a": -9007199254740993}', r"'a' is beyond 2\*\*53"),
        ('{"a": 1%s}' % ("0" * 400), r"'a' is beyond 2\*\*53"),
        ('{"a": "\\ud800"}', r"'a' is '\\ud800', which contains half"),
        ('{"a": "%s"}' % ("x" * 1001), "'a' has 1,001 characters: shorten it to 1,000"),
        ('{"": 1}', "'' is not a valid key"),
        ('{"1a": 1}', "'1a' is not a valid key"),
        ('{"a b": 1}', "'a b' is not a valid key"),
        ('{"a\\n": 1}', "is not a valid key"),
        ('{"é": 1}', "'é' is not a valid key"),
        ('{"%s": 1}' % ("a" * 65), "is not a valid key"),
        (json.dumps({f"k{number}": 1 for number in range(65)}), "has 65 keys, but at most 64 are"),
        (MANY_KEYS, "the key '0' twice"),
        ('{"a": %s}' % ("1" * 2**20), "has 1,048,583 characters: shorten it to 1,048,576"),
    ],
)
def test_wrong_metadata_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(BadParameter, match=sentence) as caught:
        parse_metadata(text)
    assert len(caught.value.detail) < 400
    caught.value.detail.encode()  # so that it can be answered


@pytest.mark.parametrize(
    "metadata", [None, "text", {1: "a"}, {"a": np.float64(1)}, {"a": b"x"}, {"a": "\ud800"}]
)
def test_wrong_metadata_from_python_is_refused_too(metadata):
    with pytest.raises(BadParameter):
        check_metadata(metadata)


def test_the_largest_metadata_is_accepted():
    largest = {"a" + "b" * 61 + f"{number:02}": "x" * 1000 for number in range(64)}
    assert parse_metadata(json.dumps(largest)) == largest
    assert parse_metadata("{}") == {}
    escaped = dict.fromkeys(largest, "\N{GRINNING FACE}" * 1000)  # twelve characters of JSON each
    assert parse_metadata(json.dumps(escaped)) == escaped


@given(
    st.dictionaries(keys, values, max_size=64),
    st.dictionaries(keys, st.none() | st.text(max_size=5) | st.floats(-180, 180), max_size=6),
)
def test_facts_are_put_behind_what_a_client_says(metadata, facts):
    metadata = check_metadata(metadata)
    facts = {name: normalised(fact) if type(fact) is str else fact for name, fact in facts.items()}
    merged = add_facts(metadata, facts)
    assert check_metadata(merged) == merged
    assert dict(list(merged.items())[: len(metadata)]) == metadata
    said = {name: fact for name, fact in facts.items() if fact is not None}
    for name in merged.keys() - metadata:
        assert merged[name] == said[name]
    assert len(merged) == min(64, len(metadata | said))


# Spellings

# Letters with marks, Hangul, a mark alone, marks in several orders, what has no letter of its own.
letters = st.sampled_from("aeoxz éếǘ각힣\u0301\u0323\u0308\u017f\u212a日\u0958\U0001f600")
spelled = st.text(letters, max_size=20) | st.text(max_size=20)
forms = st.sampled_from(["NFC", "NFD"])


@given(spelled, forms)
def test_every_spelling_is_stored_the_same(text, form):
    sent = {"k": unicodedata.normalize(form, text)}
    assert parse_metadata(json.dumps(sent)) == parse_metadata(json.dumps({"k": text}))


@given(st.sampled_from(sorted(OPERATORS)), spelled, spelled, forms, forms)
@settings(max_examples=examples(300))
def test_every_spelling_is_found_the_same(comparison, stored, wanted, one, other):
    """Also where an older version stored a text as it was sent."""
    expected = OPERATORS[comparison](normalised(stored), normalised(wanted))
    written = json.dumps(unicodedata.normalize(other, wanted), ensure_ascii=False)
    filter = Filter.parse([f"k{comparison}{written}"])
    old = {"k": unicodedata.normalize(one, stored)}
    columns = MetadataColumns()
    columns.put(0, old)
    columns.put(1, check_metadata(old))
    for metadata in (old, check_metadata(old)):
        assert filter.matches(metadata) == expected
    assert columns.select(filter, 2).tolist() == [expected] * 2


def test_a_value_without_quotes_is_found_in_every_spelling():
    (condition,) = Filter.parse(["city=Zu\u0308rich"]).conditions
    assert condition == Condition("city", "=", "text", "Zürich")
    assert Filter.parse(["city=Zürich"]) == Filter.parse(["city=Zu\u0308rich"])  # one search


def test_a_text_is_as_long_as_it_is_kept():
    hangul = "각" * MAX_TEXT
    assert check_metadata({"k": unicodedata.normalize("NFD", hangul)}) == {"k": hangul}
    with pytest.raises(BadParameter, match="'k' has 2,000 characters"):
        check_metadata({"k": "\u0958" * MAX_TEXT})  # two characters each, in NFC


def test_no_text_takes_long_to_compare():
    """Sorting the marks on one letter takes time that grows with the square of their number."""
    marks = "a" + "\u0315\u0334" * 50_000
    start = time.thread_time()
    assert normalised(marks) == marks
    assert time.thread_time() - start < 1
    assert normalised("a" + "\u0315\u0334" * 15) == "a" + "\u0334" * 15 + "\u0315" * 15


# Reading filters


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("year=2020", Condition("year", "=", "number", 2020)),
        ("year>=2020", Condition("year", ">=", "number", 2020)),
        (" year <= -2.5e1 ", Condition("year", "<=", "number", -25.0)),
        ("a.b-c_D1!=1", Condition("a.b-c_D1", "!=", "number", 1)),
        ("camera=Canon EOS", Condition("camera", "=", "text", "Canon EOS")),
        ("camera = Canon EOS ", Condition("camera", "=", "text", "Canon EOS")),
        ('camera=" Canon \\"EOS\\" "', Condition("camera", "=", "text", ' Canon "EOS" ')),
        ('camera=""', Condition("camera", "=", "text", "")),
        ("formula=a=b<c", Condition("formula", "=", "text", "a=b<c")),
        ("date<2024-05-31", Condition("date", "<", "text", "2024-05-31")),
        ("code=007", Condition("code", "=", "text", "007")),
        ('code="7"', Condition("code", "=", "text", "7")),
        ("flash!=true", Condition("flash", "!=", "boolean", True)),
        ("flash=True", Condition("flash", "=", "text", "True")),
        ("lines=a\nb", Condition("lines", "=", "text", "a\nb")),
    ],
)
def test_a_condition_is_read(text, condition):
    assert Filter.parse([text]) == Filter((condition,))
    assert re.match(CONDITION_PATTERN, text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"'' is not a condition: .* as in year>=2020"),
        ("year", "'year' is not a condition"),
        ("=2020", "is not a condition"),
        ("1year=2020", "is not a condition"),
        ("my year=2020", "is not a condition"),
        ("year!2020", "is not a condition"),
        ("year=", "'year=' has no value: put a string in double quotes"),
        ("year==2020", "a value that begins with ="),
        ("year=>2020", "a value that begins with >"),
        ("camera='Canon'", r"begins with ': .* camera=\"Canon EOS\""),
        ('camera="Canon', "not a JSON string"),
        ('camera="Canon" EOS', "not a JSON string"),
        ("flash>true", "'flash>true' can't order booleans: write flash=true .* flash>\"true\""),
        ("year<1e999", "'year<1e999' is inf"),
        ("year<9007199254740993", r"beyond 2\*\*53"),
        ("year<" + "1" * 1900, r"beyond 2\*\*53"),
        ('camera="\\ud800"', "half of a surrogate pair"),
        ("camera=" + "x" * 1001, "1,001 characters"),
        ("camera=" + " " * 2000, "2,007 characters: shorten it to 2,000"),
    ],
)
def test_what_is_no_condition_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(BadParameter, match=sentence) as caught:
        Filter.parse(["a=1", text])
    assert len(caught.value.detail) < 400
    caught.value.detail.encode()


def test_too_many_conditions_are_refused():
    assert len(Filter.parse(["a=1"] * 16).conditions) == 16
    with pytest.raises(BadParameter, match="17 filters, but at most 16 are"):
        Filter.parse(["a=1"] * 17)


@given(keys, st.sampled_from(sorted(OPERATORS)), st.text(max_size=50))
def test_any_string_can_be_written_in_quotes(key, comparison, value):
    for ascii in (True, False):
        written = json.dumps(value, ensure_ascii=ascii)
        expected = Condition(key, comparison, "text", unicodedata.normalize("NFC", value))
        assert Filter.parse([f"{key}{comparison}{written}"]).conditions == (expected,)


@given(st.text('ab1e=<>!"\\ -.', max_size=12) | st.text())
@settings(max_examples=examples(500))
def test_any_text_is_a_condition_as_described_or_refused(text):
    try:
        (condition,) = Filter.parse([text]).conditions
    except BadParameter:
        return
    assert re.search(CONDITION_PATTERN, text)
    assert text.strip().startswith(condition.name)


def test_a_filter_can_be_sent_and_told_from_others():
    filter = Filter.parse(["a=1", "b=x"])
    assert pickle.loads(pickle.dumps(filter)) == filter
    assert hash(filter) == hash(Filter.parse(["a=1.0", 'b="x"']))
    assert Filter.parse(["a=1"]) != Filter.parse(["a=true"])


# What a filter means


@pytest.mark.parametrize(
    ("condition", "holds", "fails"),
    [
        ("k=1", [1, 1.0], [2, True, "1"]),
        ("k!=1", [0, 1.5], [1, 1.0, True, False, "1", "x"]),
        ("k>1", [1.5, 2, 1e300], [1, 0, True, "2", "x"]),
        ("k<=0", [0, -0.0, -5], [1, False, "", "0"]),
        ("k=true", [True], [False, 1, "true"]),
        ("k!=true", [False], [True, 0, "false"]),
        ("k=abc", ["abc"], ["abcd", "ABC", ""]),
        ("k!=abc", ["", "ABC"], ["abc", 1, False]),
        ("k>=2024-05-31", ["2024-05-31", "2024-06-01", "2024-05-31T00:00:00"], ["2024-05", 2025]),
        ("k<b", ["", "B", "a", "a\uffff"], ["b", "ba", "\U0001f600", 0]),
        ("k>\uffff", ["\U0001f600"], ["\uffff", "z"]),  # by code point, not by UTF-16
        ('k="a\\u0000"', ["a\0"], ["a", "a\0\0"]),
    ],
)
def test_what_a_condition_means(condition, holds, fails):
    filter, columns = Filter.parse([condition]), MetadataColumns()
    for slot, value in enumerate(holds + fails):
        assert filter.matches({"k": value, "l": 1}) == (value in holds and slot < len(holds))
        columns.put(slot, {"k": value, "l": 1})
    selected = columns.select(filter, len(holds + fails) + 1)
    assert selected.tolist() == [True] * len(holds) + [False] * (len(fails) + 1)
    assert not filter.matches({"l": 1})
    assert not filter.matches({})


def test_all_conditions_must_hold():
    filter = Filter.parse(["k>1", "k<3", "l=a"])
    assert filter.matches({"k": 2, "l": "a"})
    assert not filter.matches({"k": 2, "l": "b"})
    assert not filter.matches({"k": 3, "l": "a"})
    assert not filter.matches({"k": 2})
    assert Filter.parse([]).matches({})


# The columns


@st.composite
def filters(draw):
    value = draw(common | values)
    comparisons = ["=", "!="] if isinstance(value, bool) else sorted(OPERATORS)
    return f"{draw(st.sampled_from('klm'))}{draw(st.sampled_from(comparisons))}{json.dumps(value)}"


# Of each photo, whether the columns are saved and loaded before it.
events = st.lists(st.tuples(st.booleans(), photos | st.none()), max_size=20)


@given(events, st.lists(st.lists(filters(), min_size=1, max_size=3), min_size=1, max_size=5))
@settings(max_examples=examples(300))
def test_columns_select_what_the_filter_matches(tmp_path_factory, events, conditions):
    """Some slots have no metadata; and what was put comes back."""
    file = tmp_path_factory.getbasetemp() / "columns"
    columns, plain = MetadataColumns(), {}
    for slot, (is_saved, metadata) in enumerate(events):
        if is_saved:
            columns.save(file)
            columns = MetadataColumns.load(file)
        if metadata is not None:
            columns.put(slot, metadata)
            plain[slot] = metadata
    for filter in map(Filter.parse, conditions):
        expected = [slot in plain and filter.matches(plain[slot]) for slot in range(21)]
        selected = columns.select(filter, 21)
        assert selected.dtype == bool
        assert selected.tolist() == expected
    some = np.arange(0, 21, 2)
    kept = [in_nfc(plain.get(slot, {})) for slot in some]
    found = columns.metadata(some)
    assert found == kept
    for one, other in zip(found, kept, strict=True):
        assert {key: KINDS[type(value)] for key, value in one.items()} == {
            key: KINDS[type(value)] for key, value in other.items()
        }


def test_a_file_has_no_pickle(tmp_path):
    columns = MetadataColumns()
    for slot in range(100):
        columns.put(slot, {"k": f"{slot}", "n": slot, "b": True})
    columns.save(tmp_path / "columns")
    with np.load(tmp_path / "columns", allow_pickle=False) as arrays:
        assert sum(len(arrays[name]) for name in arrays if name.endswith("slots")) == 3 * 100
    loaded = MetadataColumns.load(tmp_path / "columns")
    loaded.put(107, {"k": "7"})
    selected = loaded.select(Filter.parse(['k>="7"', 'k<"71"']), 108)
    assert np.flatnonzero(selected).tolist() == [7, 70, 107]


def test_what_is_no_file_of_columns_is_not_loaded(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    columns = MetadataColumns()
    columns.put(3, {"k": "text", "n": 1})
    columns.save(good)
    data = good.read_bytes()
    np.savez(tmp_path / "other.npz", rows=np.zeros(3))
    other = (tmp_path / "other.npz").read_bytes()
    damaged = data.replace(b"text", b"tex?")
    assert damaged != data
    for content in (b"", b"no archive", b"PK\x03\x04", data[:-30], other, damaged):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="bad holds no columns of metadata"):
            MetadataColumns.load(bad)
    with pytest.raises(FileNotFoundError):
        MetadataColumns.load(tmp_path / "missing")


@pytest.mark.parametrize("allocating", ["grown", "_new_column"])
def test_a_put_into_columns_for_which_memory_is_lacking_changes_nothing(monkeypatch, allocating):
    """New columns and larger arrays are made before anything is written."""
    allocate = getattr(module, allocating)
    filters = [Filter.parse([text]) for text in ("n>=0", "t>=a", "b=true", "new=1", "t=new")]
    new = {"n": 7, "t": "new", "b": False, "new": 1, "other": 1}
    for last in count():
        columns, plain = MetadataColumns(), {}
        for slot in range(8):
            plain[slot] = {"n": slot, "t": f"text {slot}", "b": True}
            columns.put(slot, plain[slot])
        left = iter(range(last))

        def fail(*args, left=left):
            if next(left, None) is None:
                raise MemoryError
            return allocate(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, allocating, fail)
            with suppress(MemoryError):
                columns.put(8, new)
                plain[8] = new
        for filter in filters:
            expected = [slot in plain and filter.matches(plain[slot]) for slot in range(10)]
            assert columns.select(filter, 10).tolist() == expected
        if next(left, None) is not None:
            break
    assert last > 1


def test_columns_are_saved_as_they_were_while_they_go_on(tmp_path):
    """Whatever comes after: more rows, and new texts."""
    columns, plain = MetadataColumns(), {}
    for slot in range(20):
        plain[slot] = {"n": slot, "t": f"text {slot % 7}", "b": bool(slot % 2)}
        columns.put(slot, plain[slot])
    save = columns.saver()
    for slot in range(20, 60):
        columns.put(slot, {"n": -slot, "t": f"later {slot}", "new": 1})
    save(tmp_path / "columns")
    loaded = MetadataColumns.load(tmp_path / "columns")
    assert len(loaded._columns["t", "text"]._numbers) == 7
    for text in ("n>=0", "n<0", "t=text 1", "t>=later", "b=true", "new=1"):
        filter = Filter.parse([text])
        expected = [slot in plain and filter.matches(plain[slot]) for slot in range(60)]
        assert loaded.select(filter, 60).tolist() == expected


def test_to_save_columns_nothing_is_copied_for_each_value():
    """Searches wait for as long as the copy takes."""
    columns = MetadataColumns()
    for slot in range(2000):
        columns.put(slot, {"text": f"some text {slot}", "n": slot})
    columns.saver()  # what is imported on the way
    tracemalloc.start()
    try:
        save = columns.saver()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert callable(save)
    assert most < 5000
