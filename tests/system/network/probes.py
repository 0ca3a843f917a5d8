# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries of one thing each, made inside a machine. All return a JSON object with an outcome and what came back.

open: an answer came. refused: a reset, or REFUSED from a resolver. unreachable: an ICMP error, or no route.
timeout: nothing came. closed: the connection ended with nothing said.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from typing import Any

import dns_messages

Result = dict[str, Any]
TIMEOUT = 1.2
UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.EADDRNOTAVAIL)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def failure(error: OSError | EOFError) -> Result:
    if isinstance(error, TimeoutError):
        return {"outcome": "timeout"}
    if isinstance(error, (ConnectionRefusedError, ConnectionResetError, BrokenPipeError)):
        return {"outcome": "refused"}
    if isinstance(error, (EOFError, ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return {"outcome": "closed"}
    if isinstance(error, ssl.SSLError):
        return {"outcome": "closed", "error": str(error)}
    if isinstance(error, OSError) and error.errno in UNREACHABLE:
        return {"outcome": "unreachable", "error": errno.errorcode.get(error.errno or 0, "")}
    return {"outcome": "error", "error": str(error)}


def connect(address: str, port: int, source: str = "", timeout: float = TIMEOUT) -> socket.socket:
    return socket.create_connection((address, port), timeout, (source, 0) if source else None)


def line(stream: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        more = stream.recv(65536)
        if not more:
            raise EOFError
        data += more
    return data


def tcp(address: str, port: int, source: str = "", timeout: float = TIMEOUT) -> Result:
    """Connect to an echo server, which says who it is."""
    try:
        with connect(address, port, source, timeout) as stream:
            return {"outcome": "open", **json.loads(line(stream))}
    except (OSError, EOFError) as error:
        return failure(error)


def read_all(stream: socket.socket) -> bytes:
    data = b""
    while more := stream.recv(65536):
        data += more
    return data


def response(data: bytes) -> Result:
    """What an HTTP answer said; the server's own report when it is one."""
    head, _empty, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/"):
        return {"outcome": "closed"}
    result: Result = {"outcome": "open", "status": int(head.split()[1])}
    try:
        result.update(json.loads(body))
    except ValueError:
        result["body"] = body[:200].decode(errors="replace")
    return result


def request(host: str, path: str = "/", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def http(address: str, port: int = 80, host: str = "", path: str = "/", timeout: float = TIMEOUT) -> Result:
    """Ask an HTTP server."""
    try:
        with connect(address, port, "", timeout) as stream:
            stream.sendall(request(host or address, path))
            return response(read_all(stream))
    except (OSError, EOFError) as error:
        return failure(error)


def insecure() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def tls(
    address: str, port: int = 443, sni: str = "", host: str = "", path: str = "/", timeout: float = TIMEOUT
) -> Result:
    """Ask an HTTP server over TLS. sni, host: the two names that a client says; nothing verifies the certificate."""
    try:
        with (
            connect(address, port, "", timeout) as stream,
            insecure().wrap_socket(stream, server_hostname=sni or None) as wrapped,
        ):
            wrapped.sendall(request(host or sni or address, path))
            return response(read_all(wrapped))
    except (OSError, EOFError) as error:
        return failure(error)


def udp(
    address: str, port: int, data: str = "?", source: str = "", source_port: int = 0, timeout: float = TIMEOUT
) -> Result:
    """Send a datagram, wait for one back."""
    try:
        with socket.socket(family(address), socket.SOCK_DGRAM) as end:
            end.settimeout(timeout)
            if source or source_port:
                end.bind((source, source_port))
            end.connect((address, port))
            end.send(data.encode())
            answer = end.recv(65536)
    except OSError as error:
        return failure(error)
    try:
        return {"outcome": "open", **json.loads(answer)}
    except ValueError:
        return {"outcome": "open", "data": answer.decode(errors="replace")}


def dns(
    server: str, name: str, kind: str = "A", transport: str = "udp", port: int = 0, timeout: float = TIMEOUT
) -> Result:
    """Ask a resolver over udp, tcp, dot or doh. refused is the rcode REFUSED; answers: data of the wanted type."""
    message = dns_messages.query(int.from_bytes(os.urandom(2), "big"), name, kind)
    try:
        answer = _TRANSPORTS[transport](server, port, message, timeout)
    except (OSError, EOFError) as error:
        return failure(error)
    result = dns_messages.parse(answer)
    result["outcome"] = "refused" if result["rcode"] == "REFUSED" else "open"
    result["records"] = result.pop("answers")
    result["answers"] = [data for _name, found, _ttl, data in result["records"] if found == kind]
    return result


def _dns_udp(server: str, port: int, message: bytes, timeout: float) -> bytes:
    with socket.socket(family(server), socket.SOCK_DGRAM) as end:
        end.settimeout(timeout)
        end.connect((server, port or 53))
        end.send(message)
        return end.recv(65536)


def _framed(stream: socket.socket, message: bytes) -> bytes:
    stream.sendall(struct.pack(">H", len(message)) + message)
    data = b""
    while len(data) < 2 or len(data) < 2 + struct.unpack(">H", data[:2])[0]:
        more = stream.recv(65536)
        if not more:
            raise EOFError
        data += more
    return data[2:]


def _dns_tcp(server: str, port: int, message: bytes, timeout: float) -> bytes:
    with connect(server, port or 53, "", timeout) as stream:
        return _framed(stream, message)


def _dns_tls(server: str, port: int, message: bytes, timeout: float) -> bytes:
    with connect(server, port or 853, "", timeout) as stream, insecure().wrap_socket(stream) as wrapped:
        return _framed(wrapped, message)


def _dns_https(server: str, port: int, message: bytes, timeout: float) -> bytes:
    with connect(server, port or 443, "", timeout) as stream, insecure().wrap_socket(stream) as wrapped:
        head = f"POST /dns-query HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/dns-message\r\n"
        wrapped.sendall(f"{head}Content-Length: {len(message)}\r\n\r\n".encode() + message)
        return read_all(wrapped).partition(b"\r\n\r\n")[2]


_TRANSPORTS = {"udp": _dns_udp, "tcp": _dns_tcp, "dot": _dns_tls, "doh": _dns_https}


def checksum(data: bytes) -> int:
    """The sum of RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(address: str, data: str = "fleet", timeout: float = TIMEOUT, kind: int = 0) -> Result:
    """Send an ICMP echo request (or another type), wait for the reply to it."""
    v6 = ":" in address
    number = int.from_bytes(os.urandom(2), "big")
    wanted = 129 if v6 else 0
    head = struct.pack(">BBHHH", kind or (128 if v6 else 8), 0, 0, number, 1)
    body = data.encode()
    if not v6:  # the kernel sums ICMPv6 itself
        head = head[:2] + struct.pack(">H", checksum(head + body)) + head[4:]
    limit = time.monotonic() + timeout
    try:
        with socket.socket(
            family(address), socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
        ) as end:
            end.connect((address, 0))
            end.send(head + body)
            while (left := limit - time.monotonic()) > 0:
                end.settimeout(left)
                got = end.recv(65536)
                got = got if v6 else got[(got[0] & 15) * 4 :]
                if got[0] == wanted and got[4:6] == struct.pack(">H", number):
                    return {"outcome": "open", "data": got[8:].decode(errors="replace")}
    except OSError as error:
        return failure(error)
    return {"outcome": "timeout"}


def proxy(
    address: str,
    port: int,
    target: str,
    sni: str | None = None,
    host: str = "",
    method: str = "CONNECT",
    pause: float = 0,
    timeout: float = 2,
) -> Result:
    """Ask a proxy. target: HOST:PORT of CONNECT, the URL else. sni: speak TLS inside it; None waits for an echo server.

    The status is the proxy's. What the server behind the tunnel says shows that there is one: squid says 200 before it
    looks at the name in the TLS. pause: seconds between the handshake and the request inside it.
    """
    try:
        with connect(address, port, "", timeout) as stream:
            if method != "CONNECT":
                stream.sendall(request(host or target.split("/")[2], target, method))
                return response(read_all(stream))
            stream.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                more = stream.recv(1)
                if not more:
                    return {"outcome": "closed"}
                head += more
            status = int(head.split()[1])
            if status != 200:
                return {"outcome": "refused", "proxy_status": status}
            try:
                if sni is None:
                    return {"outcome": "open", "proxy_status": status, **json.loads(line(stream))}
                with insecure().wrap_socket(stream, server_hostname=sni or None) as wrapped:
                    time.sleep(pause)
                    wrapped.sendall(request(host or sni or target.rpartition(":")[0]))
                    return {**response(read_all(wrapped)), "proxy_status": status}
            except (OSError, EOFError) as error:
                return {**failure(error), "proxy_status": status}
    except (OSError, EOFError) as error:
        return failure(error)


def frames(interface: str, frames: list[str], times: int = 1) -> Result:
    """Put Ethernet frames on an interface, as they are."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as end:
        end.bind((interface, 0))
        for _turn in range(times):
            for frame in frames:
                try:
                    end.send(bytes.fromhex(frame))
                except OSError as error:
                    return failure(error)
    return {"outcome": "sent"}


def protocol(address: str, number: int, data: str) -> Result:
    """Send an IP packet of another protocol, with these hexadecimal digits as its payload."""
    try:
        with socket.socket(family(address), socket.SOCK_RAW, number) as end:
            end.sendto(bytes.fromhex(data), (address, 0))
    except OSError as error:
        return failure(error)
    return {"outcome": "sent"}


PROBES: Mapping[str, Any] = {
    probe.__name__: probe for probe in (tcp, http, tls, udp, dns, ping, proxy, frames, protocol)
}
