"""A local HTTP server that answers everything at once with the same small page."""

from __future__ import annotations

import asyncio

PAGE = b"<html><head><title>A Light in the Attic</title></head><body>51.77</body></html>"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (
    len(PAGE),
    PAGE,
)


class Site(asyncio.Protocol):
    """Answers each request on a connection that is kept."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER * data.count(b"\r\n\r\n"))


async def serve() -> None:
    """Serve on a free port, which is the only line of the output, until killed."""
    server = await asyncio.get_running_loop().create_server(Site, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
