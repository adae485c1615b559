"""Checks that two replicas behind HAProxy give a key together what its quota says.

    python -m loadtest.quotas [--seconds 30] [--clients 8] [--tokens-per-min 24000]

Two services count the limits of API keys in one Redis (RERANKD_QUOTA_STORE=redis). Clients first use up the minute
that a bucket holds. Then they ask all the time, and are refused most of the time: what they get must be the quota.
Needs haproxy and redis-server.
"""

import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtest.claims import Claim, conclude, parser
from loadtest.servers import haproxy_server, redis_server, rerankd_server, wait_until_ready

_KEY = "quota-key"
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Spent:
    """What one client got in a time: tokens by the answers' usage, and how many requests ended with each status."""

    tokens: int
    statuses: Counter[int]


@contextmanager
def deployed(registry: Path, *, tokens_per_min: int) -> Iterator[str]:
    """The URL of a proxy before two ready replicas that share a Redis."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        keys = folder / "keys.toml"
        keys.write_text(f'[[key]]\nname = "a"\nkey = "{_KEY}"\ntokens_per_min = {tokens_per_min}\n', encoding="utf-8")
        redis = stack.enter_context(redis_server(folder))
        environment = {
            "RERANKD_API_KEYS_FILE": str(keys),
            "RERANKD_CACHE_URL": f"redis://127.0.0.1:{redis.port}/0",
            "RERANKD_QUOTA_STORE": "redis",
            "RERANKD_LOG_LEVEL": "WARNING",
        }
        replicas = [stack.enter_context(rerankd_server(folder, registry, **environment)) for _ in range(2)]
        for replica in replicas:
            wait_until_ready(replica)
        yield stack.enter_context(haproxy_server(folder, [replica.port for replica in replicas])).url


def spend(url: str, client: int, *, seconds: float, until_refused: bool = False) -> Spent:
    """Ask for so long, or until the quota is used up."""
    tokens, statuses = 0, Counter[int]()
    ends = time.perf_counter() + seconds
    headers = {"Authorization": f"Bearer {_KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as session:
        while time.perf_counter() < ends and not (until_refused and statuses[429]):
            text = f"{client} {sum(statuses.values())} " + "words of a document " * (50 if until_refused else 8)
            answer = session.post("/rerank", json={"query": f"{time.time_ns()}", "documents": [text]})
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                tokens += answer.json()["usage"]["total_tokens"]
            else:
                time.sleep(_PAUSE_S)
    return Spent(tokens, statuses)


def experiment(url: str, arguments: Namespace) -> list[Claim]:
    quota_per_s = arguments.tokens_per_min / 60
    with ThreadPoolExecutor(arguments.clients) as pool:
        clients = range(arguments.clients)
        list(pool.map(lambda one: spend(url, one, seconds=600, until_refused=True), clients))
        started = time.perf_counter()
        spent = list(pool.map(lambda one: spend(url, one, seconds=arguments.seconds), clients))
        took_s = time.perf_counter() - started
    statuses = sum((one.statuses for one in spent), Counter[int]())
    ratio = sum(one.tokens for one in spent) / took_s / quota_per_s
    return [
        Claim("requests answered", statuses[200], ">=", 1),
        Claim("requests refused", statuses[429], ">=", 1),
        Claim("other answers", statuses.total() - statuses[200] - statuses[429], "<=", 0),
        Claim("tokens / quota", ratio, "<=", 1.05),
        Claim("tokens / quota", ratio, ">=", 0.95),
    ]


def main() -> int:
    options = parser(__doc__, seconds=30)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--tokens-per-min", type=int, default=24_000)
    arguments = options.parse_args()
    with deployed(arguments.registry, tokens_per_min=arguments.tokens_per_min) as url:
        claims = experiment(url, arguments)
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
