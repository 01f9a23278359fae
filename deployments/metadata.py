"""Metadata of photos, and filters on it.

Metadata is a flat JSON object like `{"camera": "Canon EOS", "year": 2024, "flash": false}`. A
filter is a list of conditions `NAME OP VALUE`, like `year>=2020`, all of which must hold. Texts of
both are kept and compared in Unicode NFC, whichever spelling was sent: macOS writes "é" as two code
points, most others as one.
`Filter.matches` defines this for one photo; `chunk_index/columns.py` computes it for all photos.
"""

from __future__ import annotations

import json
import operator
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from deployments.errors import BadParameter
from deployments.records import Facts, Metadata

MAX_KEYS = 64
MAX_TEXT = 1000
MAX_JSON = 2**20  # characters: 64 long keys and texts with every character escaped, and some room
MAX_CONDITIONS = 16
MAX_CONDITION = 2000
MAX_MARKS = 30
LONG_TEXT = 200  # shorter ones are quickly sorted, whatever they have
# Numbers are compared as float64, in which larger integers are not exact.
MAX_INTEGER = 2**53

KEY_PATTERN = r"[A-Za-z_][A-Za-z0-9_.-]{0,63}"
CONDITION_PATTERN = rf"^\s*{KEY_PATTERN}\s*(=|!=|<|<=|>|>=)"  # how every condition begins

Value = bool | int | float | str
Kind = Literal["text", "number", "boolean"]
KINDS: dict[type, Kind] = {str: "text", int: "number", float: "number", bool: "boolean"}
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_KEY = re.compile(KEY_PATTERN)
_CONDITION = re.compile(rf"\s*({KEY_PATTERN})\s*(=|!=|<=?|>=?)\s*(.*?)\s*", re.DOTALL)
_JSON_VALUE = re.compile(r'".*|true|false|-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?', re.DOTALL)
# An unquoted value that begins like this is a mistake: year==2020, year=>2020, camera='Canon'.
_MISTAKEN = tuple("=<>'")


def normalised(text: str) -> str:
    """Return a text in Unicode NFC, as it is compared.

    A long text with more than 30 combining marks on one character is returned as it is: sorting
    them takes time that grows with the square of their number. The number is Unicode's own, for
    streams (UAX #15).
    """
    if len(text) > LONG_TEXT and not text.isascii() and _most_marks(text) > MAX_MARKS:
        return text
    return unicodedata.normalize("NFC", text)


def _most_marks(text: str) -> int:
    most = count = 0
    for character in text:
        count = count + 1 if unicodedata.combining(character) else 0
        most = max(most, count)
    return most


def parse_metadata(text: str) -> Metadata:
    """Parse metadata from a JSON text.

    Raises:
        BadParameter: it is longer than all that is accepted can be, is not a JSON object, has a key
            twice, or is refused by `check_metadata`.
    """
    if len(text) > MAX_JSON:
        raise BadParameter(
            f"The metadata has {len(text):,} characters: shorten it to {MAX_JSON:,}."
        )
    try:
        return check_metadata(
            json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=float)
        )
    except (ValueError, RecursionError):  # also if it nests too deeply or has too long a number
        raise BadParameter(
            f'The metadata {_quote(text)} is not JSON: send an object like {{"year": 2024}}.'
        ) from None


def check_metadata(metadata: Mapping[str, Value]) -> Metadata:
    """Check metadata, and return it as it is kept: a copy with its texts in Unicode NFC.

    Raises:
        BadParameter: it is not a mapping; has more than 64 keys; has a key that isn't 1 to 64
            ASCII letters, digits, `_`, `.` and `-`, beginning with a letter or `_`; or has a value
            that isn't a string of at most 1000 characters in NFC, an integer within 2**53, a finite
            number or a boolean.
    """
    if not isinstance(metadata, Mapping):
        raise BadParameter(
            f'The metadata {_quote(metadata)} is not an object: send one like {{"year": 2024}}.'
        )
    if len(metadata) > MAX_KEYS:
        raise BadParameter(
            f"The metadata has {len(metadata)} keys, but at most {MAX_KEYS} are accepted: leave "
            "out keys that no search filters by."
        )
    for key in metadata:
        if not (isinstance(key, str) and _KEY.fullmatch(key)):
            raise BadParameter(
                f"{_quote(key)} is not a valid key of metadata: use 1 to 64 ASCII letters, "
                "digits, '_', '.' and '-', beginning with a letter or '_'."
            )
    return {key: _check_value(value, f"The metadata's {key!r}") for key, value in metadata.items()}


def add_facts(metadata: Metadata, facts: Facts) -> Metadata:
    """Return a client's metadata with what the photo says of itself behind it.

    A client's key wins. Facts that would be beyond 64 keys are left out, in their order.
    """
    new = ((name, said) for name, said in facts.items() if name not in metadata)
    said = [(name, fact) for name, fact in new if fact is not None]
    return metadata | dict(said[: MAX_KEYS - len(metadata)])


