"""The intervals of the shares that policies win."""

import pytest
from scipy.stats import binomtest

from textenv.commands.rlhf_report import _interval


@pytest.mark.parametrize(("won", "count"), [(0, 12), (12, 12), (5, 12), (130, 256)])
def test_the_interval_of_a_share_is_wilsons(won: int, count: int) -> None:
    expected = binomtest(won, count).proportion_ci(method="wilson")
    assert _interval(won / count, count) == pytest.approx((expected.low, expected.high), abs=1e-4)
