"""The metadata of all photos in columns, so that a filter works on all photos at once."""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
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
    photo with such a value. So the memory depends on the number of values: a number takes 16 bytes,
    a boolean 9, a string 12, and each distinct string is kept once. Up to half of the rows are
    spare. The rows of a removed or replaced photo stay, unused, until there are more of them than
    of the others. Then they are dropped, with the strings that only they had.

    It isn't thread-safe: the caller needs a lock.
    """

    def __init__(self) -> None:
        self._columns: dict[tuple[str, Kind], _Column] = {}
        # A row is in use if it has the version of its photo. So removing a photo touches no rows.
        self._versions = np.zeros(0, np.int32)
        self._sizes = np.zeros(0, np.uint8)  # how many values each photo has
        self._used = 0
        self._unused = 0

    def put(self, slot: int, metadata: Metadata) -> None:
        """Set the metadata of a photo; replace what it had. See `prepare`."""
        self.prepare(slot, metadata)()

    def prepare(self, slot: int, metadata: Metadata) -> Callable[[], None]:
        """Make room for the metadata of a photo, and return a function that writes it there.

        Args:
            slot: number of the photo, 0 to 2**31 - 1.
            metadata: as the store has it. Older versions stored texts as they were sent, not in
                NFC; here they are compared in NFC as well.

        Returns:
            A function that replaces what the photo had, and needs no memory. Call it before
            anything else is put or removed.
        """
        if slot >= len(self._versions):
            size = max(slot + 1, 2 * len(self._versions))
            versions, sizes = grown(self._versions, size), grown(self._sizes, size)
            self._versions, self._sizes = versions, sizes
        rows = []
        for key, value in metadata.items():
            column = self._column(key, KINDS[type(value)])
            rows.append((column, column.reserve(value)))

        def write() -> None:
            self._drop(slot)
            for column, kept in rows:
                column.append(slot, self._versions[slot], kept)
            self._sizes[slot] = len(metadata)
            self._used += len(metadata)
            self._compact_if_worth()

        return write

    def remove(self, slot: int) -> None:
        """Remove the metadata of a photo, if it has any."""
        self._drop(slot)
        self._compact_if_worth()

    def _column(self, key: str, kind: Kind) -> _Column:
        column = self._columns.get((key, kind))
        if column is None:
            column = self._columns[key, kind] = _new_column(kind)
        return column

    def _drop(self, slot: int) -> None:
        if slot >= len(self._sizes) or not self._sizes[slot]:
            return
        self._versions[slot] += 1
        size = int(self._sizes[slot])
        self._sizes[slot] = 0
        self._used -= size
        self._unused += size

    def _compact_if_worth(self) -> None:
        if self._unused > self._used:
            with suppress(MemoryError):  # then the next change tries it again
                self._compact()

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
                holding = column.select(condition)
                if self._unused:
                    holding &= self._in_use(column)
                # Of several rows of one photo only the last can be in use, and the last one counts.
                found[column.rows["slot"]] = holding
            selected &= found
        return selected

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the columns as they are now; see `save`.

        It may run while metadata is put, removed and searched. Values are not copied for that: rows
        and texts are only appended, and what is dropped is left out of new arrays.
        """
        frozen = MetadataColumns()
        frozen._columns = {place: column.frozen() for place, column in self._columns.items()}
        frozen._versions = self._versions.copy()
        frozen._unused = self._unused
        return frozen.save

    def save(self, path: Path) -> None:
        """Write the columns to a file without pickles.

        Raises:
            OSError
        """
        if self._unused:
            self._compact()
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
        slots = [column.rows["slot"] for column in loaded._columns.values()]
        if slots:
            loaded._sizes = np.bincount(np.concatenate(slots)).astype(np.uint8)
            loaded._versions = np.zeros(len(loaded._sizes), np.int32)
            loaded._used = sum(map(len, slots))
        return loaded

    def _in_use(self, column: _Column) -> np.ndarray:
        return column.rows["version"] == self._versions[column.rows["slot"]]

    def _compact(self) -> None:
        """Drop the unused rows, and set the versions back to 0, all in one step."""
        columns = {
            place: column.kept(self._in_use(column)) for place, column in self._columns.items()
        }
        columns = {place: column for place, column in columns.items() if len(column.rows)}
        versions = np.zeros_like(self._versions)
        self._columns, self._versions, self._unused = columns, versions, 0


