"""Ask stored photos about themselves: those that were stored before they could be asked.

A photo's record says what it was asked. So this knows which photos it has to do with, leaves all
others alone, and goes on where it was when it is interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from deployments.errors import CorruptRecord, InsetError, StoreFull
from deployments.records import Facts, Record
from deployments.store.operations import SetFacts
from deployments.store.reindexing import PORTION, Originals
from deployments.store.store import Store

# Asks originals about themselves. One result for each, in order: what it answers, or the error.
Ask = Callable[[Sequence[bytes]], Sequence[Facts | InsetError]]


def needs_asking(record: Record, wanted: Collection[str]) -> bool:
    """Return whether a photo was not asked something, or says something that is not wanted.

    What the client says itself need not be asked.
    """
    missing = set(wanted) - set(record.asked) - set(record.metadata)
    return bool(missing or set(record.asked) - set(wanted))


def ids_to_ask(old: Originals, wanted: Collection[str]) -> Iterator[str]:
    """Yield the ids of the photos that need asking, of a store of any format.

    A photo whose record is damaged is left to `scripts/store.py verify`.
    """
    after = ""
    while ids := old.ids_after(after, PORTION):
        after = ids[-1]
        for record in old.records(ids):
            if needs_asking(record, wanted):
                yield record.id


def ask_again(
    store: Store, ids: Sequence[str], wanted: Collection[str], ask: Ask
) -> dict[str, tuple[str | None, str]]:
    """Make the metadata of stored photos what their clients said, and what they say themselves.

    Args:
        wanted: what they are asked.
        ask: asks all of it.

    Returns:
        Those that can't be asked, by id: their filename, and why. They stay as they are, unless
        they say something that is not wanted, which is taken out.

    Raises:
        StoreFull: what was done before stays.
    """
    failed: dict[str, tuple[str | None, str]] = {}
    asked: list[tuple[Record, bytes]] = []
    operations: list[SetFacts] = []
    for id in ids:
        try:
            record = store.record(id)
            if set(wanted) <= {*record.asked, *record.metadata}:  # it knows, and says too much
                operations.append(_keep_of(record, wanted))
            else:
                asked.append(store.original(id))
        except CorruptRecord as error:
            failed[id] = None, error.detail
    answers = ask([data for _, data in asked]) if asked else ()
    for (record, _), answer in zip(asked, answers, strict=True):
        if isinstance(answer, InsetError):
            failed[record.id] = record.filename, answer.detail
            if set(record.asked) - set(wanted):
                operations.append(_keep_of(record, wanted))
        else:
            facts = {name: answer.get(name) for name in wanted}
            operations.append(SetFacts(record.id, record.sha256, facts))
    for operation, result in zip(operations, store.apply(operations), strict=True):
        if isinstance(result, StoreFull):
            raise result
        if isinstance(result, InsetError):
            failed[operation.id] = None, result.detail
    return failed


def _keep_of(record: Record, wanted: Collection[str]) -> SetFacts:
    """Return the operation that takes out what a photo says and what is not wanted."""
    facts = {name: record.metadata.get(name) for name in record.asked if name in wanted}
    return SetFacts(record.id, record.sha256, facts)
