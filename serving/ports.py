"""Ports, before anybody listens on them. Light: the supervisor of several workers imports nothing else of the server."""

from __future__ import annotations

import socket


class PortInUse(OSError):
    """Another process listens on the port."""


def check_port(host: str, port: int) -> None:
    """Raises PortInUse, in one sentence, if the port cannot be bound."""
    if port == 0:
        return
    with _made(host) as probe:
        _bind(probe, host, port)


def shared_port(host: str, port: int) -> socket.socket:
    """A socket that is bound, and not listening: the kernel spreads connections over those that listen on such a port.

    Only processes of the same user can share it. Port 0 takes a free one. Raises PortInUse.
    """
    made = _made(host)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if made.family is socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
        _bind(made, host, port)
    except OSError:
        made.close()
        raise
    return made


def _made(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _bind(made: socket.socket, host: str, port: int) -> None:
    try:
        made.bind((host, port))
    except OSError as error:
        raise PortInUse(f"port {port} on {host} cannot be used: {error.strerror}") from error
