"""Every case of the chart's ci/, rendered."""

import pytest

from tests.support.chart import CASES, Object, rendered


@pytest.fixture(params=CASES)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return rendered(request.param)
