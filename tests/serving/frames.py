"""Frames of HTTP/2 (RFC 9113), for what no gRPC client does by itself."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS, PING, GOAWAY = 1, 4, 6, 7
ACK, END_HEADERS = 1, 4
MAX_CONCURRENT_STREAMS = 3  # a setting, section 6.5.2


def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    """Section 4.1."""
    return struct.pack(">IBBI", len(data), kind, flags, stream)[1:] + data


def beginning(method: str, stream: int) -> bytes:
    """The frame that begins a call of that method, as /package.Service/Method."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost",
        "te": "trailers", "content-type": "application/grpc",
    }  # fmt: skip
    texts = (text.encode() for field in fields.items() for text in field)
    coded = [bytes([len(text)]) + text for text in texts]  # RFC 7541, section 6.2.2
    block = b"".join(
        b"\0" + name + value for name, value in zip(coded[::2], coded[1::2], strict=True)
    )
    return frame(HEADERS, END_HEADERS, stream, block)


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """The whole ones at the beginning: kind, flags and content of each."""
    found = []
    while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3])):
        found.append((data[3], data[4], data[9 : 9 + size]))
        data = data[9 + size :]
    return found
