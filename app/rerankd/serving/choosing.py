"""Chooses how to serve a model of which only the name is known: by its files, and by what this machine has.

A registry says this with `scorer = "auto"` and `engine = "auto"`, `rerankd serve MODEL` for every model.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from rerankd.config.extras import missing
from rerankd.config.named_models import served_registry
from rerankd.config.options import read_options
from rerankd.config.registry import AUTO, ModelSpec
from rerankd.config.settings import Settings
from rerankd.engines import takes_adapters
from rerankd.errors import ConfigError, few
from rerankd.recognition.families import family_named, recognise
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import GRAPH_ENGINES, PARITY_FILE, Asked, Outcome, Recognised, Refused
from rerankd.recognition.weights import absence
from rerankd.scorers import EXPORTED_SCORERS, check_scorer
from rerankd.scorers.templates import known_templates
from rerankd.serving.model_files import (
    adapter_folder,
    adapter_repository,
    read_model_files,
    template_folders,
    with_base,
)
from rerankd.serving.sources import is_on_hub

logger = logging.getLogger(__name__)

Dtype = Literal["float32", "float16", "bfloat16", "int8"]
# The graphs that are served, by what they are computed in; the first that is there.
_GRAPHS: Final[Mapping[Dtype, Sequence[str]]] = {
    "int8": ("model.int8.onnx",),
    "float32": ("model.onnx", "onnx/model.onnx"),
    "float16": ("model.float16.onnx",),
    "bfloat16": (),
}
# Best first where nothing is said: on a CPU int8 is as good as float32, and twice as fast.
_USUAL: Final[Mapping[bool, Sequence[Dtype]]] = {False: ("int8", "float32"), True: ("float16", "float32")}
_LAYERED: Final = "torch-causal"
_OF_LAYERS: Final = ("cutoff_layer", "compress_ratio", "compress_layers")
# Tasks whose graphs are the same from every exporter.
_PLAIN_GRAPHS: Final = ("classify", "embed")


class AutoOptions(BaseModel):
    """`[model.engine_options]` of the engine `auto`."""

    model_config = ConfigDict(extra="forbid")

    device: str | None = Field(
        default=None, description='"cpu", "cuda" or "cuda:N"; default: a GPU where there is one.'
    )
    precision: Dtype | None = Field(default=None, description="Default: the engine's usual one.")
    cutoff_layer: int | None = Field(default=None, description="As of `torch-causal`.")
    compress_ratio: int | None = Field(default=None, description="As of `torch-causal`.")
    compress_layers: tuple[int, ...] | None = Field(default=None, description="As of `torch-causal`.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What can compute here: packages that are installed, and whether torch finds a GPU."""

    packages: frozenset[str]
    gpu: bool

    @classmethod
    def this(cls, *, ask_for_gpu: bool) -> "Machine":
        """What is here. Asking torch for a GPU takes seconds, so it is asked only where the answer matters."""
        packages = frozenset(name for name in ("onnxruntime", "torch", "transformers") if find_spec(name))
        return cls(packages=packages, gpu=ask_for_gpu and "torch" in packages and _finds_gpu())


def _finds_gpu() -> bool:
    import torch  # noqa: PLC0415 - a service on onnxruntime needs none of it

    return bool(torch.cuda.is_available())


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An engine for a recognised model, with its options, and why it is this one."""

    engine: str
    options: Mapping[str, Any] = field(default_factory=dict)
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What is known of a model without its weights. `choice` and `problem`: how it would be served here, or why not."""

    files: ModelFiles
    outcome: Outcome
    choice: Choice | None
    problem: str


def is_open(spec: ModelSpec) -> bool:
    """Whether a registry's entry leaves open how it is served."""
    return AUTO in (spec.scorer, spec.engine)


