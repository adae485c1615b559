"""Runs a process of the service: its log, its event loop and its end."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import uvloop

from rerankd.concurrency.worker import exit_beside_hung_calls
from rerankd.config.settings import Settings
from rerankd.telemetry import logs


def run_service(settings: Settings, serving: Coroutine[Any, Any, None]) -> None:
    """Run until it ends.

    Raises:
        SystemExit: it failed; the log says why.
    """
    with logs.serving(settings.log_level, logs.LogFormat(settings.log_format)):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving)
        exit_beside_hung_calls()
