"""The limit of open files, raised for the connections that a setting allows."""

import logging
import resource
from collections.abc import Iterator

import pytest

from rerankd.api.server import _allow_open_files


@pytest.fixture(autouse=True)
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _soft() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_it_is_raised_as_far_as_it_is_needed_and_never_lowered(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    _allow_open_files(600)
    assert _soft() == 600
    _allow_open_files(100)
    assert _soft() == 600


def test_what_cannot_be_had_is_said(limits: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    hard = limits[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this machine limits nothing")
    with caplog.at_level(logging.WARNING, logger="rerankd.api.server"):
        _allow_open_files(hard + 1)
    assert _soft() == hard
    assert f"needs {hard + 1} open files" in caplog.text
