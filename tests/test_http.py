"""The HTTP client: framing however it is cut, errors in words, nothing hung."""

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.fake_server import Fake, fake_server
from weir.http import Http, HttpError, Response


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake_server() as fake:
        yield fake


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.data())
def test_chunked_bodies_are_the_same_however_reads_cut_them(parts: list[bytes], data) -> None:
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire += b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=12)))

    async def main() -> bytes:
        reader = asyncio.StreamReader()
        response = Response(reader, 60)
        for low, high in pairwise([0, *cuts, len(wire)]):
            reader.feed_data(wire[low:high])
            await response.receive()
        assert response.done and response.status == 200
        return await response.body()

    assert asyncio.run(main()) == b"".join(parts)


def test_a_connection_that_is_reset_broke_the_answer_off() -> None:
    async def main() -> int:
        reader = asyncio.StreamReader()
        response = Response(reader, 60)
        reader.feed_data(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await response.receive()
        reader.set_exception(ConnectionResetError("reset"))
        with pytest.raises(HttpError, match="broken answer: reset") as caught:
            await response.body()
        return caught.value.status

    assert asyncio.run(main()) == 502


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async def main() -> bytes:
        reader = asyncio.StreamReader()
        reader.feed_data(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        reader.feed_eof()
        return await Response(reader, 60).body()

    assert asyncio.run(main()) == b"all of it"


def test_a_silent_server_is_an_error_not_a_hang() -> None:
    async def main() -> None:
        left = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until the client has had enough
            writer.close()
            await writer.wait_closed()
            left.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(HttpError, match=r"silent for 0\.1 s"):
            await Http(f"http://127.0.0.1:{port}", timeout=0.1).get("/")
        server.close()
        await left.wait()

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nab",
    ],
)
def test_broken_answers_are_errors(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(HttpError):
            await Http(f"http://127.0.0.1:{port}", timeout=60).get("/")
        server.close()

    asyncio.run(main())


def test_no_server_is_said_in_a_sentence() -> None:
    with pytest.raises(HttpError, match=r"no server answers at http://127\.0\.0\.1:9"):
        asyncio.run(Http("http://127.0.0.1:9").get("/"))


def test_error_bodies_are_quoted(server: Fake) -> None:
    body = {"prompt": json.dumps({"status": 503}), "max_tokens": 1}
    with pytest.raises(HttpError, match="HTTP 503: told to refuse") as caught:
        asyncio.run(Http(server.url).post("/v1/completions", body))
    assert caught.value.status == 503
    with pytest.raises(HttpError, match="HTTP 404"):
        asyncio.run(Http(server.url).get("/nothing"))


def test_headers_and_body_arrive(server: Fake) -> None:
    http = Http(server.url, {"Authorization": "Bearer k"})
    asyncio.run(http.post("/v1/completions", {"prompt": "é", "max_tokens": 1}))
    assert server.headers[0]["authorization"] == "Bearer k"
    assert server.bodies[0]["prompt"] == "é"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", server.headers[0]["host"])
