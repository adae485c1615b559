"""What is said of a request between a front end and the scheduler, and its items and results as columns."""

from math import inf
from typing import Any

from rerankd.batching.ticket import Outcome
from rerankd.batching.work import Work, WorkItem
from rerankd.concurrency.channel import Head
from rerankd.domain import Terms
from rerankd.domain.terms import Meter
from rerankd.tasks.columns import ColumnReader, ColumnWriter, ReadImage


def told_terms(terms: Terms) -> Head:
    """Terms without what is counted in the front end. Both processes' clocks are the machine's."""
    return {
        "caller": terms.caller,
        "priority": terms.priority,
        "urgent": terms.urgent,
        "background": terms.background,
        "deadline": None if terms.deadline == inf else terms.deadline,
        "partial": terms.partial,
        "divisible": terms.divisible,
    }


def read_terms(head: Head, meter: Meter) -> Terms:
    """The terms that were told."""
    deadline = head["deadline"]
    return Terms(**{**head, "deadline": inf if deadline is None else deadline}, meter=meter)


def told_work(work: Work) -> list[float]:
    return [work.tokens, work.squares]


def read_work(told: list[Any]) -> Work:
    return Work(*told)


def told_items(items: list[WorkItem[Any]]) -> tuple[Head, bytes]:
    """Items as columns."""
    writer = ColumnWriter()
    columns = [writer.write(column) for column in zip(*items, strict=True)]
    return {"columns": columns, "count": len(items)}, writer.take()


def read_items(head: Head, body: bytes, read_image: ReadImage | None) -> list[WorkItem[Any]]:
    reader = ColumnReader(body, read_image) if read_image else ColumnReader(body)
    return [*map(WorkItem, *[reader.read(column) for column in head["columns"]])]


def told_outcome(outcome: Outcome[Any]) -> tuple[Head, bytes]:
    writer = ColumnWriter()
    head = {
        "results": writer.write(outcome.results),
        "finished": None if outcome.finished is None else [*outcome.finished],
        "queue_s": outcome.queue_s,
        "inference_s": outcome.inference_s,
    }
    return head, writer.take()


def read_outcome(head: Head, body: bytes) -> Outcome[Any]:
    return Outcome(
        results=ColumnReader(body).read(head["results"]),
        finished=head["finished"],
        queue_s=head["queue_s"],
        inference_s=head["inference_s"],
    )
