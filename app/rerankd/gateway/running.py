"""Builds a gateway from the settings, for any front end."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from rerankd.config.api_keys import read_api_keys
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.gateway.gateway import Gateway
from rerankd.gateway.held_bytes import HeldBytes
from rerankd.gateway.keys import ApiKeys
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Observer

logger = logging.getLogger(__name__)


@asynccontextmanager
async def running_gateway(settings: Settings, observer: Observer) -> AsyncIterator[Gateway]:
    """A gateway to a service whose models load in the background; leaving the context stops both.

    Raises:
        ConfigError: the API keys, the registry or the cache URL are unusable.
    """
    keys = ApiKeys(read_api_keys(settings.api_keys, settings.api_keys_file))
    held = HeldBytes(settings.max_held_bytes)
    async with running_service(settings, observer) as service:
        yield Gateway(service, keys=keys, held=held, observer=observer)


async def reload_api_keys(keys: ApiKeys, settings: Settings) -> None:
    """Read the file of keys again. If it cannot be used, the keys stay as they are and the log says why."""
    try:
        fresh = await asyncio.to_thread(read_api_keys, settings.api_keys, settings.api_keys_file)
    except ConfigError as error:
        logger.error("API keys stay as they were: %s", error)
        return
    changes = keys.replace(fresh)
    logger.info("API keys were read again", extra={"keys": len(fresh), **asdict(changes)})
