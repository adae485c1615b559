"""Builds a gateway from the settings, for any front end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rerankd.concurrency.pacing import Pacing
from rerankd.concurrency.worker import available_cores
from rerankd.config.settings import Settings
from rerankd.gateway.administration import Administration, read_keys
from rerankd.gateway.gateway import Gateway
from rerankd.gateway.held_bytes import HeldBytes
from rerankd.gateway.keys import ApiKeys
from rerankd.serving.assembly import running_host
from rerankd.telemetry.observer import Observer


@asynccontextmanager
async def running_gateway(settings: Settings, observer: Observer) -> AsyncIterator[Gateway]:
    """A gateway to a service whose models load in the background; leaving the context stops both.

    Raises:
        ConfigError: the API keys, the registry or the cache URL are unusable.
    """
    async with running_administration(settings, observer) as (gateway, _):
        yield gateway


@asynccontextmanager
async def running_administration(
    settings: Settings, observer: Observer
) -> AsyncIterator[tuple[Gateway, Administration]]:
    """As `running_gateway`, with what changes keys and models while it runs."""
    clients, admins = read_keys(settings)
    keys = ApiKeys(clients)
    async with running_host(settings, observer) as (service, host):
        gateway = Gateway(
            service,
            keys=keys,
            held=HeldBytes(settings.max_held_bytes),
            pacing=Pacing(cores=available_cores(), clock=service.clock),
            observer=observer,
        )
        admin_keys = ApiKeys(admins, called="admin key") if admins else None
        yield gateway, Administration(settings, keys=keys, admin_keys=admin_keys, host=host)
