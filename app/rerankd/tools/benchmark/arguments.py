"""The arguments of `rerankd bench`."""

import shlex
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from rerankd.errors import ConfigError

T = TypeVar("T", int, float)

_SECRET_OPTIONS = ("--api-key", "--header")
_WARMUP_HELP = (
    "Seconds of the same load before measuring. A closed loop goes on until every client has had an answer, for a "
    "minute at most."
)

Url = Annotated[str, typer.Argument(metavar="URL", help="The server's URL, for example http://127.0.0.1:8000.")]
Documents = Annotated[
    str, typer.Option(help="Documents per request: 30; or 10,30,100 one after the other; or a mix, 10+30+100.")
]
Clients = Annotated[str, typer.Option(help="Closed loop: numbers of clients; empty for none.", metavar="N,N,...")]
Rates = Annotated[str, typer.Option("--rate", help="Open loop: requests a second.", metavar="R,R,...")]
Utilizations = Annotated[
    str,
    typer.Option(
        "--utilization",
        help="Open loop: shares of the best throughput of the closed loops, for example 0.5,0.8.",
        metavar="U,U,...",
    ),
]
Seconds = Annotated[float, typer.Option(min=0.1, max=600, help="Seconds that each load is measured.")]
Warmup = Annotated[float, typer.Option(min=0, max=600, help=_WARMUP_HELP)]
Repetitions = Annotated[int, typer.Option(min=1, max=50, help="How many times each load is measured.")]
RepeatShare = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of requests that repeat an earlier one, so that the cache can answer."),
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which a request counts as failed.")]
EndpointPath = Annotated[str, typer.Option("--path", help="The rerank endpoint.")]
DocumentsField = Annotated[str, typer.Option(help="The body's field for the documents (`texts` for TEI).")]
Model = Annotated[str | None, typer.Option(help="The model to ask for; default: the server's.")]
Headers = Annotated[
    list[str] | None, typer.Option("--header", help="A header of every request; may be repeated.", metavar="NAME:VALUE")
]
ApiKey = Annotated[str | None, typer.Option(help="Sent as a bearer token.", envvar="RERANKD_BENCH_API_KEY")]
Seed = Annotated[
    int | None, typer.Option(help="Seed of the random requests, to repeat a run; default: other requests every time.")
]
Output = Annotated[Path | None, typer.Option(help="The report as JSON.", metavar="FILE")]
Markdown = Annotated[Path | None, typer.Option(help="The report as Markdown.", metavar="FILE")]
Plot = Annotated[
    Path | None, typer.Option(help="Throughput by clients, and latency by offered load, as PNG.", metavar="FILE")
]


def read_list(option: str, text: str, kind: Callable[[str], T]) -> list[T]:
    """Read `1,8,32`.

    Raises:
        ConfigError: a part is no number above zero.
    """
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [kind("0")]
    if any(value <= 0 for value in values):
        raise ConfigError(f"{option} {text!r}: write numbers above zero, for example 1,8,32")
    return values


def read_headers(headers: list[str], api_key: str | None) -> dict[str, str]:
    """Read `Name: value`.

    Raises:
        ConfigError: one has no colon.
    """
    wrong = [header for header in headers if ":" not in header]
    if wrong:
        raise ConfigError(f"--header {wrong[0]!r}: write NAME:VALUE")
    read = {name.strip(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
    return read | ({"Authorization": f"Bearer {api_key}"} if api_key else {})


def shown_command(words: Sequence[str]) -> str:
    """The command line for a report that others read, without values of keys and headers."""
    shown = []
    for before, word in pairwise(["", *words]):
        option, equals, value = word.partition("=")
        if before in _SECRET_OPTIONS:
            shown.append(_without_value(word))
        elif option in _SECRET_OPTIONS and equals:
            shown.append(f"{option}={_without_value(value)}")
        else:
            shown.append(word)
    return shlex.join(["rerankd", *shown])


def _without_value(text: str) -> str:
    name, colon, _ = text.partition(":")
    return f"{name}:***" if colon else "***"
