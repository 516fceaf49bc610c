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


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n%b\r\nok"


@pytest.mark.parametrize(
    ("keep", "served", "connections"),
    [
        (0, [[b""], [b""], [b""]], 3),
        (1, [[b"", b"", b""]], 1),
        (1, [[b"Connection: close\r\n"], [b"", b""]], 2),
        (1, [[b"", None], [b"", b""]], 2),  # closed just when the second request came
        (1, [[b"", None], [None]], 2),
        (1, [[None]], 1),
    ],
)
def test_connections_are_kept_while_the_server_does(
    keep: int, served: list[list[bytes | None]], connections: int
) -> None:
    """served: for each connection its answers' headers; None: it is closed instead."""
    made: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(asyncio.current_task())
        for headers in served[len(made) - 1]:
            await reader.readuntil(b"\r\n\r\n")
            if headers is None:
                break
            writer.write(ANSWER % headers)
            if headers:
                break
        else:
            await reader.read()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        http = Http(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", keep=keep)
        for _ in range(3):
            try:
                assert await http.get("/") == b"ok"
            except HttpError as error:
                assert error.status == 502 and served[-1] == [None]
                break
        else:
            assert served[-1] != [None]
        http.close()
        server.close()
        await asyncio.gather(*filter(None, made))

    asyncio.run(main())
    assert len(made) == connections


def test_a_connection_that_was_closed_while_idle_is_not_used() -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ANSWER % b"")
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        http = Http(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", keep=1)
        for _ in range(2):
            assert await http.get("/") == b"ok"
            ((reader, _),) = http.idle
            assert await reader.read() == b"" and reader.at_eof()
        http.close()
        server.close()
        with pytest.raises(HttpError, match="no server answers"):
            await http.get("/")

    asyncio.run(main())
    assert len(asked) == 2
