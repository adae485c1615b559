"""Faults on purpose: what the service must survive can be made to happen to a running one. Off by default."""

import asyncio
import logging
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from rerankd.concurrency.worker import INFERENCE_THREAD, Worker

logger = logging.getLogger(__name__)


@contextmanager
def faults_on_signal() -> Iterator[None]:
    """SIGUSR1 kills the threads that run the forward passes of one model, chosen by chance."""
    logger.warning("DEBUG FAULTS ARE ON: SIGUSR1 kills inference threads; unset RERANKD_DEBUG_FAULTS")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, kill_threads, INFERENCE_THREAD)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


def kill_threads(name_prefix: str) -> None:
    """Let the threads of one of the workers whose names begin so die as they come to the next call, which is lost."""
    workers = [worker for worker in Worker.existing if worker.name.startswith(name_prefix)]
    if not workers:
        return
    victim = random.choice(workers)  # noqa: S311 - which one is no secret
    logger.warning("killing the threads of %s", victim.name)
    victim.lose_threads()
