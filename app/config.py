"""Settings from the environment (prefix RERANKD_) and the registry of served models.

The only file that reads the environment; only the composition root and the command line read this one.
"""

import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain import Aggregation
from app.errors import ConfigError
from app.options import explain

SHIPPED_REGISTRY = Path(__file__).resolve().parent.parent / "models" / "registry.toml"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())


class Settings(BaseSettings):
    """Every setting of the service. docs/configuration.md is generated from this class."""

    model_config = SettingsConfigDict(env_prefix="RERANKD_", env_ignore_empty=True, extra="ignore")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="Comma-separated API keys. None: the service is open to everybody who reaches it."
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="A TOML file with a `[[key]]` table for each API key: name and limits (docs/operations.md).",
    )
    strict: bool = Field(
        default=False,
        description="Refuse requests with fields that mean nothing here (400, the message names them), instead of "
        "naming them in `X-Ignored-Fields`.",
    )
    private: bool = Field(
        default=False,
        description="Ask for an API key at `/metrics` and `/openapi.json` too, and serve neither `/docs` nor the "
        "playground at `/`.",
    )
    registry: Path = Field(default=SHIPPED_REGISTRY, description="The TOML file that names every served model.")
    cache_url: str = Field(
        default="memory://",
        description="Where scores are kept: `memory://?max_entries=N`, `redis://host:port/db?ttl_s=N`, or `none://`.",
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
    max_query_chars: int = Field(default=32_768, ge=1, description="Longest query, in characters.")
    max_body_bytes: int = Field(default=64 * 2**20, ge=1024, description="Largest request body, in bytes.")
    max_held_body_bytes: int = Field(
        default=256 * 2**20,
        ge=1024,
        description="Bytes of all bodies that are being read or answered at a time; beyond that 429 "
        "(one alone is always taken).",
    )
    body_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="A request's head, and then its body, must each have arrived within this time; else 408.",
    )
    max_waiting_tokens: int = Field(
        default=4_000_000,
        ge=1,
        description="Tokens that may wait for one model. A request that would exceed it is refused with 429 "
        "(one that finds nothing waiting is always taken).",
    )
    request_timeout_s: float = Field(
        default=300.0, gt=0, description="A request that takes longer is given up with 504."
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
        description="After SIGTERM, go on answering this long with /ready false, so that load balancers notice.",
    )
    shutdown_timeout_s: float = Field(
        default=30.0, ge=0, description="Then finish running requests for at most this long."
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    debug_faults: bool = Field(
        default=False,
        description="For tests of robustness only: SIGUSR1 kills a model's inference threads (loadtest/soak.py).",
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        return tuple(key.strip() for key in value.split(",") if key.strip()) if isinstance(value, str) else value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError(f"unknown log level {value!r}; use DEBUG, INFO, WARNING or ERROR")
        return value.upper()


def read_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - each override has its own field's type
    """Read the environment; keyword arguments that are not None win over it.

    Raises:
        ConfigError: a variable has an unusable value; the message names the variable, never a secret's value.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError(f"environment (prefix RERANKD_): {explain(error)}") from None


class ApiKey(BaseModel):
    """One `[[key]]` table of the file of API keys. Only a key's hash is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(min_length=1, description="Whose key it is: in logs, and for even shares of the engine.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the key, in hexadecimal.")
    requests_per_s: float | None = Field(default=None, gt=0, description="Requests a second; more are refused.")
    tokens_per_min: int | None = Field(default=None, gt=0, description="Tokens read a minute; then 429.")

    @model_validator(mode="before")
    @classmethod
    def _hash_the_key(cls, table: Any) -> Any:  # noqa: ANN401 - whatever TOML holds
        """Take `key = "..."` for its hash."""
        if isinstance(table, dict) and isinstance(table.get("key"), str) and "sha256" not in table:
            if not table["key"].strip():
                raise ValueError("an API key is empty")
            rest = {name: value for name, value in table.items() if name != "key"}
            return rest | {"sha256": sha256(table["key"].strip().encode()).hexdigest()}
        return table


class _ApiKeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    key: tuple[ApiKey, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _keys_differ(self) -> "_ApiKeyFile":
        for values in ([key.name for key in self.key], [key.sha256 for key in self.key]):
            if len(set(values)) < len(values):
                raise ValueError("two keys have the same name, or are the same")
        return self


def read_api_keys(settings: Settings) -> list[ApiKey]:
    """The keys of the environment, named key-1, key-2 and so on, and those of the file.

    Raises:
        ConfigError: the file is missing or unusable; the message never holds a key.
    """
    keys = [
        ApiKey(name=f"key-{number}", sha256=sha256(key.get_secret_value().encode()).hexdigest())
        for number, key in enumerate(settings.api_keys, start=1)
    ]
    path = settings.api_keys_file
    if path is None:
        return keys
    try:
        return keys + list(_ApiKeyFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).key)
    except OSError as error:
        raise ConfigError(f"cannot read the API keys in {path} ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(f"{path} is no valid TOML") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None


def _plain_name(name: str) -> str:
    if not name or name != name.strip() or any(ord(character) < 33 for character in name):
        raise ValueError(f"{name!r} is no model name: it must be non-empty, without spaces or control characters")
    return name


Name = Annotated[str, AfterValidator(_plain_name)]


class PassageSpec(BaseModel):
    """How a model reads long documents in passages. Requests may ask for other values within `max_passages`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int | None = Field(
        default=None, ge=16, description="Tokens per passage; by default as many as fit beside the query."
    )
    overlap: int | None = Field(
        default=None, ge=0, description="Tokens shared with the passage before; by default a quarter of `tokens`."
    )
    max_passages: int = Field(default=32, ge=1, description="At most so many passages of a document are ever read.")
    aggregation: Aggregation = Field(
        default=Aggregation.MAX, description="A document's score: `max`, `first`, `mean` or `top_k_mean` of passages."
    )
    top_k: int = Field(default=3, ge=1, description="How many passages `top_k_mean` averages.")


@dataclass(frozen=True, slots=True)
class CascadeStep:
    """A served model by name or alias, which reorders the first `depth` documents; None: all."""

    model: str
    depth: int | None

    @classmethod
    def read(cls, text: str) -> "CascadeStep":
        """Read `name` or `name:depth`."""
        name, colon, depth = text.rpartition(":")
        return cls(name, int(depth)) if colon and depth.isascii() and depth.isdigit() else cls(text, None)


class ModelSpec(BaseModel):
    """One `[[model]]` table of the registry. docs/models.md explains every key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    aliases: tuple[Name, ...] = ()
    scorer: str = "cross-encoder"
    engine: str = "onnx"
    path: str = Field(default="", description="A folder (relative to the registry) or `hub:org/name@revision`.")
    stages: tuple[str, ...] = Field(
        default=(),
        description="Instead of a path: served models that rerank one after another, `name` or `name:depth`.",
    )
    revision: str | None = Field(
        default=None, description="Your own version label, shown by /v1/models. Cache keys hash the files too."
    )
    max_length: int | None = Field(default=None, ge=16, description="Tokens per pair, at most what the model can read.")
    devices: tuple[str, ...] = Field(
        default=(), description="A copy of the model on each of these, as `cuda:0`; they share the work."
    )
    workers: int | None = Field(default=None, ge=1, description="Forward passes at a time, on each device.")
    batch_tokens: int | None = Field(default=None, ge=16, description="Tokens per forward pass, padding included.")
    truncation: Literal["truncate", "chunk"] = Field(
        default="truncate",
        description="What becomes of documents that are too long: cut them, or read them in `passages`. Requests may "
        "ask for either.",
    )
    passages: PassageSpec = Field(default=PassageSpec(), description="How long documents are read in passages.")
    batch_pairs: int | None = Field(default=None, ge=1, description="Pairs per forward pass.")
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that the model's repository brings. Only for code you have read."
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="Options of the scorer.")
    engine_options: Mapping[str, Any] = Field(default_factory=dict, description="Options of the engine.")

    @model_validator(mode="after")
    def _is_a_model_or_a_cascade(self) -> "ModelSpec":
        if bool(self.path) == bool(self.stages):
            raise ValueError("a model needs either path or stages")
        # Read here, so that a mistake in them is found with the rest of the registry.
        depths = [stage.depth for stage in self.cascade if stage.depth is not None]
        if any(depth < 1 for depth in depths):
            raise ValueError("stages: a depth is at least 1")
        return self

    @property
    def cascade(self) -> tuple[CascadeStep, ...]:
        """What `stages` says."""
        return tuple(CascadeStep.read(stage) for stage in self.stages)


class Registry(BaseModel):
    """Every served model. A request that names none gets `default`, or else the first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: str | None = None
    model: tuple[ModelSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Registry":
        seen: dict[str, str] = {}
        for spec in self.model:
            for name in (spec.name, *spec.aliases):
                if name in seen:
                    raise ValueError(f"{name!r} is named by {seen[name]!r} and by {spec.name!r}")
                seen[name] = spec.name
        if self.default is not None and self.default not in seen:
            raise ValueError(f"default = {self.default!r} is no served model; known: {', '.join(seen)}")
        cascades = {spec.name for spec in self.model if spec.stages}
        for spec in self.model:
            for step in spec.cascade:
                if step.model not in seen:
                    raise ValueError(f"stages of {spec.name!r}: {step.model!r} is no served model")
                if seen[step.model] in cascades:
                    raise ValueError(f"stages of {spec.name!r}: {step.model!r} is itself a cascade")
        return self

    def only(self, names: Collection[str | None]) -> "Registry":
        """Leave out the models that none of these names or aliases means; None means the default.

        Raises:
            ConfigError: a name is no served model's.
        """
        wanted = {name or self.default or self.model[0].name for name in names}
        needed = wanted | {
            step.model for spec in self.model if wanted & {spec.name, *spec.aliases} for step in spec.cascade
        }
        kept = tuple(spec for spec in self.model if needed & {spec.name, *spec.aliases})
        unknown = wanted - {name for spec in kept for name in (spec.name, *spec.aliases)}
        if unknown:
            known = ", ".join(spec.name for spec in self.model)
            raise ConfigError(f"unknown model {', '.join(sorted(unknown))}; known: {known}")
        default = self.default if self.default in wanted else None
        asked = next((spec.name for spec in kept if wanted & {spec.name, *spec.aliases}), None)
        return Registry(default=default or asked, model=kept)


def read_registry(path: Path) -> Registry:
    """Read the registry.

    Raises:
        ConfigError: the file is missing, is no TOML, or a key in it is unusable; the message names which.
    """
    try:
        return Registry.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read the model registry {path} ({error.strerror}); set RERANKD_REGISTRY") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None
