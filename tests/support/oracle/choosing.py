"""Where choices come from: Hypothesis, which can shrink them, or a seed, which is recorded in one number."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Choose:
    """Makes choices out of whole numbers; the smaller the number, the simpler the choice."""

    def __init__(self, number: Callable[[int, int], int]) -> None:
        """`number` returns one between two others, both included."""
        self.number = number

    def one_of(self, choices: Sequence[T]) -> T:
        """One of these, the first of which is the simplest."""
        return choices[self.number(0, len(choices) - 1)]

    def chance(self, percent: int) -> bool:
        """Whether something happens, which is more complicated than that it does not."""
        return self.number(0, 99) >= 100 - percent

    def some_of(self, choices: Sequence[T], at_most: int) -> list[T]:
        """A few of these, each once."""
        left = list(choices)
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(self.number(0, min(at_most, len(left))))]


def by_seed(seed: int) -> Choose:
    """The choices of a seed."""
    return Choose(random.Random(seed).randint)  # noqa: S311
