"""Asks a remote model over HTTP, for every engine that has one. Only the operator names the URL.

What may pass is tried again, after a pause that the remote states (Retry-After) or one that grows. A remote that stays
silent is left alone for a time (`breaker`). Errors name its protocol and status, never its URL or its key.
"""

import asyncio
import logging
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import anyio
import httpx
import orjson
from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field

from rerankd.config.proxies import proxy_for
from rerankd.engines.remote.breaker import Breaker
from rerankd.errors import ConfigError, RemoteFailed, RemoteUnavailable
from rerankd.telemetry.redaction import redacted
from rerankd.telemetry.spans import current_span, traced

logger = logging.getLogger(__name__)

R = TypeVar("R")

_WORTH_A_RETRY: Final = {408, 409, 425, 429, 500, 502, 503, 504, 529}
# The request, not the remote, is at fault: others may be answered.
_ABOUT_THE_REQUEST: Final = {400, 413, 422}
_SUCCESS: Final = 2
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 20.0
# In bytes: no answer is longer, whatever its log-probabilities.
_LONGEST_ANSWER: Final = 16 * 2**20
# An object counts as four. JSON is parsed on the event loop: as many empty lists take about 50 ms.
_MOST_VALUES: Final = 250_000
# A few packed bytes can become gigabytes before anything counts them.
_UNPACKED: Final = "identity"


class ClientOptions(BaseModel):
    """What every engine with a remote model is told."""

    # A URL may have a password in it.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    url: AnyHttpUrl = Field(description="The base, for example `http://localhost:8000`.")
    model: str = Field(description="The model's name there.")
    api_key_file: Path | None = Field(default=None, description="A file that holds the key and nothing else.")
    timeout_s: float = Field(default=60.0, gt=0, description="For one answer.")
    retries: int = Field(default=2, ge=0, description="After an error that may pass.")
    parameters: Mapping[str, Any] = Field(default_factory=dict, description="More fields of the request's body.")
    failures: int = Field(default=3, ge=1, description="In a row; then the remote counts as away and is not asked.")
    pause_s: float = Field(
        default=10.0, gt=0, description="Until a remote that is away is tried again; doubles up to 300."
    )


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    retry_after: str
    content: bytes


