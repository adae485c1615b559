"""Connections are tested on the event loop that serves: it closes and pauses in other ways than asyncio's own."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.api.conftest import open_api

__all__ = ["open_api"]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The plugin's hook."""
    return {"uvloop": uvloop.new_event_loop}
