"""Stands in for the library of this name, which needs some gigabytes, and a model from the Hub."""

from collections.abc import Callable


def pipeline(task: str) -> Callable[[str], list[dict[str, str | float]]]:
    """Return a model that likes everything."""
    return lambda text: [{"label": "POSITIVE", "score": 1.0}]