class _NoAnswer(Exception):
    """No attempt was answered. `shown` is for everybody, the message for the log; `pause_s` is what the remote asked
    for.
    """

    def __init__(self, message: str, *, shown: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.shown = shown
        self.pause_s = pause_s


def _nobody(_trouble: str) -> None:
    pass


class RemoteClient:
    """`name` is shown to everybody. `on_change` is told when the remote goes away (why) and when it is back (empty)."""

    def __init__(self, client: httpx.AsyncClient, options: ClientOptions, *, name: str) -> None:
        self._client = client
        self._options = options
        self._base = _without_password(options.url)
        self._breaker = Breaker(failures=options.failures, pause_s=options.pause_s)
        self._problem = ""
        self.name = name
        self.on_change: Callable[[str], None] = _nobody
        # All attempts, and the pauses between them.
        self.longest_s = options.timeout_s * (options.retries + 1) + _LONGEST_PAUSE_S * options.retries

    @classmethod
    def open(cls, options: ClientOptions, *, name: str, calls: int) -> "RemoteClient":
        """A client for this many calls at a time; nothing is asked yet.

        Raises:
            ConfigError: the key's file or a proxy cannot be used.
        """
        # The client's own reading of the variables ends in errors of its own, and knows no networks in NO_PROXY.
        transport = httpx.AsyncHTTPTransport(
            proxy=proxy_for(str(options.url)), limits=httpx.Limits(max_keepalive_connections=calls)
        )
        # Loads what the first call would load on the event loop, for a third of a second.
        anyio.run(anyio.sleep, 0)
        client = httpx.AsyncClient(
            headers={**headers_of(options), "Accept-Encoding": _UNPACKED},
            timeout=options.timeout_s,
            transport=transport,
        )
        return cls(client, options, name=name)

    @property
    def trouble(self) -> str:
        """Why the remote is not asked now, and when it will be; empty while it is."""
        if not self._breaker.away:
            return ""
        left_s = self._breaker.left_s(now=perf_counter())
        again = f"in {left_s:.0f} s" if left_s >= 1 else "by the next request"
        return f"the remote model ({self.name}) is away: {self._problem}; it is tried again {again}"

    async def ask(
        self, path: str, body: Mapping[str, Any], *, read: Callable[[Any], R], what: str, deadline: float
    ) -> R:
        """Send a body, and give what `read` makes of the JSON that comes back. `what` that should be is for errors.
        Nobody wants the answer after `deadline`, a moment of `time.perf_counter`.

        Raises:
            RemoteUnavailable: the remote is away, or did not answer.
            RemoteFailed: it refused the request, or its answer cannot be used.
        """
        started = perf_counter()
        if wait_s := self._breaker.wait_s(now=started):
            raise RemoteUnavailable(f"the remote model ({self.name}) is away", retry_after_s=wait_s)
        try:
            with traced(f"POST {self.name}", {"http.request.method": "POST"}, outgoing=True):
                reply = await self._answer(
                    f"{self._base}{path}", orjson.dumps({**body, **self._options.parameters}), deadline
                )
        except _NoAnswer as error:
            if perf_counter() >= deadline:
                # Its caller's deadline ended it: that says no more of the remote than a caller that goes away.
                self._given_up(perf_counter() - started)
            else:
                self._failed(str(error), shown=error.shown, pause_s=error.pause_s)
            message = f"the remote model ({self.name}) did not answer: {error.shown}"
            raise RemoteUnavailable(message, retry_after_s=max(1.0, error.pause_s)) from None
        except RemoteFailed:
            raise
        except BaseException:
            self._given_up(perf_counter() - started)
            raise
        return self._read(reply, read, what, seconds=perf_counter() - started)

    async def close(self) -> None:
        await self._client.aclose()

    def _read(self, reply: _Reply, read: Callable[[Any], R], what: str, *, seconds: float) -> R:
        problem = f"status {reply.status}"
        if reply.status // 100 == _SUCCESS:
            try:
                result = read(parsed(reply.content))
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                problem = f"status {reply.status} and what is not {what}: {_explained(error)}"
            else:
                self._answered(seconds)
                return result
        if reply.status in _ABOUT_THE_REQUEST:
            self._answered(seconds)
        else:
            self._failed(problem, shown=problem)
        raise RemoteFailed(f"the remote model ({self.name}) answered with {problem}")

    async def _answer(self, url: str, content: bytes, deadline: float) -> _Reply:
        """Ask, and ask again after what may pass."""
        for attempt in range(self._options.retries + 1):
            pause_s, stated_s = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S), 0.0
            try:
                reply = await self._post(url, content, min(self._options.timeout_s, deadline - perf_counter()))
            except httpx.RequestError as error:
                shown = _explained(error) if isinstance(error, _TooSlow) else type(error).__name__
                failure = _NoAnswer(redacted(repr(error)), shown=shown)
            else:
                if reply.status not in _WORTH_A_RETRY:
                    return reply
                stated_s = _stated_pause(reply.retry_after)
                pause_s = stated_s or pause_s
                failure = _NoAnswer(f"status {reply.status}", shown=f"status {reply.status}", pause_s=stated_s)
            if attempt == self._options.retries or pause_s > min(_LONGEST_PAUSE_S, deadline - perf_counter()):
                break
            await asyncio.sleep(pause_s)
        raise failure

    async def _post(self, url: str, content: bytes, timeout_s: float) -> _Reply:
        """Ask once. The client's own timeout is for the next bytes, which may come one by one for hours."""
        received = bytearray()
        headers = {"Content-Type": "application/json", **(caller.headers if (caller := current_span()) else {})}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream("POST", url, content=content, headers=headers) as response,
            ):
                if response.headers.get("content-encoding", _UNPACKED) != _UNPACKED:
                    raise self._unusable(response, "a compressed answer, for which it was not asked")
                async for chunk in response.aiter_raw():
                    received += chunk
                    if len(received) > _LONGEST_ANSWER:
                        raise self._unusable(response, f"more than {_LONGEST_ANSWER} bytes")
        except TimeoutError:
            raise _TooSlow(f"not all of the answer came within {timeout_s:g} s") from None
        return _Reply(response.status_code, response.headers.get("retry-after", ""), bytes(received))

    def _unusable(self, response: httpx.Response, what: str) -> RemoteFailed:
        problem = f"status {response.status_code} and {what}"
        self._failed(problem, shown=problem)
        return RemoteFailed(f"the remote model ({self.name}) answered with {problem}")

    def _answered(self, seconds: float) -> None:
        was_away = self._breaker.away
        self._breaker.succeeded(seconds=seconds)
        if was_away:
            logger.info("a remote model is back", extra={"remote": self.name})
            self.on_change("")

    def _failed(self, problem: str, *, shown: str, pause_s: float = 0.0) -> None:
        logger.warning("a remote model failed", extra={"remote": self.name, "reason": problem})
        was_away = self._breaker.away
        self._problem = shown
        self._breaker.failed(now=perf_counter(), pause_s=pause_s)
        self._tell(was_away=was_away)

    def _given_up(self, seconds: float) -> None:
        was_away = self._breaker.away
        self._breaker.given_up(now=perf_counter(), seconds=seconds)
        if self._breaker.away and not was_away:
            self._problem = f"no answer for {seconds:.1f} s"
        self._tell(was_away=was_away)

    def _tell(self, *, was_away: bool) -> None:
        if self._breaker.away and not was_away:
            logger.error("a remote model is away", extra={"remote": self.name, "reason": self.trouble})
            self.on_change(self.trouble)


