"""What holds in every test."""

from collections.abc import Iterator

import gin
import pytest


@pytest.fixture(autouse=True)
def no_bindings_of_another_test() -> Iterator[None]:
    """Forget what a command that ran in this process bound; gin keeps it for all that follow."""
    yield
    gin.clear_config()
