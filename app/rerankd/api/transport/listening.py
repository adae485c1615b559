"""Checks that an address can be listened on, before models are loaded for it."""

import errno
import socket

from rerankd.errors import ConfigError

_BACKLOG = 2048


def check_address(host: str, port: int) -> None:
    """Check that an address is free and may be used. Another process may still take it afterwards.

    Raises:
        ConfigError: it is not; the message names the way out.
    """
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"host {host!r} cannot be resolved ({error}); use 127.0.0.1, or 0.0.0.0 for all") from None
    for family, kind, protocol, _, address in places:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise ConfigError(_explained(error, host, port)) from None


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on an address beside those of other processes of this service: the kernel spreads
    connections over all of them. What connects before anybody accepts waits.

    Raises:
        ConfigError: see `check_address`.
    """
    sockets = []
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listening.bind(address)
        except OSError as error:
            raise ConfigError(_explained(error, host, port)) from None
        listening.listen(_BACKLOG)
        listening.setblocking(False)  # noqa: FBT003 - socket's own
        sockets.append(listening)
        # Port 0 is the same free port for all.
        port = port or listening.getsockname()[1]
    return sockets


def _explained(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; choose another: --port {port + 1} (make serve PORT={port + 1})"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; choose 1024 or higher: --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; use --host 127.0.0.1, or --host 0.0.0.0 for all"
    return f"cannot listen on {host}:{port} ({error.strerror})"
