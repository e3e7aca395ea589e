"""Network interfaces of this host. Linux; elsewhere the names are not known, and whoever needs one sets it."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys

SIOCGIFADDR = 0x8915  # asks for an interface's address
NAME_BYTES, REQUEST_BYTES, ADDRESS_AT = 15, 40, 20


def interface_of(address: str) -> str:
    """The name of the interface that has an address of IPv4; empty where none is found."""
    if not sys.platform.startswith("linux"):
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{REQUEST_BYTES}s", name.encode()[:NAME_BYTES])
            try:
                answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, request)
            except OSError:  # it has no address of this kind
                continue
            if socket.inet_ntoa(answer[ADDRESS_AT : ADDRESS_AT + 4]) == address:
                return name
    return ""
