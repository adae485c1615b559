"""Checks the names of environment variables: a misspelled setting must not be ignored."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from rerankd.config.options import closest

ENVIRONMENT_PREFIX: Final = "RERANKD_"
# Names with our prefix that are not settings: those of commands, tests, and the kernels (engines/onnx/kernels).
_NOT_SETTINGS: Final = frozenset({"RERANKD_BENCH_API_KEY", "RERANKD_EVAL_API_KEY", "RERANKD_INSTRUCTION_SET"})
_OF_TESTS: Final = "RERANKD_TEST_"
# Kubernetes and old Docker links set these in containers beside a service named `rerankd`.
_SERVICE_LINK: Final = re.compile(
    r"RERANKD_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KEY_SETTINGS: Final = ("RERANKD_API_KEYS", "RERANKD_API_KEYS_FILE")
_NEAR_PREFIX: Final = 0.88
# If empty, they would count as not set and protect nothing.
_PROTECTING: Final = (
    "RERANKD_API_KEYS",
    "RERANKD_API_KEYS_FILE",
    "RERANKD_PRIVATE",
    "RERANKD_CACHE_SECRET",
    "RERANKD_CACHE_PASSWORD",
    "RERANKD_CACHE_SENTINEL_PASSWORD",
    "RERANKD_CACHE_SCOPE",
)


def name_problems(environment: Mapping[str, str], settings: Collection[str]) -> Iterator[str]:
    """Unknown names with our prefix, misspelled prefixes of API keys, and empty variables that should protect.
    `settings` are the fields' names.
    """
    known = {f"{ENVIRONMENT_PREFIX}{name}".upper() for name in settings}
    given = {name.upper(): value for name, value in environment.items() if name.upper().startswith(ENVIRONMENT_PREFIX)}
    unknown = [name for name in given if name not in known and not _is_no_setting(name)]
    if unknown:
        messages = "; ".join(f"{name} is not a setting{_meant(name, settings)}" for name in unknown)
        yield f"{messages} (docs/configuration.md lists all settings; unset a name that is not one of them)"
    if not given.keys() & set(_KEY_SETTINGS):
        yield from _misspelled_prefixes(environment)
    for name in _PROTECTING:
        if name in given and not given[name].strip():
            yield f"{name} is set, but empty: it would protect nothing. Give it a value, or unset it"


def _misspelled_prefixes(environment: Mapping[str, str]) -> Iterator[str]:
    """Misspelled API keys would leave the service open: RERANK_API_KEYS, RERANKED_API_KEYS_FILE."""
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


def _meant(name: str, settings: Collection[str]) -> str:
    # without the prefix, which all names have in common
    near = closest(name.removeprefix(ENVIRONMENT_PREFIX), settings)
    return near and f"; did you mean {ENVIRONMENT_PREFIX}{near.upper()}?"
