"""Patterns, schemas and tools that mean harm, over HTTP, against a server that has a model."""

from typing import Any

import httpx
import pytest

from weir.bench.private import Private, private

PROMPT = {"prompt": "Say:", "max_tokens": 8, "temperature": 0}
TALK = {"messages": [{"role": "user", "content": "Say:"}], "max_tokens": 8}
NOBODY = {"type": "function", "function": {"name": "g"}}
BOMB = "((((a{1,900}){1,900}){1,900}){1,900})"


def tool(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


TOOL = tool({"type": "object"})


@pytest.fixture(scope="module")
def server():
    flags = ["--max-model-len", "256", "--grammar-timeout", "4", "--max-num-seqs", "4"]
    with private("smollm2-135m", flags) as running:
        yield running


def post(server: Private, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, headers=server.headers, timeout=60)


def shaped(name: str, value: Any) -> dict[str, Any]:
    return PROMPT | {"structured_outputs": {name: value}}


def schema(value: Any) -> dict[str, Any]:
    return TALK | {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
    }


NATIVE, WORDS, CHATS = "/generate", "/v1/completions", "/v1/chat/completions"
REFUSED = [
    (WORDS, shaped("regex", BOMB), "takes more than 4 s"),
    (WORDS, shaped("regex", r"(a)\1"), "backreference"),
    (WORDS, shaped("regex", "(?<=a)b"), "lookbehind"),
    (WORDS, shaped("regex", "a{99999999}"), "quantifier of more than"),
    (WORDS, shaped("regex", "(" * 5000), "nested more than"),
    (WORDS, shaped("regex", "(?!a)a"), "nothing matches"),
    (WORDS, shaped("choice", []), "choice must hold texts"),
    (WORDS, shaped("grammar", "root ::= [a-z"), "grammar cannot be read"),
    (WORDS, shaped("grammar", "start: nobody"), "nobody"),
    (WORDS, PROMPT | {"guided_regex": "[z-a]"}, "wrong way round"),
    (WORDS, PROMPT | {"guided_json": '{"type": '}, "not valid JSON"),
    (NATIVE, {"text": "x", "sampling_params": {"regex": r"(?P<a>b)(?P=a)"}}, "backreference"),
    (NATIVE, {"text": "x", "sampling_params": {"ebnf": "root ::= ("}}, "grammar"),
    (NATIVE, {"text": "x", "sampling_params": {"json_schema": "{"}}, "not valid JSON"),
    (CHATS, schema({"not": {"type": "string"}}), "not"),
    (CHATS, schema({"type": "strange"}), "strange"),
    (CHATS, schema({"$ref": "#/$defs/a"}), "/$defs/a"),
    (CHATS, schema({"type": "string", "pattern": f"^{BOMB}$"}), "more than 4 s"),
    (CHATS, schema({"type": "string", "pattern": "[z-a]"}), "regex"),
    (CHATS, schema({"type": "object", "properties": 5}), "properties"),
    (CHATS, TALK | {"tools": [TOOL], "tool_choice": NOBODY}, "names 'g', no tool"),
    (CHATS, TALK | {"tool_choice": "required"}, "needs tools"),
    (CHATS, TALK | {"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
    (CHATS, TALK | {"tools": [tool({"not": {}})], "tool_choice": "required"}, "not"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "says"), REFUSED)
def test_what_cannot_be_held_to_is_one_clear_400(server, path, body, says):
    answer = post(server, path, body)
    assert answer.status_code == 400, answer.text[:500]
    error = answer.json()["error"]
    assert says in error["message"] and len(error["message"]) < 2000
    assert "Traceback" not in error["message"]


def test_the_server_lives_and_is_idle_afterwards(server):
    assert post(server, WORDS, shaped("regex", "[a-z]{3}")).json()["choices"][0]["text"].isalpha()
    assert (
        httpx.get(f"{server.url}/health?deep=true", headers=server.headers, timeout=60).status_code
        == 200
    )
    stats = httpx.get(f"{server.url}/server_info", headers=server.headers, timeout=60).json()[
        "stats"
    ]
    assert not any(stats[name] for name in ("running", "waiting", "pages_used"))


def test_numbers_beyond_64_bits_in_a_schema_are_no_error(server):
    body = schema({"type": "integer", "minimum": 10**30, "maximum": 10**30 + 9})
    answer = post(server, CHATS, body | {"max_tokens": 64})
    assert answer.status_code == 200, answer.text[:500]
    assert 10**30 <= int(answer.json()["choices"][0]["message"]["content"]) < 10**30 + 10
