"""Finds rows that PostgreSQL refuses only when the transaction ends, and lets them stay behind.

A deferred constraint trigger may look at several tables, so it is fired when all rows are there. It
does not tell which row it refuses: the move is tried again and again, with other rows left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import TypeVar

from space_runtime.failback.move import Move
from space_runtime.failback.outcome import Outcome
from space_runtime.failback.sources import Node, Refusal
from space_runtime.failback.target import RefusedAtTheEnd

MOST_TRIALS = 200

Suspect = TypeVar("Suspect")


def move_all_but_culprits(
    make: Callable[..., Move],
    left_out: Mapping[Node, Refusal] = MappingProxyType({}),
) -> Outcome:
    """Run the move without `left_out`, and without the rows that deferred triggers refuse."""
    move = make(left_out=left_out)
    try:
        outcome = move.run()
    except RefusedAtTheEnd as error:
        refused = error
    else:
        move.report()
        return outcome
    move.undo()

    def and_without(rows: Iterable[Node]) -> Mapping[Node, Refusal]:
        return {**left_out, **dict.fromkeys(rows, ("refused", refused.error))}

    def is_refused_without(rows: Iterable[Node]) -> bool:
        trial = make(left_out=and_without(rows))
        try:
            trial.run(refused.trigger)
        except RefusedAtTheEnd:
            return True
        finally:
            trial.undo()
        return False

    suspects = move.suspects(*refused.tables)
    if not suspects or is_refused_without(suspects):
        # It refuses what other tables' triggers wrote, or because of what is in other tables.
        suspects = move.suspects()
    found = culprits(suspects, is_refused_without)
    return move_all_but_culprits(make, and_without(found))


def culprits(
    suspects: Sequence[Suspect], is_refused_without: Callable[[Sequence[Suspect]], bool]
) -> list[Suspect]:
    """Return few of the suspects without which the others are not refused.

    Without all of them, nothing is. Halves are left out in turn, as in QuickXplain (Junker, 2004),
    which takes some 2 log(n) trials for each that it finds. After MOST_TRIALS, all that are still
    suspected are returned.
    """
    trials = count()

    def among(suspects: Sequence[Suspect], without: Sequence[Suspect]) -> list[Suspect]:
        if len(suspects) == 1 or next(trials) >= MOST_TRIALS:
            return [*suspects]
        first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
        for half in (first, second):
            if not is_refused_without([*without, *half]):
                return among(half, without)
        of_second = among(second, [*without, *first])
        return among(first, [*without, *of_second]) + of_second

    return among(suspects, [])
