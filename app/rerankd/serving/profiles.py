"""What `rerankd tune` found out about a model on a machine: written once, taken by `serve` while it still holds.

A profile says how fast things are, never what a score is. It is for one content of the model's files, one machine and
one set of libraries; a key that the registry sets wins over it.
"""

import json
import logging
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rerankd import __version__
from rerankd.concurrency.worker import available_cores
from rerankd.config.options import explain, read_toml
from rerankd.config.registry import ModelSpec
from rerankd.errors import ConfigError

logger = logging.getLogger(__name__)

_LIBRARIES: Final = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "transformers")
_PROCESSOR_KEYS: Final = ("model name", "cpu family", "model", "stepping")
_CPUINFO: Final = Path("/proc/cpuinfo")
_GPUS: Final = Path("/proc/driver/nvidia/gpus")

_STRICT: Final = ConfigDict(extra="forbid", frozen=True)


class Machine(BaseModel):
    """Everything beside the model that its speed depends on."""

    model_config = _STRICT

    cpu: str
    cores: int
    gpus: tuple[str, ...] = ()
    libraries: Mapping[str, str]

    @classmethod
    def this(cls) -> Self:
        return cls(cpu=_cpu(_CPUINFO), cores=available_cores(), gpus=_gpus(_GPUS), libraries=_libraries())

    def difference(self, other: "Machine") -> str:
        """What differs, in words; empty when nothing does."""
        differences = [
            f"{name} {getattr(self, name)!r} is {getattr(other, name)!r} here"
            for name in ("cpu", "cores", "gpus")
            if getattr(self, name) != getattr(other, name)
        ]
        differences += [
            f"{name} {self.libraries.get(name, 'not installed')} is {other.libraries.get(name, 'not installed')} here"
            for name in sorted({*self.libraries, *other.libraries})
            if self.libraries.get(name) != other.libraries.get(name)
        ]
        return "; ".join(differences)


class Choice(BaseModel):
    """The keys of a registry entry that are about speed."""

    model_config = _STRICT

    engine: str
    workers: int = Field(ge=1)
    batch_tokens: int = Field(ge=16)
    engine_options: Mapping[str, int | bool] = Field(default_factory=dict)


class Profile(BaseModel):
    """One model on one machine; `pairs_per_s` as measured for the choice and for what would be without it."""

    model_config = _STRICT

    model: str
    content: str
    written: str
    pairs_per_s: float
    default_pairs_per_s: float
    choice: Choice
    machine: Machine


def profile_path(folder: Path, model: str) -> Path:
    return folder / f"{quote(model, safe='')}.toml"


def read_profile(path: Path) -> Profile | None:
    """Read a profile; None: there is none.

    Raises:
        ConfigError: the file cannot be read, or is no profile.
    """
    try:
        return Profile.model_validate(read_toml(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Profile)}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the profile {path} ({error.strerror})") from None


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile whole or not at all.

    Raises:
        ConfigError: the folder cannot be written.
    """
    unfinished = path.with_suffix(".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(
            "# Written by `rerankd tune`. Delete it to go back to the defaults.\n" + _toml(profile.model_dump()),
            encoding="utf-8",
        )
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write the profile {path} ({error.strerror}); set RERANKD_PROFILES to a folder that can be written"
        ) from None


def mismatch(profile: Profile, *, content: str, machine: Machine) -> str:
    """Why a profile does not hold here; empty when it does."""
    if profile.content != content:
        return "the model's files have changed"
    return profile.machine.difference(machine)


def with_profile(spec: ModelSpec, *, profiles: Path, content: Callable[[], str]) -> ModelSpec:
    """The entry with what `rerankd tune` chose for it here. A profile that does not hold is ignored, with a reason.

    `content` gives the hash of the model's files; it is asked only if there is a profile.
    """
    path = profile_path(profiles, spec.name)
    about = {"model": spec.name, "path": str(path)}
    try:
        profile = read_profile(path)
    except ConfigError as error:
        logger.warning("profile is ignored", extra={**about, "reason": str(error)})
        return spec
    if profile is None:
        return spec
    reason = mismatch(profile, content=content(), machine=Machine.this())
    if reason:
        logger.warning("profile is ignored; measure again: rerankd tune", extra={**about, "reason": reason})
        return spec
    logger.info("profile is used", extra={**about, "choice": profile.choice.model_dump()})
    return tuned(spec, profile.choice)


def tuned(spec: ModelSpec, choice: Choice) -> ModelSpec:
    """The entry with a choice for what it leaves open.

    Workers and threads are one thing, and both belong to an engine: where the entry says something about the former,
    the choice's layout is left; where it insists on another engine, all of the choice.
    """
    if "engine" in spec.model_fields_set and spec.engine != choice.engine:
        return spec
    tuned_spec = spec.model_copy(
        update={"engine": choice.engine, "batch_tokens": spec.batch_tokens or choice.batch_tokens}
    )
    if not leaves_layout_open(spec):
        return tuned_spec
    options = {**choice.engine_options, **spec.engine_options}
    return tuned_spec.model_copy(update={"workers": choice.workers, "engine_options": options})


def leaves_layout_open(spec: ModelSpec) -> bool:
    """Whether an entry says neither how many forward passes run at a time nor how many threads each has."""
    return spec.workers is None and "threads" not in spec.engine_options


def _cpu(cpuinfo: Path) -> str:
    """The CPU's name with family, model and stepping: CPUs of several kinds in a cloud share a name."""
    try:
        first = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}".strip()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return "/".join([platform.machine(), *(facts[key] for key in _PROCESSOR_KEYS if key in facts)])


def _gpus(folder: Path) -> tuple[str, ...]:
    """The names that NVIDIA's driver gives its devices."""
    lines: list[str] = []
    for information in sorted(folder.glob("*/information")):
        lines += information.read_text(encoding="utf-8").splitlines()
    return tuple(line.partition(":")[2].strip() for line in lines if line.startswith("Model:"))


def _libraries() -> dict[str, str]:
    found = {"rerankd": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _toml(table: Mapping[str, Any], *, name: str = "") -> str:
    """Tables come last, as TOML wants it; JSON's strings, numbers and arrays are TOML's too. Keys need no quotes: they
    are fields' and distributions' names.
    """
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    for key in (key for key in table if key not in values):
        path = f"{name}{key}"
        lines += ["", f"[{path}]", _toml(table[key], name=f"{path}.").rstrip()]
    return "\n".join(lines) + "\n"
