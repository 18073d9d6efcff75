"""A CSV file as columns, with errors that name the file, the line and the remedy."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TextIO

import numpy as np

from optllm_router._errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from optllm_router._types import FloatArray

# The csv module refuses fields above 128 KiB unless told otherwise; prompts can be longer.
_LONGEST_FIELD = 2**31 - 1
_PIECE = 4096


class Table:
    """The columns of one CSV file."""

    def __init__(self, path: Path, columns: Mapping[str, Sequence[str]]) -> None:
        self.path = path
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def column(self, name: str) -> Sequence[str]:
        """All values of a column, as they were written."""
        return self._columns[name]

    def numbers(self, name: str, *, required: bool = False) -> FloatArray:
        """All values of a column as numbers, NaN where empty.

        Args:
            name: of the column.
            required: refuse empty fields instead.

        Raises:
            InvalidDataError: naming the line of the first field that is no number.
        """
        texts = self._columns[name]
        try:
            values = np.array([_number(text) if text else math.nan for text in texts])
        except ValueError:
            at = next(row for row, text in enumerate(texts) if text and not _is_number(text))
            raise self.error(
                at, f"{name} {texts[at]!r} is not a number; correct it or remove the row"
            ) from None
        # An empty field says "unknown"; the word nan says that a computation went wrong.
        wrong = [row for row in np.flatnonzero(np.isnan(values)).tolist() if required or texts[row]]
        if wrong:
            at = wrong[0]
            raise self.error(
                at, f"{name} is {texts[at]!r}, not a number; correct it or remove the row"
            )
        return values

    def error(self, row: int, problem: str) -> InvalidDataError:
        """An error about the row with this number (from 0, without the header)."""
        return InvalidDataError(f"{self.path}, line {self._line(row)}: {problem}")

    def _line(self, row: int) -> int:
        """Line on which a row ends; fields may hold line breaks, so the file is read again."""
        with _open(self.path) as file, _long_fields():
            reader = csv.reader(file, strict=True)
            full = -1  # the header is not a row
            for fields in reader:
                full += bool(fields)
                if full > row:
                    break
            return reader.line_num


def read_table(folder: Path, stem: str, *, required: Sequence[str]) -> Table:
    """Read ``stem.csv`` or ``stem.csv.gz`` of a folder.

    Raises:
        InvalidDataError: when there is no such file, or both; when it cannot be read, has no
            rows, lacks a required column or has a row of another length.
    """
    path = _locate(folder, stem)
    try:
        with _open(path) as file, _long_fields():
            return _read(path, file, required)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidDataError(
            f"{path} cannot be read ({error}); check the file, or fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidDataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise InvalidDataError(
            f"{path} is not well-formed CSV ({error}); quote fields that hold commas, quotes or "
            "line breaks"
        ) from error


def _read(path: Path, file: TextIO, required: Sequence[str]) -> Table:
    reader = csv.reader(file, strict=True)
    header = _header(path, next(reader, []), required)
    columns: list[list[str]] = [[] for _ in header]
    # In pieces: a row is a list, and a quarter of a million lists alive at once keep the garbage
    # collector busier than the parser.
    while piece := list(islice(reader, _PIECE)):
        rows = [fields for fields in piece if fields]
        for number, fields in enumerate(rows, start=len(columns[0])):
            if len(fields) != len(header):
                raise Table(path, {}).error(
                    number,
                    f"{len(fields)} fields where the header names {len(header)}; quote fields "
                    "that hold commas",
                )
        for position, column in enumerate(columns):
            column.extend([fields[position] for fields in rows])
    if not columns[0]:
        raise InvalidDataError(f"{path} has a header and no rows; there is nothing to evaluate")
    return Table(path, dict(zip(header, columns, strict=True)))


def _header(path: Path, fields: Sequence[str], required: Sequence[str]) -> list[str]:
    header = [name.strip() for name in fields]
    if not header:
        raise InvalidDataError(f"{path} is empty; its first line must be {','.join(required)}")
    for name in required:
        if name not in header:
            raise InvalidDataError(
                f"{path} has no column {name!r}, only {', '.join(map(repr, header))}; "
                f"its first line must name {', '.join(required)}"
            )
    if len(set(header)) < len(header):
        raise InvalidDataError(f"{path} names a column twice: {', '.join(header)}; rename one")
    return header


def _locate(folder: Path, stem: str) -> Path:
    plain, zipped = folder / f"{stem}.csv", folder / f"{stem}.csv.gz"
    found = [path for path in (plain, zipped) if path.is_file()]
    if not found:
        raise InvalidDataError(
            f"{folder} holds neither {plain.name} nor {zipped.name}; a folder of recorded outcomes "
            "has queries.csv and outcomes.csv, plain or .gz"
        )
    if len(found) > 1:
        raise InvalidDataError(
            f"{folder} holds both {plain.name} and {zipped.name}; remove the one that is out of "
            "date"
        )
    return found[0]


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _number(text: str) -> float:
    """As :class:`float`, but for ``1_0``, which is 10 to Python alone."""
    if "_" in text:
        raise ValueError(text)
    return float(text)


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True
