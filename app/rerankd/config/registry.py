"""The registry of served models, as a registry file describes it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from rerankd.config.model_names import ModelNames
from rerankd.config.options import closest, explain, read_toml
from rerankd.config.variables import ENVIRONMENT_PREFIX
from rerankd.domain import AnchorPlan, ConfidencePlan, DiversityPlan, FusionPlan, PassagePlan
from rerankd.errors import ConfigError

# A scorer or engine that is chosen when the model is loaded.
AUTO: Final = "auto"
# The engine, and the scorer, of a rerank service elsewhere.
REMOTE: Final = "remote"


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
    adapter: str = Field(
        default="",
        description="Changes to the model's weights (LoRA): a folder (relative to the registry) or `hub:org/name`.",
    )
    adapter_of: str = Field(
        default="", description="What the adapter calls its model, if `path` is a copy of that by another name."
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
    truncation: Literal["truncate", "chunk", "extract"] = Field(
        default="truncate",
        description="How to treat documents that are too long: cut them, read them in `passages`, or read the "
        "sentences that speak of the query. Requests may ask for either.",
    )
    passages: PassagePlan = Field(default=PassagePlan(), description="How long documents are read in passages.")
    fusion: FusionPlan = Field(
        default=FusionPlan(), description="How the model's scores are fused with those of the first stage."
    )
    diversity: DiversityPlan = Field(
        default=DiversityPlan(), description="How orders are made diverse (MMR); requests may ask for it as well."
    )
    diversity_model: str | None = Field(
        default=None,
        description="A served embedding model whose vectors of documents `diversity` compares, by name or alias; "
        "default: the model itself, if it is one.",
    )
    anchors: AnchorPlan = Field(
        default=AnchorPlan(),
        description="How many documents are read of requests whose other scores can be estimated (ANNCUR).",
    )
    calibration: str = Field(
        default="",
        description="A file of `rerankd calibrate` (relative to the registry), or `none`; default: "
        "`rerankd_calibration.json` in the model's folder, if it is there.",
    )
    confidence: ConfidencePlan = Field(
        default=ConfidencePlan(), description="How sure the model is of its order, and when answers abstain."
    )
    passage_selector: str | None = Field(
        default=None,
        description="A served model that chooses the passages of `passages.select`, by name or alias; default: the "
        "query's words.",
    )
    batch_pairs: int | None = Field(default=None, ge=1, description="Pairs per forward pass.")
    fallback: str | None = Field(
        default=None, description="A served model that answers where this one cannot, by name or alias."
    )
    certify: Literal["warn", "strict"] = Field(
        default="warn",
        description="What comes of a model that ranks obvious answers wrongly: a warning, or (`strict`) it is refused.",
    )
    idle_unload_s: float | None = Field(
        default=None,
        gt=0,
        description="Unload the model when no request has come for so long; the next one loads it again.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that the model's repository brings. Only for code you have read."
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="Options of the scorer.")
    engine_options: Mapping[str, Any] = Field(default_factory=dict, description="Options of the engine.")

    @model_validator(mode="before")
    @classmethod
    def _scores_as_its_service_does(cls, table: object) -> object:
        """Engine `remote` has one scorer."""
        return {"scorer": REMOTE, **table} if isinstance(table, dict) and table.get("engine") == REMOTE else table

    @model_validator(mode="after")
    def _is_a_model_or_a_cascade(self) -> "ModelSpec":
        if self.engine == REMOTE and not self.stages:
            if self.path:
                raise ValueError(f"path: a remote model has no folder here; leave it out, not {self.path!r:.60}")
        elif bool(self.path) == bool(self.stages):
            raise ValueError(f"must have either path or stages, {'not both' if self.path else 'and has neither'}")
        if self.stages and self.adapter:
            raise ValueError("adapter: a cascade has no weights; set it for its members")
        if self.stages and (self.calibration or self.confidence != ConfidencePlan()):
            raise ValueError("calibration and confidence: a cascade's scores only say the order; leave them out")
        if self.stages and self.diversity.weight and self.diversity_model is None:
            raise ValueError("diversity: a cascade has no vectors of documents; set diversity_model")
        if self.adapter_of and not self.adapter:
            raise ValueError("adapter_of is there without adapter")
        if self.stages and self.idle_unload_s is not None:
            raise ValueError("idle_unload_s: a cascade has nothing to unload; set it for its members")
        # Read here, so that mistakes are reported with those in the rest of the registry.
        depths = [stage.depth for stage in self.cascade if stage.depth is not None]
        if any(depth < 1 for depth in depths):
            raise ValueError("stages: a depth must be at least 1")
        return self

    @model_validator(mode="after")
    def _anchors_fit_together(self) -> "ModelSpec":
        if self.stages and self.anchors.file:
            raise ValueError("anchors: a cascade scores no pairs; set it for its members")
        if self.anchors.depth < self.anchors.anchors:
            raise ValueError(
                f"anchors: depth counts the anchors as well: at least {self.anchors.anchors}, not {self.anchors.depth}"
            )
        if self.anchors != AnchorPlan() and not self.anchors.file:
            raise ValueError("anchors: file is missing; rerankd anchors makes one")
        return self

    @property
    def cascade(self) -> tuple[CascadeStep, ...]:
        """The steps that `stages` describes."""
        return tuple(CascadeStep.read(stage) for stage in self.stages)


def _others_of(spec: ModelSpec) -> list[str]:
    """The models that an entry needs: its cascade's members, its fallback, selector and embedder."""
    return [
        *(step.model for step in spec.cascade),
        *filter(None, (spec.fallback, spec.passage_selector, spec.diversity_model)),
    ]


