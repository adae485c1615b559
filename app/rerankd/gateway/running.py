"""Builds a gateway from the settings, for any front end."""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager

from rerankd.cache import open_redis
from rerankd.concurrency.channel import Channel
from rerankd.concurrency.pacing import Pacing
from rerankd.concurrency.worker import available_cores
from rerankd.config.settings import Settings
from rerankd.gateway.administration import Administration, read_keys
from rerankd.gateway.central_rates import CentralRates
from rerankd.gateway.gateway import Gateway
from rerankd.gateway.held_bytes import HeldBytes
from rerankd.gateway.keys import ApiKeys, count_here
from rerankd.gateway.rates import Counted, Rates
from rerankd.serving.assembly import access_of, running_host
from rerankd.serving.processes.client import SchedulerEngines
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
    settings: Settings,
    observer: Observer,
    *,
    only: Collection[str | None] | None = None,
    channel: Channel | None = None,
) -> AsyncIterator[tuple[Gateway, Administration]]:
    """As `running_gateway`, with what changes keys and models while it runs. `only`: see `running_service`. `channel`:
    to the scheduler that has the engines, where this is one of several front ends.
    """
    clients, admins = read_keys(settings)
    async with AsyncExitStack() as stack:
        engines = None if channel is None else stack.enter_context(SchedulerEngines.running(channel, settings))
        counted = await stack.enter_async_context(counting(settings, observer, channel))
        service, host = await stack.enter_async_context(running_host(settings, observer, only=only, engines=engines))
        keys = ApiKeys(clients, counted=counted)
        gateway = Gateway(
            service,
            keys=keys,
            held=HeldBytes(settings.max_held_bytes),
            pacing=Pacing(cores=available_cores(), clock=service.clock),
            observer=observer,
        )
        admin_keys = ApiKeys(admins, called="admin key") if admins else None
        yield gateway, Administration(settings, keys=keys, admin_keys=admin_keys, host=host, channel=channel)


@asynccontextmanager
async def counting(
    settings: Settings, observer: Observer, channel: Channel | None = None
) -> AsyncIterator[Callable[[str, Rates], Counted]]:
    """What counts the limits of keys; with a `channel` the scheduler does, for all front ends.

    Raises:
        ConfigError: they are to be counted in Redis, and there is none that can be used.
    """
    if settings.quota_store == "memory":
        yield count_here if channel is None else CentralRates(channel).open
        return
    from rerankd.gateway.shared_rates import SharedRates  # noqa: PLC0415 - others need no client of Redis

    url = settings.cache_url.get_secret_value()
    rates = SharedRates(
        open_redis(url, access_of(settings), instead="each replica gives its share of quotas"), observer
    )
    async with rates.running():
        yield rates.open
