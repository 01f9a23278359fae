"""The metadata of all photos in columns, so that a filter works on all photos at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np

from deployments.metadata import KINDS, OPERATORS, Condition, Filter, Kind, normalised
from deployments.records import Metadata

_TEXT = np.dtypes.StringDType()


class MetadataColumns:
    """The metadata of photos, which are numbered from 0.

    Each key has a column for every kind of value that occurs with it. A column has a row for each
    photo with such a value. So the memory depends on the number of values: a number takes 12 bytes,
    a boolean 5, a string 8, and each distinct string is kept once. Up to half of the rows are
    spare. Rows are only added.

    It isn't thread-safe: the caller needs a lock.
    """

    def __init__(self) -> None:
        self._columns: dict[tuple[str, Kind], _Column] = {}

    def put(self, slot: int, metadata: Metadata) -> None:
        """Add the metadata of a photo. See `prepare`."""
        self.prepare(slot, metadata)()

    def prepare(self, slot: int, metadata: Metadata) -> Callable[[], None]:
        """Make room for the metadata of a photo, and return a function that writes it there.

        Args:
            slot: number of the photo, at most 2**31 - 1, and larger than all before it.
            metadata: as the store has it. Older versions stored texts as they were sent, not in
                NFC; here they are compared in NFC as well.

        Returns:
            A function that needs no memory. Call it before anything else is put.
        """
        rows = []
        for key, value in metadata.items():
            column = self._column(key, KINDS[type(value)])
            rows.append((column, column.reserve(value)))

        def write() -> None:
            for column, kept in rows:
                column.append(slot, kept)

        return write

    def _column(self, key: str, kind: Kind) -> _Column:
        column = self._columns.get((key, kind))
        if column is None:
            column = self._columns[key, kind] = _new_column(kind)
        return column

    def select(self, filter: Filter, slots: int) -> np.ndarray:
        """Return which photos match a filter, bool `[slots]`.

        Args:
            slots: number of photos, larger than any slot that was ever put.
        """
        selected = np.ones(slots, bool)
        for condition in filter.conditions:
            found = np.zeros(slots, bool)
            column = self._columns.get((condition.name, condition.kind))
            if column is not None:
                found[column.slots] = column.select(condition)
            selected &= found
        return selected

    def metadata(self, slots: np.ndarray) -> list[Metadata]:
        """Return the metadata of some photos, with numbers as floats and texts in NFC."""
        found: list[Metadata] = [{} for _ in slots]
        for (key, _), column in self._columns.items():
            for place, value in column.values_of(slots):
                found[place][key] = value
        return found

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the columns as they are now; see `save`.

        It may run while metadata is put and searched. Values are not copied for that: rows and
        texts are only appended.
        """
        frozen = MetadataColumns()
        frozen._columns = {place: column.frozen() for place, column in self._columns.items()}
        return frozen.save

    def save(self, path: Path) -> None:
        """Write the columns to a file without pickles.

        Raises:
            OSError
        """
        arrays = {"keys": _bytes_of(json.dumps([*self._columns]))}
        for number, column in enumerate(self._columns.values()):
            arrays |= {f"{number}.{name}": array for name, array in column.to_arrays().items()}
        with open(path, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> MetadataColumns:
        """Read what `save` wrote.

        Raises:
            OSError: the file can't be read.
            ValueError: its content is not what `save` writes.
        """
        loaded = cls()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for number, (key, kind) in enumerate(json.loads(_text_of(arrays["keys"]))):
                    column = loaded._columns[key, kind] = _new_column(kind)
                    column.fill(arrays, prefix=f"{number}.")
        except (ValueError, TypeError, KeyError, IndexError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} holds no columns of metadata ({error})") from error
        return loaded


class _Column:
    """The values of one key and kind, in ascending order of the slots that have them."""

    def __init__(self, dtype: np.typing.DTypeLike) -> None:
        self._slots = np.zeros(0, np.int32)  # with spare room, as all of these arrays
        self._values = np.zeros(0, dtype)
        self._count = 0

    @property
    def slots(self) -> np.ndarray:
        return self._slots[: self._count]

    @property
    def values(self) -> np.ndarray:
        return self._values[: self._count]

    def reserve(self, value: Any) -> Any:
        """Make room for one more row; return what it has of the value."""
        if self._count == len(self._slots):
            size = max(8, 2 * self._count)
            self._slots, self._values = grown(self._slots, size), grown(self._values, size)
        return value

    def append(self, slot: int, kept: Any) -> None:
        """Add a row.

        Args:
            kept: what `reserve` returned.
        """
        self._slots[self._count], self._values[self._count] = slot, kept
        self._count += 1

    def select(self, condition: Condition) -> np.ndarray:
        """Return which rows satisfy a condition on this key and kind, bool `[rows]`."""
        return OPERATORS[condition.operator](self.values, condition.value)

    def values_of(self, slots: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Yield the values that some slots have, each with its slot's place among them."""
        rows = np.searchsorted(self.slots, slots)
        places = np.flatnonzero(rows < self._count)
        places = places[self._slots[rows[places]] == slots[places]]
        yield from zip(places.tolist(), self._sent(rows[places]), strict=True)

    def _sent(self, rows: np.ndarray) -> list[Any]:
        """Return the values of some rows as they were sent."""
        return self._values[rows].tolist()

    def frozen(self) -> Self:
        """Return a column that has the rows of now, whatever is appended to this one."""
        return copy.copy(self)  # which shares the arrays, but has a count of its own

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"slots": self.slots, "values": self.values}

    def fill(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Restore the column from what `to_arrays` returned, under names with a prefix."""
        self._slots, self._values = (
            arrays[f"{prefix}{name}"].astype(array.dtype, casting="no")
            for name, array in (("slots", self._slots), ("values", self._values))
        )
        if len(self._slots) != len(self._values):
            raise ValueError("not each value has a photo")
        self._count = len(self._slots)


class _TextColumn(_Column):
    """A column of strings in NFC. Each distinct one is kept once, and the rows have its number."""

    def __init__(self) -> None:
        super().__init__(np.int32)
        self._numbers: dict[str, int] = {}
        self._texts: np.ndarray = np.zeros(0, _TEXT)  # by number, with spare room

    def reserve(self, value: str) -> int:
        super().reserve(value)
        value = normalised(value)
        number = self._numbers.get(value)
        if number is None:
            number = len(self._numbers)
            if number == len(self._texts):
                self._texts = grown(self._texts, max(8, 2 * number))
            self._texts[number] = value
            self._numbers[value] = number
        return number

    def select(self, condition: Condition) -> np.ndarray:
        compare = OPERATORS[condition.operator]
        if condition.operator in ("=", "!="):
            return compare(self.values, self._numbers.get(str(condition.value), -1))
        texts = self._texts[: len(self._numbers)]
        return compare(texts, np.array([condition.value], _TEXT))[self.values]

    def _sent(self, rows: np.ndarray) -> list[str]:
        return self._texts[self._values[rows]].tolist()

    def frozen(self) -> Self:
        frozen = super().frozen()
        frozen._texts = self._texts[: len(self._numbers)]
        return frozen

    def to_arrays(self) -> dict[str, np.ndarray]:
        texts = [*_few_at_a_time(self._texts[: len(self._numbers)])]
        lengths = np.array([len(text) for text in texts], np.int32)
        return super().to_arrays() | {"texts": _bytes_of("".join(texts)), "lengths": lengths}

    def fill(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        super().fill(arrays, prefix)
        text = _text_of(arrays[f"{prefix}texts"])
        ends = np.cumsum(arrays[f"{prefix}lengths"]).tolist()
        texts = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        self._texts = np.array(texts, _TEXT)
        self._numbers = {text: number for number, text in enumerate(texts)}


def _new_column(kind: Kind) -> _Column:
    if kind == "text":
        return _TextColumn()
    return _Column(np.float64 if kind == "number" else np.bool_)


def grown(array: np.ndarray, size: int) -> np.ndarray:
    """Return a copy of an array with room for `size` elements, the new ones 0."""
    larger = np.zeros(size, array.dtype)
    larger[: len(array)] = array
    return larger


def _few_at_a_time(texts: np.ndarray) -> Iterator[str]:
    """Yield texts; no other thread can run while an array is made into a list."""
    for start in range(0, len(texts), 1024):
        yield from texts[start : start + 1024].tolist()


def _bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _text_of(array: np.ndarray) -> str:
    return array.tobytes().decode()
