"""Checks that `rerankd rank --ray` gives each pair exactly one result, whatever dies.

    python -m loadtest.ray_rank [--pairs 10000000]

A file of requests is ranked on a cluster of several nodes on this machine, with scores that cost nothing: a hash of
each document. When a fifth is done, the driver is killed and started again; when three fifths are done, a node is.
Then every line and every score of the output is checked. Needs the extra `ray`.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np
import orjson
import ray

from loadtest.claims import Claim, conclude
from loadtest.ray_cluster import RANK, Nodes, local_cluster
from rerankd.domain import RankedDocument, RerankRequest, RerankResult, Scores
from rerankd.tools.rank_ray import Actors, Rerank, Work, finished, join, plan, rank_chunks

_DOCUMENTS: Final = 100
_LONGEST_S: Final = 600.0
_KILLS_AT: Final = (0.2, 0.6)
_SCALE: Final = 2.0**32
_EMPTY: Final = np.zeros(0, dtype=np.float32)
_NOTHING: Final = Scores(values=_EMPTY, tokens=_EMPTY.astype(np.int32), dropped=_EMPTY.astype(np.int32))


@asynccontextmanager
async def free(_work: Work) -> AsyncIterator[Rerank]:
    """Scores at once: that of a document is a hash of it."""

    async def rerank(request: RerankRequest) -> RerankResult:
        scores = sorted(((_score(document), index) for index, document in enumerate(request.documents)), reverse=True)
        results = [RankedDocument(index, score, score) for score, index in scores]
        return RerankResult(model="free", scorer="hash", results=results, scores=_NOTHING)

    yield rerank


def _score(document: str) -> float:
    return zlib.crc32(document.encode()) / _SCALE


def write_requests(path: Path, pairs: int) -> int:
    """Requests of a hundred documents; returns how many pairs they have."""
    requests = -(-pairs // _DOCUMENTS)
    with path.open("wb") as file:
        for number in range(requests):
            documents = [f"{number} {index}" for index in range(_DOCUMENTS)]
            line = {"id": number, "query": f"q{number}", "documents": documents}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    return requests * _DOCUMENTS


def drive(arguments: Namespace) -> int:
    """What `rerankd rank --ray` does, with scores that cost nothing."""
    output = Path(arguments.drive[1])
    work = Work(source=arguments.drive[0], parts=str(_parts(output)), model=None, settings={})
    ray.init(address=arguments.drive[2], log_to_driver=False)
    chunks, missing = plan(work, chunk_bytes=arguments.chunk_bytes)
    actors = Actors(number=2, num_cpus=0.5, resources={RANK: 1})
    for _ in rank_chunks(work, missing, actors, opening=free):
        pass
    join(work, chunks, output)
    return 0


def _parts(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def rank_with_kills(source: Path, output: Path, nodes: Nodes, *, chunk_bytes: int) -> list[Claim]:
    """Rank the file, kill the driver and a node meanwhile, and wait for the end."""
    address = nodes.cluster.address
    command = [sys.executable, "-m", "loadtest.ray_rank", "--chunk-bytes", str(chunk_bytes)]
    command += ["--drive", str(source), str(output), address]
    chunks = -(-source.stat().st_size // chunk_bytes)
    first, second = (int(part * chunks) for part in _KILLS_AT)
    began = perf_counter()
    driver = subprocess.Popen(command)
    try:
        _wait_for(driver, output, first)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        at_first = len(finished(_parts(output)))
        driver = subprocess.Popen(command)
        _wait_for(driver, output, max(second, at_first + 1))
        at_second = len(finished(_parts(output)))
        nodes.kill()
        status = driver.wait(timeout=_LONGEST_S)
    finally:
        driver.kill()
        driver.wait()
    return [
        Claim("exit status of the last driver", status, "<=", 0),
        Claim("chunks", chunks, ">=", 5),
        Claim("chunks done when the driver was killed", at_first, "<=", chunks - 1),
        Claim("chunks done when a node was killed", at_second, "<=", chunks - 1),
        Claim("seconds", perf_counter() - began),
    ]


def _wait_for(driver: "subprocess.Popen[bytes]", output: Path, chunks: int) -> None:
    while len(finished(_parts(output))) < chunks:
        assert driver.poll() is None, "the driver has ended"
        time.sleep(0.05)


def check(output: Path, requests: int) -> list[Claim]:
    """Compare every line with what it must be."""
    pairs = wrong = extra = 0
    for number, line in zip_longest(range(requests), _lines(output)):
        if number is None or line is None:
            extra += 1
        elif _is_right(number, orjson.loads(line)):
            pairs += _DOCUMENTS
        else:
            wrong += 1
    return [
        Claim("pairs with exactly one right result", pairs, ">=", requests * _DOCUMENTS),
        Claim("requests with another result", wrong, "<=", 0),
        Claim("requests without a line, or with two", extra, "<=", 0),
    ]


def _lines(output: Path) -> Iterator[bytes]:
    with output.open("rb") as file:
        yield from file


def _is_right(number: int, answer: dict[str, object]) -> bool:
    results = answer["results"]
    assert isinstance(results, list)
    found = [(one["relevance_score"], one["index"]) for one in results]
    wanted = sorted(((_score(f"{number} {index}"), index) for index in range(_DOCUMENTS)), reverse=True)
    return answer["id"] == number and found == wanted


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=10_000_000)
    options.add_argument("--chunk-bytes", type=int, default=2 * 2**20)
    options.add_argument("--output", type=Path, help="a JSON file to write")
    options.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.drive:
        return drive(arguments)
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "requests.jsonl", Path(name) / "answers.jsonl"
        pairs = write_requests(source, arguments.pairs)
        with local_cluster(2) as nodes:
            claims = rank_with_kills(source, output, nodes, chunk_bytes=arguments.chunk_bytes)
        claims += check(output, pairs // _DOCUMENTS)
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
