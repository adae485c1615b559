"""Measures a request whose pairs are all cached: 100 documents, from memory and from Redis.

    python -m loadtest.cached [--documents 100] [--requests 300]

Each service scores the requests once and then answers them again. The second answers must be equal to the first and
spend no time in the model. Server time is what Server-Timing says, client time includes HTTP on loopback.
Needs redis-server.
"""

import sys
import tempfile
from itertools import islice
from pathlib import Path
from time import perf_counter

import orjson

from loadtest.claims import Claim, conclude, parser, run, served
from loadtest.servers import redis_server
from rerankd.tools.benchmark.connection import Answer, Connection, Target
from rerankd.tools.benchmark.measurement import percentile, read_server_timing
from rerankd.tools.benchmark.workload import Shape, Workload

_DIFFERENT_REQUESTS = 8


async def measure(url: str, *, where: str, documents: int, requests: int, limit_ms: float) -> list[Claim]:
    """Ask a few requests, then the same ones again and again.

    Raises:
        AssertionError: an answer from the cache is another one, or came from the model.
    """
    connection = Connection(Target.from_url(url))
    bodies = [body.content for body in islice(Workload(Shape((documents,)), seed=1), _DIFFERENT_REQUESTS)]
    first = [_results(await connection.post(body)) for body in bodies]
    server_ms, client_ms = [], []
    for number in range(requests):
        which = number % len(bodies)
        sent = perf_counter()
        answer = await connection.post(bodies[which])
        client_ms.append(1000 * (answer.finished - sent))
        timings = read_server_timing(answer.headers[b"server-timing"])
        server_ms.append(timings["total"])
        assert _results(answer) == first[which], "the cache gave another answer than the model"
        assert timings["inference"] == 0, "a pair that should be known went to the model"
    connection.close()
    return [
        Claim(f"{where}: server time, p50 ms", percentile(server_ms, 50), "<=", limit_ms),
        Claim(f"{where}: server time, p99 ms", percentile(server_ms, 99)),
        Claim(f"{where}: client time, p50 ms", percentile(client_ms, 50)),
        Claim(f"{where}: client time, p99 ms", percentile(client_ms, 99)),
    ]


def _results(answer: Answer) -> list[tuple[int, float]]:
    assert answer.status == 200, answer.body
    return [(result["index"], result["relevance_score"]) for result in orjson.loads(answer.body)["results"]]


def main() -> int:
    options = parser(__doc__, seconds=60)
    options.add_argument("--documents", type=int, default=100)
    options.add_argument("--requests", type=int, default=300)
    arguments = options.parse_args()
    size = {"documents": arguments.documents, "requests": arguments.requests}
    with served(arguments.registry, RERANKD_CACHE_URL="memory://") as server:
        claims = run(measure(server.url, where="memory", limit_ms=2.0, **size))
    with (
        tempfile.TemporaryDirectory() as name,
        redis_server(Path(name)) as redis,
        served(arguments.registry, RERANKD_CACHE_URL=f"redis://127.0.0.1:{redis.port}/0") as server,
    ):
        claims += run(measure(server.url, where="Redis", limit_ms=5.0, **size))
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