def choose(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """The entry with what it leaves open. A repository's small files are fetched for it.

    Raises:
        ConfigError: the model is not served; the message says why, and what to use instead.
        SourceUnreachable: the hub cannot be reached now.
    """
    if not is_open(spec):
        return spec
    spec = with_base(spec, settings)
    found = inspect(spec, settings)
    outcome, choice = found.outcome, found.choice
    if not isinstance(outcome, Recognised) or choice is None:
        raise ConfigError(f"{spec.path.removeprefix('hub:')}: {found.problem}")
    logger.info(
        "model is recognised",
        extra={
            "model": spec.name,
            "family": outcome.family,
            "scorer": outcome.scorer,
            "template": outcome.template or "",
            "engine": choice.engine,
            "options": dict(choice.options),
            "reason": choice.because,
        },
    )
    update = {
        "scorer": outcome.scorer,
        "options": dict(outcome.options),
        "engine": choice.engine,
        "engine_options": dict(choice.options),
    }
    return spec.model_copy(update=update)


def exportable(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """The entry with the scorer that a graph of the model would be served with, and its options.

    Raises:
        ConfigError: the model is not served, or no graph can be made of it.
        SourceUnreachable: the hub cannot be reached now.
    """
    outcome = inspect(spec, settings).outcome
    if isinstance(outcome, Refused):
        raise ConfigError(f"{spec.path.removeprefix('hub:')}: {outcome}")
    if not family_named(outcome.family).exported or outcome.scorer not in EXPORTED_SCORERS:
        raise ConfigError(
            f"no graph is made of this model (family: {outcome.family}; scorer {outcome.scorer!r}); serve it with "
            f"engine {' or '.join(map(repr, outcome.engines))}"
        )
    check_scorer(outcome.scorer, outcome.options)
    return spec.model_copy(update={"scorer": outcome.scorer, "options": dict(outcome.options)})


def refuse_unserved_folders(settings: Settings) -> None:
    """Check the folders among the models and adapters that settings name, before a service starts that could never
    answer. Those on a hub are fetched later, and may take their time.

    Raises:
        ConfigError: one of them cannot be served; the message says why.
    """
    if settings.model:
        for spec in served_registry(settings).model:
            if not is_on_hub(spec.path):
                choose(spec, settings)
            if spec.adapter and not is_on_hub(spec.adapter):
                adapter_folder(spec, settings)


def inspect(spec: ModelSpec, settings: Settings) -> Inspected:
    """Recognise a model by its files, and choose an engine for it.

    Raises:
        ConfigError: there is no such model, or a file in it is unusable.
        SourceUnreachable: the hub cannot be reached now.
    """
    files = read_model_files(spec, settings)
    templates = known_templates(template_folders(settings))
    trained = adapter_repository(spec)
    if any(template.fits(trained) for template in templates):
        # The adapter was trained with a prompt of its own.
        files = replace(files, repository=trained)
    asked = Asked(
        options=spec.options,
        templates=templates,
        adapter=adapter_repository(spec),
        scorer="" if spec.scorer == AUTO else spec.scorer,
        trust_remote_code=spec.trust_remote_code,
    )
    outcome = recognise(files, asked)
    try:
        choice = _choice(spec, files, outcome)
    except ConfigError as error:
        return Inspected(files=files, outcome=outcome, choice=None, problem=str(error))
    return Inspected(files=files, outcome=outcome, choice=choice, problem="")


def _choice(spec: ModelSpec, files: ModelFiles, outcome: Outcome) -> Choice:
    """The engine of an entry.

    Raises:
        ConfigError: there is none for it.
    """
    if isinstance(outcome, Refused):
        raise ConfigError(str(outcome))
    if spec.scorer not in (AUTO, outcome.scorer):
        raise ConfigError(f"this is served with scorer = {outcome.scorer!r}, and the entry says {spec.scorer!r}")
    check_scorer(outcome.scorer, outcome.options)
    if spec.engine != AUTO:
        return Choice(engine=spec.engine, options=spec.engine_options, because="the entry says so")
    options = read_options(spec.engine_options, AutoOptions, of=f"engine {AUTO!r}")
    machine = Machine.this(ask_for_gpu=files.has_safetensors and options.device is None)
    return engine_for(_with_adapter(spec, outcome), files, options, machine)


def _with_adapter(spec: ModelSpec, found: Recognised) -> Recognised:
    """The model with only the engines that put its adapter on it, if it has one.

    Raises:
        ConfigError: there are none.
    """
    if not spec.adapter:
        return found
    engines = [engine for engine in found.engines if takes_adapters(engine)]
    if not engines:
        raise ConfigError(f"none of its engines ({', '.join(found.engines)}) takes an adapter; merge it into the model")
    return replace(found, engines=engines)


def _with_layers(found: Recognised, options: AutoOptions) -> Recognised:
    """The model with only the engine that reads inner layers, if the entry says which.

    Raises:
        ConfigError: that does not compute it.
    """
    said = [name for name in _OF_LAYERS if getattr(options, name) is not None]
    if not said:
        return found
    if _LAYERED not in found.engines:
        raise ConfigError(
            f"{' and '.join(said)}: only engine {_LAYERED!r} reads inner layers, and this model is computed by "
            f"{' or '.join(found.engines)}; leave it out"
        )
    return replace(found, engines=[_LAYERED])


def engine_for(found: Recognised, files: ModelFiles, options: AutoOptions, machine: Machine) -> Choice:
    """The fastest engine that computes a model here as its authors do: torch on a GPU, else an ONNX graph, else torch.

    Raises:
        ConfigError: none does; the message says what to install or to make.
    """
    found = _with_layers(found, options)
    on_gpu = machine.gpu if options.device is None else options.device.startswith("cuda")
    torch = next((engine for engine in found.engines if engine not in GRAPH_ENGINES), None)
    torch = torch if files.has_safetensors and options.precision != "int8" else None
    graph = _graph(found, files, options.precision, on_gpu=on_gpu)
    usable = torch is not None and {"torch", "transformers"} <= machine.packages
    said = {name: value for name, value in options.model_dump().items() if value is not None}
    if torch and usable and (on_gpu or graph is None):
        because = "a GPU" if on_gpu else "safetensors, and no ONNX graph"
        return Choice(engine=torch, options=said, because=because)
    if graph is not None and "onnxruntime" in machine.packages:
        device = {"device": options.device} if options.device else {}
        return Choice(engine="onnx", options={"file": graph, **device}, because=f"the graph {graph}")
    if graph is not None:
        raise missing("onnxruntime", extra="cpu", of=f"the graph {graph}")
    if torch is not None:
        needed = missing("torch", extra="torch", of=f"engine {torch!r}, which its safetensors need,")
        raise ConfigError(
            f"{needed}; or make an ONNX graph where torch is, with `rerankd export`, and serve its folder"
        )
    raise ConfigError(_nothing_to_load(found, files, options))


def _graph(found: Recognised, files: ModelFiles, precision: Dtype | None, *, on_gpu: bool) -> str | None:
    """The graph to compute. Of a language model only our own export gives what its scorer reads."""
    if "onnx" not in found.engines or (found.task not in _PLAIN_GRAPHS and PARITY_FILE not in files.names):
        return None
    wanted = _USUAL[on_gpu] if precision is None else (precision,)
    there = (name for kind in wanted for name in _GRAPHS[kind] if name in files.names)
    return next(there, None)


def _nothing_to_load(found: Recognised, files: ModelFiles, options: AutoOptions) -> str:
    if options.precision is not None and (files.graphs or files.has_safetensors):
        return f"nothing there is computed in {options.precision}; make it with `rerankd export`, or leave --dtype out"
    if files.has_safetensors:
        return f"its safetensors are computed by none of {', '.join(found.engines)}; make a graph with `rerankd export`"
    if files.graphs:
        known = [name for names in _GRAPHS.values() for name in names]
        return (
            f"its graphs are {few(files.graphs)}, and only {few(known)} are taken unasked; name one in a registry: "
            "engine_options = { file = ... }"
        )
    return absence(files.folder, files.names)
