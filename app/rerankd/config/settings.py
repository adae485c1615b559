"""Settings from the environment (prefix RERANKD_).

The only file that reads the environment. Only the composition root and the command line read settings.
"""

import os
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rerankd.config.options import explain
from rerankd.config.variables import ENVIRONMENT_PREFIX, name_problems
from rerankd.errors import ConfigError

_ROOT_PATH: Final = re.compile(r"(/[^/?#]+)*")
# Settings that depend on others.
_DEPENDENT: Final = frozenset({"private", "cache_scope", "processes_cores"})
_MOST_CORES: Final = 1 << 20
_LEAST_SECRET_CHARS: Final = 16

SHIPPED_REGISTRY = Path(str(files("rerankd") / "models" / "registry.toml"))


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())


class Settings(BaseSettings):
    """Every setting of the service. docs/configuration.md is generated from this class."""

    model_config = SettingsConfigDict(env_prefix="RERANKD_", env_ignore_empty=True, extra="ignore")

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Front-end processes, which read, tokenize and answer requests. With more than one, a process of "
        "its own has the engines (docs/processes.md).",
    )
    processes_cores: Annotated[tuple[frozenset[int], ...], NoDecode] = Field(
        default=(),
        description="The CPU cores of each front-end process, then those of the process with the engines, as "
        "`0-3;4-7;8-31`. Not set: they share all cores.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated API keys. Not set: every client that reaches the service may use it. May not be "
        "empty.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="A TOML file with a `[[key]]` table for each API key: name and limits (docs/operations.md). Read "
        "again on SIGHUP. May not be empty.",
    )
    admin_keys_file: Path | None = Field(
        default=None,
        description="A TOML file with a `[[key]]` table for each operator that may load and unload models by "
        "`/admin` (docs/operations.md). Read again on SIGHUP. None: there is no `/admin`.",
    )
    strict: bool = Field(
        default=False,
        description="Refuse requests with fields that mean nothing here (400, the message names them), instead of "
        "naming them in `X-Ignored-Fields`.",
    )
    private: bool = Field(
        default=False,
        description="Ask for an API key at `/metrics` and `/openapi.json` too, and serve neither `/docs` nor the "
        "playground at `/`. Needs API keys. Only then do metrics name them.",
    )
    registry: Path = Field(default=SHIPPED_REGISTRY, description="The TOML file that names every served model.")
    model: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated models to serve instead of the registry's: folders, or names on the hub "
        "(`org/name@revision`). Scorer, engine and precision are chosen for each.",
    )
    model_name: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="What requests call the models of `RERANKD_MODEL`, comma-separated; default: their own."
    )
    model_device: str | None = Field(
        default=None, description="For `RERANKD_MODEL`: `cpu`, `cuda` or `cuda:N`. None: a GPU where there is one."
    )
    model_dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = Field(
        default=None, description="For `RERANKD_MODEL`: what to compute in. None: the engine's usual one."
    )
    model_certify: Literal["warn", "strict"] = Field(
        default="warn", description="For `RERANKD_MODEL`: `strict` refuses a model that ranks obvious answers wrongly."
    )
    model_template: str | None = Field(
        default=None, description="For `RERANKD_MODEL`: the prompt template, where no file names the model's own."
    )
    model_adapter: str | None = Field(
        default=None, description="For `RERANKD_MODEL`: an adapter (LoRA) for it, as a folder or a name on the hub."
    )
    model_adapter_of: str | None = Field(
        default=None,
        description="What the adapter calls its model, if `RERANKD_MODEL` is a copy of that by another name.",
    )
    model_idle_unload_s: float | None = Field(
        default=None,
        gt=0,
        description="For `RERANKD_MODEL`: unload a model when no request has come for so long; the next one loads it "
        "again. None: never.",
    )
    model_fallback: str | None = Field(
        default=None,
        description="A served model that answers requests for models that are not served, such as a hosted service's "
        "`rerank-v3.5`. None: they get 404.",
    )
    root_path: str = Field(
        default="",
        description="The prefix that a proxy puts before this service's paths, such as `/rerank-api`, for `servers` in "
        "`/openapi.json`. The proxy may take it off or leave it.",
    )
    cache_url: SecretStr = Field(
        default=SecretStr("memory://"),
        description="Where scores are kept: `memory://?max_mb=N` (128) or `memory://?max_entries=N`, "
        "`redis://host:port/db?ttl_s=N`, or `none://`. Sentinels, clusters, TLS and sockets: docs/operations.md.",
    )
    cache_password: SecretStr | None = Field(
        default=None, description="Redis's password, for a URL without one. May not be empty."
    )
    cache_sentinel_password: SecretStr | None = Field(
        default=None, description="The Sentinels' own password, for `redis+sentinel://`. May not be empty."
    )
    cache_ca_file: Path | None = Field(
        default=None,
        description="For `rediss://`: certificates (PEM) of those that may sign Redis's, beside the system's.",
    )
    cache_cert_file: Path | None = Field(
        default=None,
        description="For a Redis that asks clients for a certificate: ours (PEM), with its key or without.",
    )
    cache_key_file: Path | None = Field(
        default=None, description="The key of `RERANKD_CACHE_CERT_FILE` (PEM, unencrypted), if it is in another file."
    )
    cache_secret: SecretStr | None = Field(
        default=None,
        description="Signs entries in Redis, and hides queries and documents from readers of Redis. The same for all "
        "replicas; at least 16 characters. May not be empty.",
    )
    cache_scope: Literal["shared", "key"] = Field(
        default="shared",
        description="`key`: a score that was computed for one API key is found by that key alone. Needs API keys.",
    )
    quota_store: Literal["memory", "redis"] = Field(
        default="memory",
        description="Where the limits of API keys are counted: each replica by itself, or all together in the Redis of "
        "`RERANKD_CACHE_URL`.",
    )
    jobs_folder: Path | None = Field(
        default=None,
        description="Folder for jobs (`/v1/batches`) and their files, kept in SQLite. None: there are no jobs.",
    )
    jobs_url: SecretStr | None = Field(
        default=None,
        description="A Redis for jobs instead, in a form of `RERANKD_CACHE_URL`: replicas continue one another's. It "
        "must not evict keys.",
    )
    jobs_max_file_bytes: int = Field(default=200 * 2**20, ge=1024, description="Largest file of a job, in bytes.")
    jobs_max_bytes: int = Field(
        default=10 * 2**30,
        ge=1024,
        description="Most bytes of all files and results of jobs. An API key may have as much as it leaves free for "
        "others.",
    )
    jobs_max_lines: int = Field(default=50_000, ge=1, description="Most lines in a file of a job, blank ones too.")
    jobs_max_waiting: int = Field(default=20, ge=1, description="Most unfinished jobs of one API key.")
    jobs_max_kept: int = Field(default=1000, ge=1, description="Most files, and most jobs, of one API key.")
    jobs_keep_days: float = Field(
        default=30, ge=7, description="Days until files and finished jobs are deleted, from their beginning."
    )
    hub_token: SecretStr | None = Field(
        default=None, description="Token for gated or private repositories on the Hugging Face hub."
    )
    hub_offline: bool = Field(default=False, description="Never ask the hub: use only what was downloaded before.")
    hub_cache: Path | None = Field(
        default=None, description="Folder for downloaded models; default: the hub client's own."
    )
    profiles: Path = Field(
        default_factory=lambda: _user_cache() / "rerankd" / "profiles",
        description="Folder of the profiles that `rerankd tune` writes and `rerankd serve` takes; "
        "default: `rerankd/profiles` in `XDG_CACHE_HOME` or `~/.cache`.",
    )
    max_documents: int = Field(default=10_000, ge=1, description="Most documents in one request.")
    max_queries: int = Field(default=1000, ge=1, description="Most different queries in one request.")
    max_rank_fields: int = Field(default=64, ge=1, description="Most `rank_fields` of a request.")
    max_query_chars: int = Field(
        default=32_768, ge=1, description="Longest query, and longest instruction, in characters."
    )
    max_body_bytes: int = Field(default=64 * 2**20, ge=1024, description="Largest request body, in bytes.")
    max_body_values: int = Field(
        default=750_000,
        ge=1000,
        description="Most JSON values in a body of more than 256 KiB; an object counts as four. With more, a body "
        "takes more memory than ten times its bytes and 64 MiB.",
    )
    max_body_fields: int = Field(
        default=256, ge=16, description="Most fields of a request, and of an object in it that is not a document."
    )
    max_text_bytes: int = Field(
        default=16 * 2**20,
        ge=2**20,
        description="Longest text in a request, as bytes of JSON: a document, or any other string.",
    )
    max_images: int = Field(default=100, ge=0, description="Most images in one request; 0 refuses all.")
    max_image_bytes: int = Field(
        default=8 * 2**20, ge=1024, description="Largest image of a document or query, in bytes of its file."
    )
    max_image_pixels: int = Field(
        default=40_000_000,
        ge=1024,
        description="Most pixels of an image, by its header. Decoded, each takes up to 8 bytes of memory.",
    )
    max_held_bytes: int = Field(
        default=256 * 2**20,
        ge=1024,
        description="Most bytes of bodies and unread answers at a time, with 512 for each document and 4,096 for each "
        "query in work. Beyond that 429 (one request alone is always taken). An API key may hold as much "
        "as it leaves free for others.",
    )
    max_connections: int = Field(
        default=1000,
        ge=1,
        description="Most connections at a time. A few more are taken to answer `/health` and `/ready`; other requests "
        "over them get 503, and further connections are closed.",
    )
    max_connections_per_address: int | None = Field(
        default=None,
        ge=1,
        description="Most connections from one address (in IPv6: one /64 network). None: no limit, because all clients "
        "behind a proxy share its address; set it where clients connect themselves.",
    )
    head_timeout_s: float = Field(
        default=20.0, gt=0, description="A request's head must have arrived within this time; else 408."
    )
    body_timeout_s: float = Field(
        default=60.0, gt=0, description="Then its body must have arrived within this time; else 408."
    )
    idle_timeout_s: float = Field(
        default=75.0,
        gt=0,
        description="A connection without a request is closed after this time. Keep it above a load balancer's.",
    )
    write_timeout_s: float = Field(
        default=60.0, gt=0, description="A client that has not read its answer within this time is cut off."
    )
    max_waiting_tokens: int = Field(
        default=4_000_000,
        ge=1,
        description="Tokens that may wait for one model. A request that would exceed it is refused with 429 "
        "(one that finds nothing waiting is always taken).",
    )
    request_timeout_s: float = Field(default=300.0, gt=0, description="A request that takes longer gets 504.")
    loading_timeout_s: float = Field(
        default=10.0,
        ge=0,
        description="A request for a model that is still loading waits for it this long, then it is refused with 503.",
    )
    stuck_after_s: float = Field(
        default=60.0,
        gt=0,
        description="A forward pass that takes longer, and 20 times as long as expected, is given up: its thread is "
        "replaced and its pairs are tried once more. A model's first 20 passes, which may compile, have 30 times as "
        "long.",
    )
    shutdown_delay_s: float = Field(
        default=0.0,
        ge=0,
        description="After SIGTERM, keep answering this long while /ready is 503, so that load balancers notice.",
    )
    shutdown_timeout_s: float = Field(
        default=30.0, ge=0, description="Then finish running requests for at most this long."
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="`json`: one object a line; `text`: for reading; `auto`: text on a terminal, else JSON.",
    )
    traces: Literal["none", "otlp"] = Field(
        default="none",
        description="`otlp`: send traces of requests to an OpenTelemetry collector (extra `otel`). "
        "`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER` and `OTEL_SERVICE_NAME` say where, how many and as whom.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated addresses or networks of proxies. Of requests from there the log names the client "
        "of `X-Forwarded-For`; from elsewhere the header means nothing.",
    )
    debug_faults: bool = Field(
        default=False,
        description="For tests of robustness only: SIGUSR1 kills a model's inference threads (loadtest/soak.py).",
    )

    @field_validator("port", mode="before")
    @classmethod
    def _no_service_link(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError(
                f"must be a port, not {value!r:.60}, which Kubernetes sets beside a Service with the name `rerankd`: "
                "set `enableServiceLinks: false` for the pod, or the variable itself"
            )
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys = tuple(key.strip() for key in value.split(",") if key.strip())
        if value and not keys:
            raise ValueError("is set, but has no key in it; unset it, if everybody may use the service")
        return keys

    @field_validator("model", "model_name", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        return tuple(one.strip() for one in value.split(",") if one.strip()) if isinstance(value, str) else value

    @field_validator("processes_cores", mode="before")
    @classmethod
    def _read_cores(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(frozenset(_cores(part)) for part in value.split(";") if part.strip())
        except ValueError:
            raise ValueError(f"must be lists of cores such as 0-3;4-7;8,10-31, not {value!r:.60}") from None

    @model_validator(mode="after")
    def _cores_for_each_process(self) -> "Settings":
        if self.processes_cores and len(self.processes_cores) != self.processes + 1:
            raise ValueError(
                f"RERANKD_PROCESSES_CORES has {len(self.processes_cores)} lists of cores; {self.processes} front-end "
                f"processes and the one with the engines need {self.processes + 1}"
            )
        return self

    @field_validator("root_path")
    @classmethod
    def _is_a_prefix(cls, value: str) -> str:
        if not _ROOT_PATH.fullmatch(value):
            raise ValueError(
                f"must be a path that begins with / and does not end with it, such as /rerank-api, not {value!r:.60}"
            )
        return value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split_proxies(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        networks = tuple(network.strip() for network in value.split(",") if network.strip())
        for network in networks:
            try:
                ip_network(network)
            except ValueError:
                raise ValueError(_no_network(network)) from None
        return networks

    @field_validator("hub_token", mode="after")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        token = value.get_secret_value().strip()
        if not token or not token.isascii() or any(ord(character) < 33 for character in token):
            raise ValueError("must be one word of ASCII characters, without spaces and line breaks")
        return SecretStr(token)

    @model_validator(mode="after")
    def _private_has_keys(self) -> "Settings":
        if self.private and not self.api_keys and self.api_keys_file is None:
            raise ValueError(
                "RERANKD_PRIVATE is true, but there are no API keys to ask for: "
                "set RERANKD_API_KEYS_FILE or RERANKD_API_KEYS"
            )
        return self

    @field_validator("cache_secret", mode="after")
    @classmethod
    def _is_no_guess(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _LEAST_SECRET_CHARS:
            raise ValueError(f"must have at least {_LEAST_SECRET_CHARS} characters, so that nobody guesses it")
        return value

    @model_validator(mode="after")
    def _scope_has_keys(self) -> "Settings":
        if self.cache_scope == "key" and not self.api_keys and self.api_keys_file is None:
            raise ValueError(
                "RERANKD_CACHE_SCOPE is key, but there are no API keys to keep apart: "
                "set RERANKD_API_KEYS_FILE or RERANKD_API_KEYS"
            )
        return self

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError(f"must be DEBUG, INFO, WARNING or ERROR, not {value!r:.60}")
        return value.upper()


def disable_telemetry() -> None:
    """Turn off the telemetry of libraries, unless the environment says otherwise. Call this before they are imported,
    which is when they read these variables.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # OpenVINO reports through a separate package and works without it. None makes its import fail.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def read_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - each override has its own field's type
    """Read the environment; keyword arguments that are not None win over it.

    Raises:
        ConfigError: a variable is unknown or has an unusable value; the message names the variable, never a secret.
    """
    settings, problems = try_settings(**overrides)
    if problems:
        raise ConfigError("; ".join(problems))
    return settings


def try_settings(**overrides: Any) -> tuple[Settings, list[str]]:  # noqa: ANN401 - as above
    """As `read_settings`, but return all problems, and use defaults for unusable settings."""
    problems = list(name_problems(os.environ, Settings.model_fields))
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given), problems
    except ValidationError as error:
        problems.append(explain(error, Settings, variable_prefix=ENVIRONMENT_PREFIX))
        wrong = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
    # What they depend on may be among the unusable ones.
    wrong |= _DEPENDENT
    defaults = {name: Settings.model_fields[name].get_default(call_default_factory=True) for name in wrong}
    return Settings(**(given | defaults)), problems


def _cores(part: str) -> Iterator[int]:
    """The cores of a list such as `0-3,8`.

    Raises:
        ValueError: it is none.
    """
    for piece in part.split(","):
        first, _, last = piece.partition("-")
        cores = range(int(first), int(last or first) + 1)
        if not cores or cores[-1] >= _MOST_CORES:
            raise ValueError(piece)
        yield from cores


def _no_network(text: str) -> str:
    try:
        wide = ip_network(text, strict=False)
    except ValueError:
        return f"must be addresses or networks such as 10.0.0.0/8, not {text!r:.60}"
    return f"has {text}, which is an address with the size of a network: write {wide}, or {text.partition('/')[0]}"
