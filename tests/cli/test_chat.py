"""A talk in the terminal: history, commands, and errors that do not end it."""

import asyncio

import pytest

from tests.bench.fake_server import Fake
from weir.bench.talk import Talk, first_model
from weir.cli import main
from weir.cli.chat import converse
from weir.http import Http, HttpError


def talk(server: Fake, *lines: str) -> tuple[Talk, str]:
    """A talk in which the user types `lines`, and everything that was shown."""
    made, shown, typed = Talk(Http(server.url), "fake", {"max_tokens": 3}), [], iter(lines)

    def listen(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    converse(made, listen, shown.append)
    return made, "".join(shown)


def test_every_turn_carries_the_history(server: Fake) -> None:
    made, shown = talk(server, "one", "", "two")
    assert shown.count("w0 w1 w2 \n") == 2
    assert [m["content"] for m in server.bodies[1]["messages"]] == ["one", "w0 w1 w2 ", "two"]
    assert [m["role"] for m in made.messages] == ["user", "assistant"] * 2


def test_reset_keeps_the_system_prompt_and_system_sets_it(server: Fake) -> None:
    made, _ = talk(server, "/system Be brief.", "one", "/reset", "two")
    assert [m["role"] for m in made.messages] == ["system", "user", "assistant"]
    assert server.bodies[1]["messages"][0] == {"role": "system", "content": "Be brief."}
    made, _ = talk(server, "/system x", "/system", "one", "/quit", "never")
    assert [m["role"] for m in made.messages] == ["user", "assistant"]


def test_an_unknown_command_is_not_sent(server: Fake) -> None:
    _, shown = talk(server, "/help")
    assert "no such command: /help" in shown
    assert server.bodies == []


def test_a_refused_message_is_forgotten_and_the_talk_goes_on(server: Fake) -> None:
    made, shown = talk(server, '{"status": 400}', "two")
    assert "[HTTP 400: told to refuse]" in shown
    assert [m["content"] for m in made.messages] == ["two", "w0 w1 w2 "]


def test_an_interrupted_answer_is_remembered_as_far_as_it_was_heard(server: Fake) -> None:
    made, shown, lines = (
        Talk(Http(server.url), "fake", {"max_tokens": 3}),
        [],
        iter(["one", "/quit"]),
    )

    def show(text: str) -> None:
        shown.append(text)
        if text == "w1 ":
            raise KeyboardInterrupt

    converse(made, lambda prompt: next(lines), show)
    assert shown[-1] == " [stopped]\n"
    assert made.messages[-1] == {"role": "assistant", "content": "w0 w1 "}


def test_the_command_talks_to_a_url(
    server: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["hello"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines, "/quit"))
    assert main(["chat", "--url", server.url, "--max-tokens", "2", "--api-key", "k"]) == 0
    assert "w0 w1 " in capsys.readouterr().out
    assert server.headers[0]["authorization"] == "Bearer k"
    assert server.bodies[0]["model"] == "fake"


def test_a_server_that_names_no_model() -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(HttpError, match="give the model's name"):
            await first_model(Http(f"http://127.0.0.1:{port}"))
        server.close()

    asyncio.run(main())
