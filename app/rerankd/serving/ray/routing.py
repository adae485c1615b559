"""Chooses the replica of a request: one that has seen its query, unless that has more to do than others.

A replica that answers a query again has its scores, the vectors of its text and the prefix of its prompt in memory.
Each query has its own order of replicas (rendezvous hashing: Thaler and Ravishankar, 1998), which changes for few
queries when replicas come and go. The first of them that has no more than a fair share of all requests gets it
(consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2018).
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import ceil
from typing import Any, Final, TypeVar

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

Name = TypeVar("Name", bound=str)

# How much more than the mean a replica may have, before others of the order are asked.
_BOUND: Final = 1.25


def ordered(key: bytes, replicas: Mapping[str, int], *, bound: float = _BOUND) -> list[str]:
    """Replicas in the order in which they should be asked. `replicas` maps names to the requests that each has."""
    limit = ceil(bound * (sum(replicas.values()) + 1) / max(1, len(replicas)))
    by_hash = sorted(replicas, key=lambda name: blake2b(name.encode(), key=key, digest_size=8).digest())
    return sorted(by_hash, key=lambda name: replicas[name] >= limit)


class AffineRouter(RequestRouter):
    """Asks replicas in the order of the request's key, which its first argument has."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each replica is a rank of its own: the next is only asked if one before it has no room."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        known = self.replica_queue_len_cache
        loads = {name: known.get(replica.replica_id) or 0 for name, replica in by_name.items()}
        return [[by_name[name]] for name in ordered(_key_of(pending_request.args), loads)]


def _key_of(arguments: Sequence[Any]) -> bytes:
    """Of the call in the first argument; what Serve itself asks has none."""
    return getattr(arguments[0], "key", b"") if arguments else b""
