"""The log lines at the start: one with addresses, models and engines, and a warning if other machines can reach a
service without API keys.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from rerankd import __version__
from rerankd.serving.model import ServedModel, Status

logger = logging.getLogger(__name__)

# The line waits this long for models to load; a download takes longer.
_PATIENCE_S: Final = 10.0
_LONGEST_REASON: Final = 300


def warn_if_exposed(host: str, port: int) -> None:
    """Warn of a service without keys, unless it listens on the loopback interface."""
    if not _is_loopback(host):
        logger.warning(
            "no API keys are set, and other machines can reach %s port %d: anyone there can use this service; "
            "set RERANKD_API_KEYS_FILE or RERANKD_API_KEYS, or listen on 127.0.0.1",
            host,
            port,
        )


async def announce(models: Sequence[ServedModel], host: str, port: int, *, keyed: bool, private: bool) -> None:
    """Write the line once the models are loaded, or after ten seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.gather(*(model.settled() for model in models), return_exceptions=True)
    url = _url(host, port)
    pages = "" if private else f"playground at {url}/, API reference at {url}/docs, "
    keys = "an API key is needed" if keyed else "no API key is needed"
    logger.info(
        "rerankd %s listens on %s (%s%s) and serves %s",
        __version__,
        url,
        pages,
        keys,
        ", ".join(map(_described, models)),
    )


def _described(model: ServedModel) -> str:
    if model.status is Status.FAILED:
        return f"{model.name} (failed: {model.reason[:_LONGEST_REASON]})"
    if model.status is Status.LOADING:
        return f"{model.name} (still loading)"
    stages = model.details.get("stages")
    details = stages if isinstance(stages, list) else [model.details.get("scorer"), model.details.get("engine")]
    return f"{model.name} ({', '.join(str(part) for part in (*details, model.remark) if part)})"


def _url(host: str, port: int) -> str:
    """A URL that a browser on this machine can open."""
    try:
        address = ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        return f"http://localhost:{port}"
    return f"http://[{host}]:{port}" if address.version == 6 else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
