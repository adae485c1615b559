"""Runs one environment's clients through the cases: `python -m tests.conformance.run ENVIRONMENT`, with the targets as
JSON on standard input. Prints one JSON line for each client and case. Standard library only.
"""

import http.client
import importlib
import json
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, Final
from urllib.parse import urlsplit

from tests.conformance.cases import CASES, DOCUMENTS, QUERY, NotRefused
from tests.conformance.protocol import Client, Target

ENVIRONMENTS: Final[Mapping[str, Sequence[str]]] = {
    "cohere5": ("cohere_sdk", "langchain", "llama_index", "voyage_sdk"),
    "cohere7": ("cohere_sdk", "haystack", "sdks", "litellm_sdk"),
    "clouds": ("clouds",),
    "stock": ("stock",),
}
_CASE_TIMEOUT_S: Final = 60
_BUSY_DOCUMENTS: Final = 4000
_ATTEMPTS: Final = 5


def main() -> None:
    targets = {name: Target(*fields) for name, fields in json.load(sys.stdin).items()}
    clients: list[Client] = [
        client
        for module in ENVIRONMENTS[sys.argv[1]]
        for client in importlib.import_module(f"tests.conformance.clients.{module}").CLIENTS
    ]
    signal.signal(signal.SIGALRM, _too_long)
    for client in clients:
        for case in CASES:
            if case != "overload":
                _report(client, case, targets["idle"])
    with busy(targets["busy"]), _impatient():
        for client in clients:
            _report(client, "overload", targets["busy"])


def _report(client: Client, case: str, target: Target) -> None:
    started = time.monotonic()
    outcome, detail = _outcome(client, case, target)
    line = {
        "client": client.name,
        "version": client.version,
        "case": case,
        "outcome": outcome,
        "detail": detail,
        "seconds": round(time.monotonic() - started, 3),
    }
    print(json.dumps(line), flush=True)  # noqa: T201 - the answer of this program


def _outcome(client: Client, case: str, target: Target) -> tuple[str, str]:
    if case in client.without:
        return "n/a", client.without[case]
    signal.alarm(_CASE_TIMEOUT_S)
    try:
        for attempt in range(_ATTEMPTS):
            try:
                CASES[case](client, target)
            except NotRefused:
                # Between two of the requests that keep it busy, the server takes another one.
                if case != "overload" or attempt == _ATTEMPTS - 1:
                    raise
                _wait_until_busy(target)
            else:
                break
    except Exception:  # noqa: BLE001 - whatever a client library may raise is a result
        return "failed", traceback.format_exc(limit=-4)[-1500:]
    finally:
        signal.alarm(0)
    return ("silent", client.hides[case]) if case in client.hides else ("ok", "")


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"no answer within {_CASE_TIMEOUT_S} s")


@contextmanager
def busy(target: Target) -> Iterator[None]:
    """Keeps a server that lets nothing wait at work with one large request after another."""
    stopping = threading.Event()
    current: list[http.client.HTTPConnection] = []
    documents = [f"{DOCUMENTS[0]} {number}" * 8 for number in range(_BUSY_DOCUMENTS)]

    def keep() -> None:
        while not stopping.is_set():
            with closing(_connection(target)) as connection, suppress(OSError, http.client.HTTPException):
                current[:] = [connection]
                _post(connection, target, documents)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        _wait_until_busy(target)
        yield
    finally:
        stopping.set()
        while thread.is_alive():
            # The server drops what a client that has gone away still waits for.
            for connection in current:
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=0.1)


def _wait_until_busy(target: Target) -> None:
    status = 0
    while status != 429:
        with closing(_connection(target)) as connection:
            status = _post(connection, target, [f"probe {time.monotonic()}"])


def _connection(target: Target) -> http.client.HTTPConnection:
    parts = urlsplit(target.url)
    return http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=120)


def _post(connection: http.client.HTTPConnection, target: Target, documents: list[str]) -> int:
    body = json.dumps({"query": f"{QUERY} {time.monotonic()}", "documents": documents, "top_n": 1})
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v2/rerank", body, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status


@contextmanager
def _impatient() -> Iterator[None]:
    """Cuts pauses short: clients that retry wait as long as Retry-After tells them."""
    sleep: Any = time.sleep
    time.sleep = lambda seconds: sleep(min(float(seconds), 0.02))
    try:
        yield
    finally:
        time.sleep = sleep


if __name__ == "__main__":
    main()