def _repository(spec: ModelSpec) -> str:
    """`org/name` of `hub:org/name@revision`; empty for what comes from elsewhere, and for a model with an adapter."""
    if spec.adapter:
        return ""
    return spec.path.removeprefix("hub:").partition("@")[0] if spec.path.startswith("hub:") else ""


class Registry(BaseModel):
    """Every served model. A request that names none gets `default`, or else the first. `aliases` gives models further
    names in one table, such as those of hosted services.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: str | None = None
    aliases: Mapping[Name, str] = Field(default_factory=dict, description="Further names, each with a model's name.")
    model: tuple[ModelSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Registry":
        owners: dict[str, str] = {}
        for spec in self.model:
            for name in (spec.name, *spec.aliases):
                if name in owners:
                    raise ValueError(_named_twice(name, owners[name], spec.name))
                owners[name] = spec.name
        owners |= self._owners_of_aliases(owners)
        if self.default is not None and self.default not in owners:
            raise ValueError(f"default = {self.default!r}: {_not_served(self.default, owners)}")
        self._check_fallbacks(owners)
        _check_helpers(self.model, owners)
        cascades = {spec.name for spec in self.model if spec.stages}
        anchored = {spec.name for spec in self.model if spec.anchors.file}
        for spec in self.model:
            for step in spec.cascade:
                if step.model not in owners:
                    raise ValueError(f"stages of {spec.name!r}: {_not_served(step.model, owners)}")
                if owners[step.model] in cascades:
                    raise ValueError(f"stages of {spec.name!r}: {step.model!r} is itself a cascade")
                if owners[step.model] in anchored:
                    raise ValueError(
                        f"stages of {spec.name!r}: {step.model!r} has anchors and would leave out documents; name an "
                        "entry without"
                    )
        return self

    def _check_fallbacks(self, owners: Mapping[str, str]) -> None:
        fallback_of = {spec.name: spec.fallback for spec in self.model if spec.fallback is not None}
        for name, fallback in fallback_of.items():
            if fallback not in owners:
                raise ValueError(f"fallback of {name!r}: {_not_served(fallback, owners)}")
        for name in fallback_of:
            met, step = {name}, owners[fallback_of[name]]
            while step not in met and step in fallback_of:
                met.add(step)
                step = owners[fallback_of[step]]
            if step in met:
                raise ValueError(f"fallback of {name!r}: its fallbacks lead back to {step!r}; one must have none")

    def _owners_of_aliases(self, owners: Mapping[str, str]) -> dict[str, str]:
        for name, model in self.aliases.items():
            if name in owners:
                raise ValueError(f"aliases: {name!r} is already a name or alias of {owners[name]!r}; leave it out")
            if model not in owners:
                raise ValueError(f"aliases: {name!r}: {_not_served(model, owners)}")
        return {name: owners[model] for name, model in self.aliases.items()}

    def aliases_of(self, spec: ModelSpec) -> tuple[str, ...]:
        """Its aliases, and the name of the hub's repository that it comes from, unless that could mean another one."""
        own = (spec.name, *spec.aliases)
        aliases = (*spec.aliases, *(name for name, model in self.aliases.items() if model in own))
        repository = _repository(spec)
        others = [other for other in self.model if other is not spec]
        taken = {name for other in others for name in (other.name, *other.aliases, _repository(other))}
        if not repository or repository in (*taken, *self.aliases, *own):
            return aliases
        return (*aliases, repository)

    @property
    def names(self) -> list[str]:
        """Every name that a request may use."""
        return [name for spec in self.model for name in (spec.name, *self.aliases_of(spec))]

    @property
    def default_name(self) -> str:
        """The name or alias of the model that answers requests which name none."""
        return self.default or self.model[0].name

    def find(self, name: str | None) -> ModelSpec | None:
        """The model that a request means by a name, None by the default one; None: no model is called that."""
        owners = {known: spec for spec in self.model for known in (spec.name, *self.aliases_of(spec))}
        return ModelNames(owners).find(name or self.default_name)

    def check_fallback(self, name: str | None) -> None:
        """Check the model of `RERANKD_MODEL_FALLBACK`; None: there is none.

        Raises:
            ConfigError: no served model has the name.
        """
        if name is not None and name not in self.names:
            raise ConfigError(f"{ENVIRONMENT_PREFIX}MODEL_FALLBACK = {name!r}: {_not_served(name, self.names)}")

    def named(self, name: str | None) -> "ModelSpec":
        """The model that a name or alias means; None means the default.

        Raises:
            ConfigError: no served model has the name.
        """
        found = self.find(name)
        if found is None:
            raise ConfigError(f"unknown model {name}; known: {', '.join(spec.name for spec in self.model)}")
        return found

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
        needed, reached = set[str](), wanted
        while reached:
            needed |= reached
            named = [name for spec in self.model if spec.name in reached for name in _others_of(spec)]
            reached = {other.name for name in named if (other := self.find(name))} - needed
        kept = tuple(spec for spec in self.model if spec.name in needed)
        default = self.find(None)
        asked = [spec.name for spec in kept if spec.name in wanted]
        served = {name for spec in kept for name in (spec.name, *spec.aliases)}
        return Registry(
            default=default.name if default and default.name in wanted else asked[0],
            aliases={name: model for name, model in self.aliases.items() if model in served},
            model=kept,
        )


def _check_helpers(models: Sequence[ModelSpec], owners: Collection[str]) -> None:
    for spec in models:
        for key, name in (("passage_selector", spec.passage_selector), ("diversity_model", spec.diversity_model)):
            if name is not None and name not in owners:
                raise ValueError(f"{key} of {spec.name!r}: {_not_served(name, owners)}")


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
