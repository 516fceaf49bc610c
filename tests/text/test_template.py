"""Chat templates render as their authors expect, and their failures are the request's."""

from datetime import datetime
from pathlib import Path

import pytest

from tests.text.conftest import CHATML, Build
from weir.errors import BadRequest, ConfigError
from weir.text import Text
from weir.text.template import ChatTemplate, read_template

HI = [{"role": "user", "content": "Hi"}]
TURNS = [*HI, {"role": "assistant", "content": "Hello, I"}]


def render(source: str, messages=HI, tools=None, start=True, go_on=False, **variables) -> str:
    template = ChatTemplate({"default": source}, {"bos_token": "<s>"})
    return template.render(messages, tools, start, go_on, None, variables)


def test_smollm(smollm: Text):
    assert smollm.chat(HI) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = smollm.encode(smollm.chat(HI), add_special_tokens=False)
    assert ids[0] == 1 and ids.count(2) == 2


def test_no_template_says_how_to_give_one(gemma: Text):
    with pytest.raises(BadRequest, match="--chat-template"):
        gemma.chat(HI)


def test_conversation(byte_level: Text):
    assert byte_level.chat(HI) == "<|start|>user\nHi<|end|>\n<|start|>assistant\n"
    assert byte_level.chat(HI, add_generation_prompt=False) == "<|start|>user\nHi<|end|>\n"


def test_continue_the_final_message(byte_level: Text):
    text = byte_level.chat(TURNS, add_generation_prompt=False, continue_final_message=True)
    assert text == "<|start|>user\nHi<|end|>\n<|start|>assistant\nHello, I"
    with pytest.raises(BadRequest, match="exclude each other"):
        byte_level.chat(TURNS, continue_final_message=True)
    with pytest.raises(BadRequest, match="does not show the final message"):
        render("{{ messages[0].content }}", TURNS, start=False, go_on=True)


def test_templates_by_name_and_by_request(byte_level_with: Build):
    text = byte_level_with({"default": "plain", "tool_use": "tools: {{ tools | length }}"})
    assert text.chat(HI) == "plain" and text.chat(HI, tools=[]) == "plain"
    assert text.chat(HI, tools=[{}, {}]) == "tools: 2"
    assert text.chat(HI, template="{{ x }}{{ bos_token }}", x=3) == "3<|start|>"
    with pytest.raises(BadRequest, match="not valid jinja"):
        text.chat(HI, template="{% for %}")


def test_what_templates_are_written_for():
    assert render("{% if true %}\n  x\n  {% endif %}\ny") == "  x\ny"  # trim and lstrip blocks
    loop = "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(loop) == "1"
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "aHib"
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert render("{{ strftime_now('%Y') }}") in (str(datetime.now().year + n) for n in (-1, 0))
    assert render("{{ bos_token }}{{ missing }}{{ tools is none }}{{ flag }}", flag=1) == "<s>True1"


def test_messages_are_made_plain():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "a\nb"
    for said in ("reasoning_content", "refusal"):
        message = {"role": "assistant", "content": None, said: "no"}
        assert render("[{{ messages[0].content }}]", [message]) == "[]"
    call = {"function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    message = {"role": "assistant", "tool_calls": [call]}
    shown = "{{ messages[0].tool_calls[0].function.arguments.city }}"
    assert render(shown, [message]) == "Rome"
    assert call["function"]["arguments"] == '{"city": "Rome"}'  # the caller's is left alone


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "must not be empty"),
        ([*HI, {"role": "user", "content": None}], r"messages\[1\].content is missing"),
        ([{"role": "assistant", "tool_calls": []}], r"messages\[0\].content is missing"),
        (["Hi"], r"messages\[0\] must be an object with a role"),
        ([{"content": "Hi"}], r"messages\[0\] must be an object with a role"),
        ([*HI, {"role": "user", "content": 3}], r"messages\[1\].content must be a string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "reads text only"),
        ([{"role": "user", "content": [{"type": "text"}]}], "without text"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}],
            "arguments that are not JSON",
        ),
    ],
)
def test_bad_messages(messages: list, reason: str):
    with pytest.raises(BadRequest, match=reason):
        render(CHATML, messages)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "cannot render"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ ''.__class__.__mro__ }}", "cannot render"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("{% for i in range(1000000) %}{% endfor %}", "Range too big"),
        ("{{ 1 // 0 }}", "by zero"),
    ],
)
def test_what_a_template_raises_is_a_bad_request(source: str, reason: str):
    with pytest.raises(BadRequest, match=reason):
        render(source)


def test_a_broken_template_stops_the_start(byte_level_with: Build):
    with pytest.raises(ConfigError, match="not valid jinja"):
        byte_level_with({"default": "{% if %}"})


def test_read_template(tmp_path: Path):
    path = tmp_path / "t.jinja"
    path.write_text("{{ messages }}")
    assert read_template(str(path)) == read_template("{{ messages }}") == "{{ messages }}"
    with pytest.raises(ConfigError, match="--chat-template must be"):
        read_template(str(tmp_path / "absent"))
