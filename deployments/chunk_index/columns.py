"""The metadata of all photos in columns, so that a filter is applied to all of them at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from deployments.metadata import KINDS, OPERATORS, Condition, Filter, Kind
from deployments.records import Metadata

_TEXT = np.dtypes.StringDType()


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
