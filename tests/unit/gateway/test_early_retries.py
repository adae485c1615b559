"""Which requests are refused by their head: large ones that come back before the time that their key was told."""

import pytest

from rerankd.gateway.early_retries import EarlyRetries


@pytest.mark.parametrize(
    ("key", "models", "size", "now", "waits_s"),
    [
        pytest.param("a", ["m"], 1000, 10.0, 1.0, id="at once"),
        pytest.param("a", ["m"], 2000, 10.25, 0.75, id="a larger one"),
        pytest.param("a", ["m"], 999, 10.0, 0.0, id="a smaller one"),
        pytest.param("b", ["m"], 1000, 10.0, 0.0, id="another key"),
        pytest.param("a", ["m"], 1000, 11.0, 0.0, id="a second later"),
        pytest.param("a", ["m", "n"], 1000, 10.0, 0.0, id="another model may have room"),
        pytest.param("a", [], 1000, 10.0, 0.0, id="no model answers"),
    ],
)
def test_a_refusal_counts_for_its_key_and_for_requests_no_smaller(
    key: str, models: list[str], size: int, now: float, waits_s: float
) -> None:
    early = EarlyRetries()
    early.refused("a", "m", size=1000, retry_after_s=7.0, now=10.0)
    assert early.wait_s(key, models, size=size, now=now) == waits_s


def test_a_refusal_counts_no_longer_than_its_retry_after() -> None:
    early = EarlyRetries()
    early.refused("a", "m", size=1000, retry_after_s=0.25, now=10.0)
    assert early.wait_s("a", ["m"], size=1000, now=10.125) == 0.125
    assert early.wait_s("a", ["m"], size=1000, now=10.25) == 0


def test_the_refusal_of_a_retry_names_what_is_left_of_the_first_ones_time() -> None:
    early = EarlyRetries()
    early.refused("a", "m", size=1000, retry_after_s=7.0, now=10.0)
    early.refused("a", "n", size=1000, retry_after_s=3.0, now=10.5)
    assert early.wait_s("a", ["m", "n"], size=1000, now=10.5) == 0.5
    assert early.refusal("a", ["m", "n"], now=11.0).retry_after_s == 2.5
