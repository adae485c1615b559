"""Settings from the environment (prefix RERANKD_) and the registry of served models.

The only file that touches the environment; only the composition root and the command line read this one.
"""

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

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

from rerankd.config.model_names import ModelNames
from rerankd.config.options import closest, explain, read_toml
from rerankd.domain import PassagePlan
from rerankd.errors import ConfigError

ENVIRONMENT_PREFIX: Final = "RERANKD_"
# Names with our prefix that are not settings: the command line's own, and those of the tests.
_NOT_SETTINGS: Final = frozenset({"RERANKD_BENCH_API_KEY", "RERANKD_EVAL_API_KEY"})
_OF_TESTS: Final = "RERANKD_TEST_"
# What Kubernetes and old Docker links set in every container beside a service with the name `rerankd`.
_SERVICE_LINK: Final = re.compile(
    r"RERANKD_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_PREFIX: Final = re.compile(r"(/[^/?#]+)*")
_KEY_SETTINGS: Final = ("RERANKD_API_KEYS", "RERANKD_API_KEYS_FILE")
_NEAR_PREFIX: Final = 0.88
# Empty, they would be taken for not set, and protect nothing.
_PROTECTING: Final = (
    "RERANKD_API_KEYS",
    "RERANKD_API_KEYS_FILE",
    "RERANKD_PRIVATE",
    "RERANKD_CACHE_SECRET",
    "RERANKD_CACHE_SCOPE",
)
_NEEDING_KEYS: Final = frozenset({"private", "cache_scope"})
_LEAST_SECRET_CHARS: Final = 16

# A scorer or engine that is chosen when the model is loaded.
AUTO: Final = "auto"
SHIPPED_REGISTRY = Path(str(files("rerankd") / "models" / "registry.toml"))


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())


class Settings(BaseSettings):
    """Every setting of the service. docs/configuration.md is generated from this class."""

    model_config = SettingsConfigDict(env_prefix="RERANKD_", env_ignore_empty=True, extra="ignore")

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
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
        "`redis://host:port/db?ttl_s=N`, or `none://`.",
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
    max_queries: int = Field(default=1000, ge=1, description="Most different queries in one request to `/score`.")
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

    @field_validator("root_path")
    @classmethod
    def _is_a_prefix(cls, value: str) -> str:
        if not _PREFIX.fullmatch(value):
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
    """Keep libraries from reporting to their makers, unless the operator's environment says otherwise: requests hold
    private texts. Libraries read these variables when they are imported, so call this before.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # OpenVINO reports through a package of its own, and works without it. None: importing it raises ImportError.
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
    """As `read_settings`, but also say all that is wrong, with the defaults of the settings that cannot be used."""
    problems = list(_problems_of_names(os.environ))
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given), problems
    except ValidationError as error:
        problems.append(explain(error, Settings, variable_prefix=ENVIRONMENT_PREFIX))
        wrong = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
    # They depend on other settings, which may be among the unusable ones.
    wrong |= _NEEDING_KEYS
    defaults = {name: Settings.model_fields[name].get_default(call_default_factory=True) for name in wrong}
    return Settings(**(given | defaults)), problems


def _problems_of_names(environment: Mapping[str, str]) -> Iterator[str]:
    """A misspelled setting would be ignored, and the service perhaps open to everybody; so would an empty one."""
    settings = [f"{ENVIRONMENT_PREFIX}{name}".upper() for name in Settings.model_fields]
    given = {name.upper(): value for name, value in environment.items() if name.upper().startswith(ENVIRONMENT_PREFIX)}
    unknown = [name for name in given if name not in settings and not _is_no_setting(name)]
    if unknown:
        told = "; ".join(f"{name} is not a setting{_meant(name)}" for name in unknown)
        yield f"{told} (docs/configuration.md lists all settings; unset a name that is not one of them)"
    if not given.keys() & set(_KEY_SETTINGS):
        yield from _misspelled_prefixes(environment)
    for name in _PROTECTING:
        if name in given and not given[name].strip():
            yield f"{name} is set, but empty: it would protect nothing. Give it a value, or unset it"


def _misspelled_prefixes(environment: Mapping[str, str]) -> Iterator[str]:
    """Keys that were meant for this service, and would leave it open: RERANK_API_KEYS, RERANKED_API_KEYS_FILE."""
    for name in map(str.upper, environment):
        for setting in _KEY_SETTINGS:
            ending = setting.removeprefix(ENVIRONMENT_PREFIX)
            if (
                name != setting
                and name.endswith(f"_{ending}")
                and closest(name, [setting.lower()], cutoff=_NEAR_PREFIX)
            ):
                yield f"{name} is set, but nothing reads it; did you mean {setting}? Rename it, or unset it"


def _is_no_setting(name: str) -> bool:
    return name in _NOT_SETTINGS or name.startswith(_OF_TESTS) or _SERVICE_LINK.fullmatch(name) is not None


def _meant(name: str) -> str:
    # Without the prefix, which would make all of them alike.
    near = closest(name.removeprefix(ENVIRONMENT_PREFIX), Settings.model_fields)
    return near and f"; did you mean {ENVIRONMENT_PREFIX}{near.upper()}?"


def _no_network(text: str) -> str:
    try:
        wide = ip_network(text, strict=False)
    except ValueError:
        return f"must be addresses or networks such as 10.0.0.0/8, not {text!r:.60}"
    return f"has {text}, which is an address with the size of a network: write {wide}, or {text.partition('/')[0]}"


def _plain_name(name: str) -> str:
    if not name or name != name.strip() or any(ord(character) < 33 for character in name):
        raise ValueError(f"{name!r:.60} cannot be a name: it must not be empty or have spaces or control characters")
    return name


Name = Annotated[str, AfterValidator(_plain_name)]


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
        description="How to treat documents that are too long: cut them, or read them in `passages`. Requests may "
        "ask for either.",
    )
    passages: PassagePlan = Field(default=PassagePlan(), description="How long documents are read in passages.")
    batch_pairs: int | None = Field(default=None, ge=1, description="Pairs per forward pass.")
    certify: Literal["warn", "strict"] = Field(
        default="warn",
        description="What comes of a model that ranks obvious answers wrongly: a warning, or (`strict`) it is refused.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that the model's repository brings. Only for code you have read."
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="Options of the scorer.")
    engine_options: Mapping[str, Any] = Field(default_factory=dict, description="Options of the engine.")

    @model_validator(mode="after")
    def _is_a_model_or_a_cascade(self) -> "ModelSpec":
        if bool(self.path) == bool(self.stages):
            raise ValueError(f"must have either path or stages, {'not both' if self.path else 'and has neither'}")
        # Read here, so that a mistake in them is found with the rest of the registry.
        depths = [stage.depth for stage in self.cascade if stage.depth is not None]
        if any(depth < 1 for depth in depths):
            raise ValueError("stages: a depth must be at least 1")
        return self

    @property
    def cascade(self) -> tuple[CascadeStep, ...]:
        """What `stages` says."""
        return tuple(CascadeStep.read(stage) for stage in self.stages)


def _repository(spec: ModelSpec) -> str:
    """`org/name` of `hub:org/name@revision`; empty for what comes from elsewhere."""
    return spec.path.removeprefix("hub:").partition("@")[0] if spec.path.startswith("hub:") else ""


class Registry(BaseModel):
    """Every served model. A request that names none gets `default`, or else the first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: str | None = None
    model: tuple[ModelSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Registry":
        owners: dict[str, str] = {}
        for spec in self.model:
            for name in (spec.name, *spec.aliases):
                if name in owners:
                    raise ValueError(_named_twice(name, owners[name], spec.name))
                owners[name] = spec.name
        if self.default is not None and self.default not in owners:
            raise ValueError(f"default = {self.default!r}: {_not_served(self.default, owners)}")
        cascades = {spec.name for spec in self.model if spec.stages}
        for spec in self.model:
            for step in spec.cascade:
                if step.model not in owners:
                    raise ValueError(f"stages of {spec.name!r}: {_not_served(step.model, owners)}")
                if owners[step.model] in cascades:
                    raise ValueError(f"stages of {spec.name!r}: {step.model!r} is itself a cascade")
        return self

    def aliases_of(self, spec: ModelSpec) -> tuple[str, ...]:
        """Its aliases, and the name of the hub's repository that it comes from, unless that could mean another one."""
        repository = _repository(spec)
        others = [other for other in self.model if other is not spec]
        taken = {name for other in others for name in (other.name, *other.aliases, _repository(other))}
        own = (spec.name, *spec.aliases)
        return (
            spec.aliases if not repository or repository in taken or repository in own else (*spec.aliases, repository)
        )

    @property
    def names(self) -> list[str]:
        """Every name that a request may use."""
        return [name for spec in self.model for name in (spec.name, *self.aliases_of(spec))]

    def find(self, name: str | None) -> ModelSpec | None:
        """The model that a request means by a name, None by the default one; None: no model is called that."""
        owners = {known: spec for spec in self.model for known in (spec.name, *self.aliases_of(spec))}
        return ModelNames(owners).find(name or self.default or self.model[0].name)

    def check_fallback(self, name: str | None) -> None:
        """Check the model of `RERANKD_MODEL_FALLBACK`; None: there is none.

        Raises:
            ConfigError: no served model has the name.
        """
        if name is not None and name not in self.names:
            raise ConfigError(f"{ENVIRONMENT_PREFIX}MODEL_FALLBACK = {name!r}: {_not_served(name, self.names)}")

    def only(self, names: Collection[str | None]) -> "Registry":
        """Leave out the models that none of these names or aliases means; None means the default.

        Raises:
            ConfigError: no served model has the name.
        """
        found = {name: self.find(name) for name in names}
        unknown = sorted(name for name, spec in found.items() if name is not None and spec is None)
        if unknown:
            known = ", ".join(spec.name for spec in self.model)
            raise ConfigError(f"unknown model {', '.join(unknown)}; known: {known}")
        wanted = {spec.name for spec in found.values() if spec}
        members = [self.find(step.model) for spec in self.model if spec.name in wanted for step in spec.cascade]
        needed = wanted | {member.name for member in members if member}
        kept = tuple(spec for spec in self.model if spec.name in needed)
        default = self.find(None)
        asked = [spec.name for spec in kept if spec.name in wanted]
        return Registry(default=default.name if default and default.name in wanted else asked[0], model=kept)


def _named_twice(name: str, first: str, second: str) -> str:
    if first == second == name:
        return f"{name!r} is there twice: two models have this name, or the model lists it as an alias too"
    if first == second:
        return f"model {first!r} lists the alias {name!r} twice"
    return f"{name!r} is a name or alias of both {first!r} and {second!r}; each must belong to one model"


def _not_served(name: str, served: Collection[str]) -> str:
    near = closest(name, served)
    meant = f"did you mean {near!r}? " if near else ""
    return f"no model has the name or alias {name!r}; {meant}known: {', '.join(served)}"


def read_registry(path: Path) -> Registry:
    """Read the registry.

    Raises:
        ConfigError: the file is missing, not TOML, or a key in it is unusable; the message names which.
    """
    try:
        tables = read_toml(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read the model registry {path} ({error.strerror}); "
            "name another with --registry or RERANKD_REGISTRY"
        ) from None
    try:
        return Registry.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Registry, data=tables)}") from None
