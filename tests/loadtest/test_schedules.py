"""The comparison of schedules measures what it says; how fast is not tested."""

from pathlib import Path

import pytest

from loadtest.schedules import SCHEDULES, running_bench

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_a_round_is_one_forward_pass_where_the_budget_allows(tmp_path: Path) -> None:
    async with running_bench(tmp_path) as bench:
        blocks = {schedule: await bench.block("thin", schedule, clients=1, requests=2) for schedule in SCHEDULES}
    assert blocks["sliding"].passes == 9
    for schedule in ("tournament", "top-down"):
        assert blocks[schedule].passes <= 3
        assert blocks[schedule].tokens < 0.85 * blocks["sliding"].tokens
