"""Decides how many replicas a deployment needs. Pure; Ray Serve runs it in its controller."""

from math import ceil
from typing import Any

from ray.serve.config import AutoscalingContext

WAITING_S = "rerankd_waiting_s"
BUSY = "rerankd_busy"
# A replica more or less for less than this would come from noise of the measurement.
_NOISE = 0.01


class WaitingWork:
    """As many replicas as finish in `wait_s` what waits, and as compute at most `busy` of the time. Without the second
    rule replicas that keep up would be removed until work waits.
    """

    def __init__(self, *, wait_s: float, busy: float) -> None:
        self._wait_s = wait_s
        self._busy = busy

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """By what replicas said lately; a deployment of which nothing is known stays as it is."""
        told = context.aggregated_metrics or {}
        if not told.get(WAITING_S):
            return context.target_num_replicas, {}
        return self.replicas(waiting_s=sum(told[WAITING_S].values()), busy=sum(told.get(BUSY, {}).values())), {}

    def replicas(self, *, waiting_s: float, busy: float) -> int:
        """How many are needed, one at least. `waiting_s` and `busy` are sums over the replicas: the seconds of work
        that wait in each, and the share of the time in which each computes.
        """
        return max(1, ceil(waiting_s / self._wait_s - _NOISE), ceil(busy / self._busy - _NOISE))