class _Column:
    """The values of one key and kind, as rows of `slot`, `version` and `value`."""

    def __init__(self, dtype: str) -> None:
        self._rows = np.zeros(0, [("slot", "<i4"), ("version", "<i4"), ("value", dtype)])
        self._count = 0

    @property
    def rows(self) -> np.ndarray:
        """The rows that were appended, without spare ones."""
        return self._rows[: self._count]

    def reserve(self, value: Any) -> Any:
        """Make room for one more row; return what it has of the value."""
        if self._count == len(self._rows):
            self._rows = grown(self._rows, max(8, 2 * self._count))
        return value

    def append(self, slot: int, version: int, kept: Any) -> None:
        """Add a row.

        Args:
            kept: what `reserve` returned.
        """
        self._rows[self._count] = slot, version, kept
        self._count += 1

    def select(self, condition: Condition) -> np.ndarray:
        """Return which rows satisfy a condition on this key and kind, bool `[rows]`."""
        return OPERATORS[condition.operator](self.rows["value"], condition.value)

    def frozen(self) -> Self:
        """Return a column that has the rows of now, whatever is appended to this one."""
        return copy.copy(self)  # which shares the arrays, but has a count of its own

    def kept(self, wanted: np.ndarray) -> Self:
        """Return a column with the wanted rows only, bool `[rows]`, and with versions of 0."""
        kept = copy.copy(self)
        kept._rows = self.rows[wanted]
        kept._rows["version"] = 0
        kept._count = len(kept._rows)
        return kept

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"rows": self.rows}

    def fill(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Restore the column from what `to_arrays` returned, under names with a prefix."""
        rows = arrays[f"{prefix}rows"]
        self._rows = rows.astype(self._rows.dtype, casting="no")
        self._count = len(rows)


class _TextColumn(_Column):
    """A column of strings in NFC. Each distinct one is kept once, and the rows have its number."""

    def __init__(self) -> None:
        super().__init__("<i4")
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
            return compare(self.rows["value"], self._numbers.get(str(condition.value), -1))
        texts = self._texts[: len(self._numbers)]
        return compare(texts, np.array([condition.value], _TEXT))[self.rows["value"]]

    def frozen(self) -> Self:
        frozen = super().frozen()
        frozen._texts = self._texts[: len(self._numbers)]
        return frozen

    def kept(self, wanted: np.ndarray) -> Self:
        kept = super().kept(wanted)
        used = np.zeros(len(self._texts), bool)
        used[kept.rows["value"]] = True
        kept.rows["value"] = (np.cumsum(used) - 1)[kept.rows["value"]]
        kept._remember(self._texts[used])
        return kept

    def to_arrays(self) -> dict[str, np.ndarray]:
        texts = [*_few_at_a_time(self._texts[: len(self._numbers)])]
        lengths = np.array([len(text) for text in texts], np.int32)
        return super().to_arrays() | {"texts": _bytes_of("".join(texts)), "lengths": lengths}

    def fill(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        super().fill(arrays, prefix)
        text = _text_of(arrays[f"{prefix}texts"])
        ends = np.cumsum(arrays[f"{prefix}lengths"]).tolist()
        texts = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if not unicodedata.is_normalized("NFC", text):
            texts = self._merge([normalised(text) for text in texts])
        self._remember(np.array(texts, _TEXT))

    def _merge(self, texts: list[str]) -> list[str]:
        """Let equal texts have one number; return them by number.

        An older version may have saved a text in two spellings.
        """
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self.rows["value"] = np.array([numbers[text] for text in texts])[self.rows["value"]]
        return [*numbers]

    def _remember(self, texts: np.ndarray) -> None:
        self._texts = texts
        self._numbers = {text: number for number, text in enumerate(_few_at_a_time(texts))}


def _new_column(kind: Kind) -> _Column:
    if kind == "text":
        return _TextColumn()
    return _Column("<f8" if kind == "number" else "?")


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
