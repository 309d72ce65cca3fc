"""How many examples Hypothesis makes up."""

import pytest


def examples(*, few: int, many: int) -> pytest.MarkDecorator:
    """Let a test have `examples`: few in `make test`, many in `make test-all`."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.thorough)])