def parsed(content: bytes) -> Any:  # noqa: ANN401 - whatever came
    """JSON that is not long to parse.

    Raises:
        ValueError: it is, or it is no JSON.
    """
    if content.count(b",") + content.count(b"[") + 4 * content.count(b"{") > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES} JSON values")
    return orjson.loads(content)


class _TooSlow(httpx.ReadTimeout):
    """Its message may be shown."""


def headers_of(options: ClientOptions) -> dict[str, str]:
    """The headers of every request.

    Raises:
        ConfigError: the key's file or a proxy cannot be used.
    """
    proxy_for(str(options.url))
    password = options.url.username or options.url.password
    if options.api_key_file is None:
        return {"Authorization": _basic(options.url)} if password else {}
    if password:
        raise ConfigError("url has a user or a password in it, and there is an api_key_file; leave one of them out")
    return {"Authorization": f"Bearer {_read_key(options.api_key_file)}"}


def _basic(url: AnyHttpUrl) -> str:
    """RFC 7617, of a URL's percent-encoded user and password."""
    words = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return f"Basic {b64encode(words.encode()).decode()}"


def _without_password(url: AnyHttpUrl) -> str:
    """The URL without what httpx would write into its log."""
    return re.sub("(?<=://)[^/@]*@", "", str(url)).rstrip("/")


def _read_key(path: Path) -> str:
    """The key in a file; one that fits no header would be shown by the client's error."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read api_key_file {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"api_key_file {path} is not a text file in UTF-8") from None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"api_key_file {path} must hold one word of ASCII characters, and nothing else")
    return key


def _stated_pause(retry_after: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; 0: nothing that can be read."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, seconds) if isfinite(seconds) else 0.0


def _explained(error: Exception) -> str:
    """Our own words, or what a library says of the place of a mistake; nothing of the text itself."""
    return f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
