"""Chunks, parts and the manifest of files that are ranked on Ray, without a cluster."""

from pathlib import Path

import orjson
import pytest

from tests.requirements import require_package

require_package("ray.serve")

from loadtest.ray_rank import check, free, write_requests  # noqa: E402 - behind the check
from rerankd.errors import ConfigError  # noqa: E402
from rerankd.tools.rank_ray import Chunk, Work, _Ranker, join, plan  # noqa: E402


def _work(folder: Path, *, model: str | None = None) -> Work:
    return Work(source=str(folder / "in.jsonl"), parts=str(folder / "parts"), model=model, settings={})


async def _rank(work: Work, chunks: list[Chunk]) -> int:
    """Rank chunks in this process; how many requests failed."""
    ranker = _Ranker.__new__(_Ranker)
    await ranker.__init__(work, free)  # type: ignore[misc]
    await ranker.greet()
    return sum([(await ranker.rank(chunk)).failed for chunk in chunks])


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 4000, 10**9])
def test_chunks_are_whole_lines_and_all_of_the_input(tmp_path: Path, chunk_bytes: int) -> None:
    work = _work(tmp_path)
    write_requests(tmp_path / "in.jsonl", 1000)
    text = (tmp_path / "in.jsonl").read_bytes()
    chunks, missing = plan(work, chunk_bytes=chunk_bytes)
    assert chunks == missing
    parts = [text[chunk.start : chunk.end] for chunk in chunks]
    assert b"".join(parts) == text
    assert all(part.endswith(b"\n") for part in parts)
    assert len(chunks) == max(1, min(10, len(chunks)))


def test_an_input_without_an_end_of_line_or_without_lines_is_whole(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"a\nb")
    assert plan(_work(tmp_path), chunk_bytes=2)[0] == [Chunk(0, 0, 2), Chunk(1, 2, 3)]
    (tmp_path / "in.jsonl").write_bytes(b"")
    (tmp_path / "parts" / "manifest.json").unlink()
    assert plan(_work(tmp_path), chunk_bytes=2)[0] == []


async def test_what_is_done_is_not_done_again_and_the_whole_is_in_order(tmp_path: Path) -> None:
    work = _work(tmp_path)
    pairs = write_requests(tmp_path / "in.jsonl", 5000)
    chunks, _ = plan(work, chunk_bytes=5000)
    await _rank(work, [chunks[2], chunks[0]])
    (Path(work.parts) / ".00000001-half.jsonl.node.1").write_bytes(b"what a killed process leaves")
    _, missing = plan(work, chunk_bytes=5000)
    assert missing == [chunks[1], *chunks[3:]]
    await _rank(work, [*missing, chunks[0]])
    join(work, chunks, tmp_path / "out.jsonl")
    assert all(claim.holds for claim in check(tmp_path / "out.jsonl", pairs // 100))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.jsonl", "out.jsonl"]  # noqa: ASYNC240 - a test


@pytest.mark.parametrize("change", ["input", "model", "chunks"])
def test_parts_of_another_run_are_refused(tmp_path: Path, change: str) -> None:
    write_requests(tmp_path / "in.jsonl", 1000)
    plan(_work(tmp_path), chunk_bytes=1000)
    if change == "input":
        write_requests(tmp_path / "in.jsonl", 1100)
    model = "m" if change == "model" else None
    with pytest.raises(ConfigError, match="another input, model or version; delete it"):
        plan(_work(tmp_path, model=model), chunk_bytes=999 if change == "chunks" else 1000)


async def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    work = _work(tmp_path)
    write_requests(tmp_path / "in.jsonl", 1000)
    chunks, _ = plan(work, chunk_bytes=3000)
    await _rank(work, chunks)
    with (tmp_path / "in.jsonl").open("r+b") as file:
        file.write(b'{"id":7')
    await _rank(work, chunks[:1])
    with pytest.raises(ConfigError, match="the input has changed while it was ranked"):
        join(work, chunks, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


async def test_lines_that_are_no_requests_are_answered_and_stop_nothing(tmp_path: Path) -> None:
    work = _work(tmp_path)
    lines = [
        b'{"id": 1, "query": "q", "documents": ["a", {"text": "b"}]}', b"{", b"[]", b'{"query": "q"}', b"  ",
        b'{"query": 3, "documents": ["a"]}', b'{"id": 5, "query": "q", "documents": []}',
        b'{"query": "q", "documents": ["\xff"]}',
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    chunks, _ = plan(work, chunk_bytes=10**6)
    assert await _rank(work, chunks) == 6
    join(work, chunks, tmp_path / "out.jsonl")
    answers = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [answer.get("error_type") for answer in answers] == [None, *["invalid_request"] * 6]
    assert [len(answers[0]["results"]), answers[0]["id"], answers[5]["id"]] == [2, 1, 5]
    assert answers[1]["error"].startswith("the line at byte 59: ")
