"""Connections of clients that are broken, slow or ill-meant; each gives the bytes that it sends."""

from __future__ import annotations

import gzip
import json
import random
import socket
from collections.abc import Callable, Iterator

GOOD = json.dumps({"inputs": [["w5 w6"], ["w7", "w8 w9"]]}).encode()
LARGEST = 2_000_000
PATHS = (b"/predict", b"/classify", b"/rerank", b"/vertex", b"/", b"/nothing")


def post(
    body: bytes, *headers: bytes, path: bytes = b"/predict", length: bytes | None = None
) -> bytes:
    size = b"%d" % len(body) if length is None else length
    lines = [
        b"POST %b HTTP/1.1" % path,
        b"Host: x",
        b"Content-Type: application/json",
        b"Content-Length: " + size,
        b"Connection: close",
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def changed_bytes(choose: random.Random) -> bytes:
    body = bytearray(GOOD)
    for _ in range(choose.randint(1, 6)):
        body[choose.randrange(len(body))] = choose.randrange(256)
    return post(bytes(body[: choose.randint(0, len(body))]), path=choose.choice(PATHS))


def other_encodings(choose: random.Random) -> bytes:
    body = choose.choice(
        [
            GOOD.decode().encode("utf-16"),
            GOOD.decode().encode("utf-32-le"),
            b"\xef\xbb\xbf" + GOOD,
            '{"inputs": "caf\u00e9"}'.encode("latin-1"),
            b'{"inputs": "\\ud800"}',
            b'{"inputs": "\\u0000\xf0\x9f\x98\x80"}',
            b'{"inputs": "\xed\xa0\x80"}',
            gzip.compress(GOOD),
        ]
    )
    header = choose.choice([b"Content-Encoding: gzip", b"Content-Encoding: br", b"X-A: \xff\xfe"])
    return post(body, header)


def sizes(choose: random.Random) -> bytes:
    count = choose.choice([0, 1, 100, 5_000, 65_536])
    body = choose.choice(
        [
            b"[" * (31 * count),
            b'{"a":' * (5 * count),
            b"9" * (6 * count),
            json.dumps({"inputs": "w5 " * count}).encode(),
            json.dumps({"inputs": [["w5"]] * min(count, 5_000)}).encode(),
            json.dumps({"input": [[5] * 10] * min(count, 10_000)}).encode(),
            json.dumps({f"k{n}": n for n in range(min(count, 5_000))}).encode(),
        ]
    )
    return post(body[: LARGEST + 1], path=choose.choice(PATHS))


def wrong_lengths(choose: random.Random) -> bytes:
    length = choose.choice([b"-1", b"1e9", b"99999999999999999999", b"0x10", b"", b"5, 6", b"3"])
    return post(GOOD, length=length)


def wrong_chunks(choose: random.Random) -> bytes:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n"
    chunk = choose.choice(
        [b"zz\r\n", b"-5\r\nabc\r\n", b"ffffffffffffffff\r\n", b"5\r\n{}\r\n0\r\n"]
    )
    both = choose.choice([b"", b"Content-Length: 5\r\n"])
    return head + both + b"\r\n" + chunk


def header_floods(choose: random.Random) -> bytes:
    count = choose.choice([50, 500, 5000])
    flood = choose.choice(
        [
            [b"X-%d: %d" % (n, n) for n in range(count)],
            [b"X-Long: " + b"a" * 40 * count],
            [b"Cookie: " + b"a=b; " * count],
            [b"Content-Length: 3"] * 2,
            [b"Transfer-Encoding: chunked"] * 2,
        ]
    )
    return post(GOOD, *flood)


def no_requests(choose: random.Random) -> bytes:
    return choose.choice(
        [
            b"",
            b"\r\n" * 100,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET " + b"/a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"DELETE /health HTTP/1.1\r\nHost: x\r\n\r\n",
            choose.randbytes(choose.randint(1, 2000)),
        ]
    )


def pipelined(choose: random.Random) -> bytes:
    return post(GOOD).replace(b"Connection: close\r\n", b"") * choose.randint(2, 8)


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    changed_bytes,
    other_encodings,
    sizes,
    wrong_lengths,
    wrong_chunks,
    header_floods,
    no_requests,
    pipelined,
)


def send(port: int, data: bytes, choose: random.Random) -> Iterator[int]:
    """The statuses of the replies; some clients hang up before they come, some half-way."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        if choose.random() < 0.1:
            client.sendall(data[: choose.randint(0, len(data))])
            return
        reply = b""
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65_536):
                reply += part
        except TimeoutError:
            raise
        except OSError:  # refused before all was read
            pass
    for line in reply.split(b"HTTP/1.1 ")[1:]:
        yield int(line[:3])


def slow_clients(port: int, count: int) -> list[socket.socket]:
    """They send the beginning of a request, and nothing more until they are closed."""
    data, clients = post(GOOD), []
    for number in range(count):
        client = socket.create_connection(("127.0.0.1", port), timeout=60)
        client.sendall(data[: 1 + number % (len(data) - 1)])
        clients.append(client)
    return clients
