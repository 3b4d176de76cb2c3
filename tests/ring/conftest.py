"""Each test of behaviour runs on every way to drive a ring."""

import pytest

from tests.ring.drives import DRIVES, Drive


@pytest.fixture(params=DRIVES)
def drive(request: pytest.FixtureRequest) -> Drive:
    """drive(main, **options of Ring) runs the coroutine main(ring) on a loop with that ring."""
    return DRIVES[request.param]
