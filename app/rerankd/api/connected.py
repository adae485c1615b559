"""Stops the work of a request when its client goes away."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Receive

from rerankd.gateway.failures import CallerGone


@contextmanager
def while_connected(receive: Receive) -> Iterator[None]:
    """Cancel what is done inside when the client goes away. The whole body must have been received.

    Raises:
        CallerGone: the client closed the connection before that was done.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a server runs each request in a task
    cancelled_before = task.cancelling()
    has_gone = False

    def give_up(watching: "asyncio.Task[None]") -> None:
        nonlocal has_gone
        if not watching.cancelled():
            has_gone = True
            task.cancel()

    watching = asyncio.create_task(_disconnect(receive))
    watching.add_done_callback(give_up)
    try:
        yield
    except asyncio.CancelledError:
        # Others may have cancelled the task as well, and want it to end.
        if has_gone and task.cancelling() == cancelled_before + 1:
            raise CallerGone from None
        raise
    finally:
        watching.remove_done_callback(give_up)
        watching.cancel()
        if has_gone:
            task.uncancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
