"""What holds in every test."""

from collections.abc import Iterator

import gin
import pytest
from hypothesis import HealthCheck, settings

# Whether a law holds does not depend on how fast or busy the machine is.
settings.register_profile("laws", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("laws")


@pytest.fixture(autouse=True)
def no_bindings_of_another_test() -> Iterator[None]:
    """Forget what a command that ran in this process bound; gin keeps it for all that follow."""
    yield
    gin.clear_config()
