"""A chat model behind an OpenAI-compatible endpoint that the operator names; a caller never does.

It is an engine like all others, so that its work waits, is cancelled and is counted as theirs.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field

from rerankd.config.options import read_options
from rerankd.config.proxies import proxy_for
from rerankd.engines.base import BatchLimits, EngineSpec
from rerankd.errors import ConfigError, FinalFailure
from rerankd.tasks.generate import Conversation, Generated
from rerankd.telemetry.redaction import redacted

_WORTH_A_RETRY: Final = {408, 409, 429, 500, 502, 503, 504}
_SUCCESS: Final = 2
_FIRST_PAUSE_S: Final = 0.5
# In bytes: no chat completion is longer, whatever its log-probabilities.
_LONGEST_ANSWER: Final = 16 * 2**20
_LONGEST_PAUSE_S: Final = 20.0


class EndpointOptions(BaseModel):
    """`[model.engine_options]` of the engine `endpoint`."""

    # A URL may have a password in it.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    url: AnyHttpUrl = Field(description="The base, for example `http://localhost:8000/v1`.")
    model: str = Field(description="The model's name there.")
    api_key_file: Path | None = Field(default=None, description="A file that holds the key and nothing else.")
    timeout_s: float = Field(default=60.0, gt=0, description="For one answer.")
    retries: int = Field(default=2, ge=0, description="After an error that may pass.")
    max_tokens: int = Field(default=200, ge=1, description="Longest answer.")
    parameters: Mapping[str, Any] = Field(default_factory=dict, description="More fields of the request's body.")


class EndpointFailed(FinalFailure):
    """The endpoint gave no answer that could be used."""


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    retry_after: str
    content: bytes


class EndpointEngine:
    """`workers` requests at a time, each on a thread of its own."""

    preferred_batch = BatchLimits(tokens=1, pairs=1)

    def __init__(self, client: httpx.Client, options: EndpointOptions, *, workers: int) -> None:
        self._client = client
        self._options = options
        self.workers = workers
        # Where it is, and what else it is told, is nobody's business but the operator's.
        self.name = "endpoint"
        self.longest_pass_s = options.timeout_s * (options.retries + 1) + _LONGEST_PAUSE_S * options.retries

    @classmethod
    def load(cls, spec: EngineSpec) -> "EndpointEngine":
        """Read the options; nothing is asked yet.

        Raises:
            ConfigError: an option is missing, or the key's file is.
        """
        options, headers = check(spec)
        # The client's own reading of the variables ends in errors of its own, and knows no networks in NO_PROXY.
        transport = httpx.HTTPTransport(proxy=proxy_for(str(options.url)))
        client = httpx.Client(headers=headers, timeout=options.timeout_s, transport=transport)
        return cls(client, options, workers=spec.workers or 8)

    def run(self, conversations: Sequence[Conversation]) -> list[Generated]:
        """Answer conversations, one request each.

        Raises:
            EndpointFailed: an answer did not come, or is none.
        """
        return [self._answer(conversation.as_json) for conversation in conversations]

    def _answer(self, messages: Sequence[Mapping[str, str]]) -> Generated:
        body = {
            "model": self._options.model,
            "messages": messages,
            "max_tokens": self._options.max_tokens,
            "temperature": 0,
            **self._options.parameters,
        }
        reply = self._ask(body)
        try:
            choice = json.loads(reply.content)["choices"][0]
            # A model may give no content at all: an answer that names no document.
            return Generated(str(choice["message"]["content"] or ""), _logprobs(choice))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EndpointFailed(f"the endpoint's answer is not a chat completion: {error!r}") from None

    def _ask(self, body: Mapping[str, Any]) -> _Reply:
        """Ask, and ask again after what may pass, with pauses that grow or are as long as the endpoint says."""
        url = f"{str(self._options.url).rstrip('/')}/chat/completions"
        problem = ""
        for attempt in range(self._options.retries + 1):
            pause_s = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
            try:
                reply = self._post(url, body)
            except httpx.RequestError as error:
                problem = redacted(repr(error))
            else:
                if reply.status // 100 == _SUCCESS:
                    return reply
                problem = f"status {reply.status}"
                if reply.status not in _WORTH_A_RETRY:
                    break
                pause_s = _stated_pause(reply) or pause_s
            if attempt < self._options.retries:
                time.sleep(pause_s)
        raise EndpointFailed(f"the endpoint did not answer: {problem}")

    def _post(self, url: str, body: Mapping[str, Any]) -> _Reply:
        """Ask once. The client's own timeout is for the next bytes, which may come one by one for hours."""
        ends = time.monotonic() + self._options.timeout_s
        content = bytearray()
        with self._client.stream("POST", url, json=body) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _LONGEST_ANSWER:
                    raise EndpointFailed(f"the endpoint's answer may have at most {_LONGEST_ANSWER} bytes")
                if time.monotonic() > ends:
                    raise httpx.ReadTimeout(f"not all of the answer came within {self._options.timeout_s:g} s")
        return _Reply(response.status_code, response.headers.get("retry-after", ""), bytes(content))


def _logprobs(choice: Mapping[str, Any]) -> list[float] | None:
    """Of each token that was written; None: the endpoint was not asked for them (`parameters`), or does not say."""
    tokens = (choice.get("logprobs") or {}).get("content")
    return None if tokens is None else [float(token["logprob"]) for token in tokens]


def check(spec: EngineSpec) -> tuple[EndpointOptions, dict[str, str]]:
    """The options, and the headers of every request; nothing is asked.

    Raises:
        ConfigError: an option is missing, or the key's file or a proxy cannot be used.
    """
    options = read_options(spec.options, EndpointOptions, of="engine 'endpoint'")
    proxy_for(str(options.url))
    key = None if options.api_key_file is None else _read_key(options.api_key_file)
    return options, {} if key is None else {"Authorization": f"Bearer {key}"}


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


def _stated_pause(reply: _Reply) -> float | None:
    try:
        return min(max(0.0, float(reply.retry_after)), _LONGEST_PAUSE_S)
    except ValueError:
        return None