def _check_value(value: Any, what: str) -> Value:
    """Check a value of metadata or of a filter, and return it as it is kept and compared."""
    if type(value) not in KINDS:
        raise BadParameter(
            f"{what} must be a string, a number, true or false, not {type(value).__name__}: leave "
            "out keys without a value, and spread lists and objects over several keys."
        )
    if isinstance(value, str):
        value = normalised(value)
        if len(value) > MAX_TEXT:
            raise BadParameter(f"{what} has {len(value):,} characters: shorten it to {MAX_TEXT:,}.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise BadParameter(
                f"{what} is {_quote(value)}, which contains half of a surrogate pair: send valid "
                "Unicode."
            )
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise BadParameter(
                f"{what} is beyond 2**53, where numbers are not exact: send it as a string."
            )
    elif not isfinite(value):
        raise BadParameter(f"{what} is {value}: send a finite number, or leave it out.")
    checked: Value = value
    return checked


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadParameter(f"The metadata has the key {_quote(key)} twice: send it once.")
        found[key] = value
    return found


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on the value of one key, see `Filter`.

    Attributes:
        name: the key.
        operator: a key of `OPERATORS`; `=` or `!=` if the value is a boolean.
        kind: the kind of the value. Because of it, conditions on true and on 1 are not equal.
        value: what the photo's value is compared with; a text is in NFC.
    """

    name: str
    operator: str
    kind: Kind
    value: Value

    def holds(self, value: Value) -> bool:
        """Return whether a photo's value satisfies the condition."""
        if isinstance(value, str):  # older versions stored texts as they were sent
            value = normalised(value)
        return KINDS[type(value)] == self.kind and OPERATORS[self.operator](value, self.value)


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on the metadata of a photo, all of which must hold.

    A condition, even with `!=`, holds only for photos that have the key, with a value of the same
    kind (string, number or boolean). So `year!=2020` doesn't hold for a photo without a year, nor
    for one whose year is the string "2020". Numbers are ordered by value, strings by code point (so
    dates like 2024-05-31 are ordered by time). Booleans are not ordered, and true is not 1.
    """

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, conditions: Sequence[str]) -> Filter:
        """Parse conditions, each `NAME OP VALUE` with `=`, `!=`, `<`, `<=`, `>` or `>=`.

        VALUE is true, false, a JSON number, or a JSON string in double quotes. Anything else is a
        string without quotes (`camera=Canon EOS`); spaces around it are dropped.

        Args:
            conditions: at most 16, each of at most 2000 characters.

        Raises:
            BadParameter: one is not a condition, or there are too many.
        """
        if len(conditions) > MAX_CONDITIONS:
            raise BadParameter(
                f"There are {len(conditions)} filters, but at most {MAX_CONDITIONS} are accepted: "
                "leave some out."
            )
        return cls(tuple(map(_parse_condition, conditions)))

    def matches(self, metadata: Metadata) -> bool:
        """Return whether all conditions hold for a photo with this metadata."""
        return all(
            condition.name in metadata and condition.holds(metadata[condition.name])
            for condition in self.conditions
        )


def _parse_condition(text: str) -> Condition:
    what = f"The filter {_quote(text)}"
    if len(text) > MAX_CONDITION:
        raise BadParameter(f"{what} has {len(text):,} characters: shorten it to {MAX_CONDITION:,}.")
    parts = _CONDITION.fullmatch(text)
    if parts is None:
        raise BadParameter(
            f"{what} is not a condition: write a key, one of = != < <= > >=, and a value, as in "
            "year>=2020."
        )
    name, comparison, written = parts.groups()
    value = _check_value(_parse_value(written, what), f"The value of the filter {_quote(text)}")
    if isinstance(value, bool) and comparison not in ("=", "!="):
        raise BadParameter(
            f"{what} can't order booleans: write {name}={written} or {name}!={written}, "
            f'or {name}{comparison}"{written}" if it is a string.'
        )
    return Condition(name, comparison, KINDS[type(value)], value)


def _parse_value(written: str, what: str) -> Value:
    if _JSON_VALUE.fullmatch(written):
        try:
            value: Value = json.loads(written)
            return value
        except ValueError:
            raise BadParameter(
                f"{what} has a value in quotes that is not a JSON string: end it with a double "
                'quote, and write \\" and \\\\ within, as in title="A \\"big\\" day".'
            ) from None
    if not written or written.startswith(_MISTAKEN):
        raise BadParameter(
            f"{what} has {'no value' if not written else f'a value that begins with {written[0]}'}"
            ': put a string in double quotes, as in camera="Canon EOS".'
        )
    return written
