"""What clients say about their photos, and searches among those of which something is true.

Metadata is a flat JSON object, as `{"camera": "Canon EOS", "year": 2024, "flash": false}`. A filter
is a list of conditions `NAME OP VALUE`, as `year>=2020`, all of which must hold. `Filter.matches`
says what that means for one photo; `MetadataColumns.select` finds the same for all photos at once.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from deployments.errors import BadParameter
from deployments.records import Metadata

MAX_KEYS = 64
MAX_TEXT = 1000
MAX_CONDITIONS = 16
MAX_CONDITION = 2000
# Integers beyond it are no longer exact as float64, which is how they are compared.
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
_TEXT = np.dtypes.StringDType()
# What begins like this was meant to be something else: year==2020, year=>2020, camera='Canon'.
_MISTAKEN = tuple("=<>'")


def parse_metadata(text: str) -> Metadata:
    """Return the metadata that a JSON text stands for.

    Raises:
        BadParameter: no JSON object, a key twice, or not as `check_metadata` wants it.
    """
    try:
        return check_metadata(
            json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=float)
        )
    except (ValueError, RecursionError):  # it may also nest too deeply, or have too long a number
        raise BadParameter(
            f'The metadata {_quote(text)} is no JSON: send an object like {{"year": 2024}}.'
        ) from None


def check_metadata(metadata: Mapping[str, Value]) -> Metadata:
    """Return a copy of the metadata.

    Raises:
        BadParameter: it is no mapping; more than 64 keys; a key that isn't 1 to 64 ASCII letters,
            digits, `_`, `.` and `-`, beginning with a letter or `_`; or a value that isn't a
            string of at most 1000 characters, an integer within 2**53, a finite number or a
            boolean.
    """
    if not isinstance(metadata, Mapping):
        raise BadParameter(
            f'The metadata {_quote(metadata)} is no object: send one like {{"year": 2024}}.'
        )
    if len(metadata) > MAX_KEYS:
        raise BadParameter(
            f"The metadata has {len(metadata)} keys, and {MAX_KEYS} are accepted: leave out those "
            "that no search filters by."
        )
    for key, value in metadata.items():
        if not (isinstance(key, str) and _KEY.fullmatch(key)):
            raise BadParameter(
                f"{_quote(key)} can't be a key of metadata: use 1 to 64 ASCII letters, digits, "
                "'_', '.' and '-', beginning with a letter or '_'."
            )
        _check_value(value, f"The metadata's {key!r}")
    return dict(metadata)


def _check_value(value: Any, what: str) -> None:
    if type(value) not in KINDS:
        raise BadParameter(
            f"{what} must be a string, a number, true or false, not {type(value).__name__}: leave "
            "out what there is none of, and spread lists and objects over several keys."
        )
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise BadParameter(f"{what} has {len(value):,} characters: shorten it to {MAX_TEXT:,}.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise BadParameter(
                f"{what} is {_quote(value)}, which has half of a surrogate pair: send valid "
                "Unicode."
            )
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise BadParameter(
                f"{what} is beyond 2**53, where numbers are no longer exact: send it as a string."
            )
    elif not isfinite(value):
        raise BadParameter(f"{what} is {value}: send a finite number, or leave it out.")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadParameter(f"The metadata has the key {_quote(twice)} twice: send it once.")
    return found


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be true of one key. `Filter` says when it is.

    Attributes:
        name: the key.
        operator: a key of `OPERATORS`; `=` or `!=` if the value is a boolean.
        kind: what the value is. It makes conditions on true and on 1 unequal, as they should be.
        value: what the photo's value is compared with.
    """

    name: str
    operator: str
    kind: Kind
    value: Value

    def holds(self, value: Value) -> bool:
        """Whether a value of a photo satisfies it."""
        return KINDS[type(value)] == self.kind and OPERATORS[self.operator](value, self.value)


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on the metadata of a photo, all of which must hold.

    A condition holds only for a photo that has the key, with a value of the same kind (string,
    number or boolean) as the condition's; also one with `!=`. So `year!=2020` doesn't hold for a
    photo without a year, nor for one whose year is the string "2020". Numbers are ordered as
    numbers, strings by code point (so dates as 2024-05-31 are ordered in time); booleans are not
    ordered, and true is not 1.
    """

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, conditions: Sequence[str]) -> Filter:
        """Read conditions, each `NAME OP VALUE` with `=`, `!=`, `<`, `<=`, `>` or `>=`.

        VALUE is true, false, a number as in JSON, or a JSON string in double quotes. Anything else
        is a string as it stands (`camera=Canon EOS`), without the spaces around it.

        Args:
            conditions: at most 16, each of at most 2000 characters.

        Raises:
            BadParameter: something isn't a condition, or there are too many.
        """
        if len(conditions) > MAX_CONDITIONS:
            raise BadParameter(
                f"There are {len(conditions)} filters, and {MAX_CONDITIONS} are accepted: leave "
                "some out."
            )
        return cls(tuple(map(_parse_condition, conditions)))

    def matches(self, metadata: Metadata) -> bool:
        """Whether all conditions hold for a photo with this metadata."""
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
            f"{what} is no condition: write a key, one of = != < <= > >=, and a value, as in "
            "year>=2020."
        )
    name, comparison, written = parts.groups()
    value = _parse_value(written, what)
    _check_value(value, f"The value of the filter {_quote(text)}")
    if isinstance(value, bool) and comparison not in ("=", "!="):
        raise BadParameter(
            f"{what} orders booleans: write {name}={written} or {name}!={written}, or "
            f'{name}{comparison}"{written}" if it is a string.'
        )
    return Condition(name, comparison, KINDS[type(value)], value)


def _parse_value(written: str, what: str) -> Value:
    if _JSON_VALUE.fullmatch(written):
        try:
            return json.loads(written)
        except ValueError:
            raise BadParameter(
                f"{what} has a value in quotes that is no JSON string: end it with a double "
                'quote, and write \\" and \\\\ within, as in title="A \\"big\\" day".'
            ) from None
    if not written or written.startswith(_MISTAKEN):
        raise BadParameter(
            f"{what} has {'no value' if not written else f'a value that begins with {written[0]}'}"
            ': put a string in double quotes, as in camera="Canon EOS".'
        )
    return written


class MetadataColumns:
    """The metadata of photos that are numbered from 0, by key, so that filters are fast.

    Each key has a column for every kind of value that it has, with a row for each photo that has
    such a value. So the memory depends on how many values there are: 16 bytes for a number, 9 for
    a boolean, 12 for a string, and each distinct string once; half of the rows may be spare. The
    rows of a photo that was removed or replaced stay, unused, until they are more than the others;
    then they are dropped, and the strings that only they had.

    Not safe to use from several threads: whoever numbers the photos has a lock.
    """

    def __init__(self) -> None:
        self._columns: dict[tuple[str, Kind], _Column] = {}
        # A row counts if it has the version of its photo: so to remove a photo, none is searched.
        self._versions = np.zeros(0, np.int32)
        self._sizes = np.zeros(0, np.uint8)  # how many values each photo has
        self._used = 0
        self._unused = 0

    def put(self, slot: int, metadata: Metadata) -> None:
        """Keep the metadata of a photo, in the place of what it had.

        Args:
            slot: number of the photo, 0 to 2**31 - 1.
            metadata: as `check_metadata` returns it.
        """
        self.remove(slot)
        if slot >= len(self._versions):
            size = max(slot + 1, 2 * len(self._versions))
            self._versions = _grown(self._versions, size)
            self._sizes = _grown(self._sizes, size)
        for key, value in metadata.items():
            kind = KINDS[type(value)]
            column = self._columns.get((key, kind))
            if column is None:
                column = self._columns[key, kind] = _new_column(kind)
            column.append(slot, self._versions[slot], value)
        self._sizes[slot] = len(metadata)
        self._used += len(metadata)

    def remove(self, slot: int) -> None:
        """Forget the metadata of a photo; one that has none is no error."""
        if slot >= len(self._sizes) or not self._sizes[slot]:
            return
        self._versions[slot] += 1
        size = int(self._sizes[slot])
        self._sizes[slot] = 0
        self._used -= size
        self._unused += size
        if self._unused > self._used:
            self._compact()

    def select(self, filter: Filter, slots: int) -> np.ndarray:
        """Return which photos match a filter, bool `[slots]`.

        Args:
            slots: how many numbers there are: more than any that was ever put.
        """
        selected = np.ones(slots, bool)
        for condition in filter.conditions:
            found = np.zeros(slots, bool)
            column = self._columns.get((condition.name, condition.kind))
            if column is not None:
                holding = column.select(condition)
                if self._unused:
                    holding &= self._in_use(column)
                # Of several rows of one photo only the last can be in use, and the last one counts.
                found[column.rows["slot"]] = holding
            selected &= found
        return selected

    def save(self, path: Path) -> None:
        """Write all of it to a file, which holds no pickle.

        Raises:
            OSError
        """
        if self._unused:
            self._compact()
        arrays = {"keys": _bytes_of(json.dumps([*self._columns]))}
        for number, column in enumerate(self._columns.values()):
            arrays |= {f"{number}.{name}": array for name, array in column.to_arrays().items()}
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> MetadataColumns:
        """Read what `save` wrote.

        Raises:
            OSError: it can't be read.
            ValueError: `save` didn't write it so.
        """
        loaded = cls()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for number, (key, kind) in enumerate(json.loads(_text_of(arrays["keys"]))):
                    column = loaded._columns[key, kind] = _new_column(kind)
                    column.fill(arrays, prefix=f"{number}.")
        except (ValueError, TypeError, KeyError, IndexError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} holds no columns of metadata ({error})") from error
        slots = [column.rows["slot"] for column in loaded._columns.values()]
        if slots:
            loaded._sizes = np.bincount(np.concatenate(slots)).astype(np.uint8)
            loaded._versions = np.zeros(len(loaded._sizes), np.int32)
            loaded._used = sum(map(len, slots))
        return loaded

    def _in_use(self, column: _Column) -> np.ndarray:
        return column.rows["version"] == self._versions[column.rows["slot"]]

    def _compact(self) -> None:
        """Drop the rows that are no longer used, and begin anew with the versions."""
        for place, column in list(self._columns.items()):
            column.keep(self._in_use(column))
            if not len(column.rows):
                del self._columns[place]
        self._versions[:] = 0
        self._unused = 0


class _Column:
    """The values of one key and kind, in rows of `slot`, `version` and `value`, as they came."""

    def __init__(self, dtype: str) -> None:
        self._rows = np.zeros(0, [("slot", "<i4"), ("version", "<i4"), ("value", dtype)])
        self._count = 0

    @property
    def rows(self) -> np.ndarray:
        """Those that were appended."""
        return self._rows[: self._count]

    def append(self, slot: int, version: int, value: Any) -> None:
        if self._count == len(self._rows):
            self._rows = _grown(self._rows, max(8, 2 * self._count))
        self._rows[self._count] = slot, version, value
        self._count += 1

    def select(self, condition: Condition) -> np.ndarray:
        """For which rows a condition on this key and kind holds, bool `[rows]`."""
        return OPERATORS[condition.operator](self.rows["value"], condition.value)

    def keep(self, wanted: np.ndarray) -> None:
        """Drop the rows that aren't wanted, bool `[rows]`, and set the versions to 0."""
        self._rows = self.rows[wanted]
        self._rows["version"] = 0
        self._count = len(self._rows)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"rows": self.rows}

    def fill(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Take what `to_arrays` returned, from among arrays whose names begin with a prefix."""
        rows = arrays[f"{prefix}rows"]
        self._rows = rows.astype(self._rows.dtype, casting="no")
        self._count = len(rows)


class _TextColumn(_Column):
    """Strings, each distinct one once: the rows have its number."""

    def __init__(self) -> None:
        super().__init__("<i4")
        self._numbers: dict[str, int] = {}
        self._texts = np.zeros(0, _TEXT)  # by number, to compare them all at once

    def append(self, slot: int, version: int, value: str) -> None:
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(self._numbers)
            if number == len(self._texts):
                self._texts = _grown(self._texts, max(8, 2 * number))
            self._texts[number] = value
        super().append(slot, version, number)

    def select(self, condition: Condition) -> np.ndarray:
        compare = OPERATORS[condition.operator]
        if condition.operator in ("=", "!="):
            return compare(self.rows["value"], self._numbers.get(condition.value, -1))
        texts = self._texts[: len(self._numbers)]
        return compare(texts, np.array([condition.value], _TEXT))[self.rows["value"]]

    def keep(self, wanted: np.ndarray) -> None:
        super().keep(wanted)
        used = np.zeros(len(self._numbers), bool)
        used[self.rows["value"]] = True
        self.rows["value"] = (np.cumsum(used) - 1)[self.rows["value"]]
        self._remember(self._texts[: len(used)][used])

    def to_arrays(self) -> dict[str, np.ndarray]:
        texts = [*self._numbers]
        lengths = np.array([len(text) for text in texts], np.int32)
        return super().to_arrays() | {"texts": _bytes_of("".join(texts)), "lengths": lengths}

    def fill(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        super().fill(arrays, prefix)
        text = _text_of(arrays[f"{prefix}texts"])
        ends = np.cumsum(arrays[f"{prefix}lengths"]).tolist()
        texts = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        self._remember(np.array(texts, _TEXT))

    def _remember(self, texts: np.ndarray) -> None:
        self._texts = texts
        self._numbers = {text: number for number, text in enumerate(texts.tolist())}


def _new_column(kind: Kind) -> _Column:
    if kind == "text":
        return _TextColumn()
    return _Column("<f8" if kind == "number" else "?")


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    grown = np.zeros(size, array.dtype)
    grown[: len(array)] = array
    return grown


def _bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _text_of(array: np.ndarray) -> str:
    return array.tobytes().decode()
