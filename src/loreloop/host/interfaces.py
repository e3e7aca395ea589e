"""Network interfaces of this host. Linux; elsewhere the names are not known, and whoever needs one sets it."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys

from loreloop.protocol.errors import WrongSettings

SIOCGIFADDR = 0x8915  # asks for an interface's address
NAME_BYTES, REQUEST_BYTES, ADDRESS_AT = 15, 40, 20


def interface_of(address: str) -> str:
    """The name of the interface that has an address of IPv4; empty where none is found."""
    return next((name for _, name in socket.if_nameindex() if _address(name) == address), "")


def address_of(interface: str) -> str:
    """An interface's address of IPv4. WrongSettings where it has none."""
    if address := _address(interface):
        return address
    names = ", ".join(name for _, name in socket.if_nameindex())
    raise WrongSettings(
        f"The interface {interface} (`engine.interface`) has no address on this host, which has {names}."
    )


def _address(interface: str) -> str:
    if not sys.platform.startswith("linux"):
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack(f"{REQUEST_BYTES}s", interface.encode()[:NAME_BYTES])
        try:
            answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, request)
        except OSError:  # there is no such interface, or it has no address of this kind
            return ""
    return socket.inet_ntoa(answer[ADDRESS_AT : ADDRESS_AT + 4])
