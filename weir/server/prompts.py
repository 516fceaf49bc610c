"""Turns the prompt fields of requests into what `Client.submit` takes: a text or token ids."""

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from weir.core import Thought
from weir.errors import BadRequest
from weir.server.openai import MAX_PROMPTS, ChatRequest, Message
from weir.server.tools import BEGIN, written
from weir.text import Text
from weir.text.template import wordless
from weir.text.thoughts import AFTER, CLOSE, OPEN, closed, inside

RESERVED = frozenset(
    ("messages", "tools", "template", "add_generation_prompt", "continue_final_message", "self")
)


def split(prompts: str | Sequence[str | int | list[int]], param: str) -> list[str | list[int]]:
    """The prompts in OpenAI's `prompt` or `input` field: a text, ids, or a list of either."""
    if isinstance(prompts, str):
        return [prompts]
    kinds = {type(prompt) for prompt in prompts}
    if len(kinds) > 1:
        raise BadRequest(f"{param} must not mix texts, token ids and lists of ids", param=param)
    if kinds == {int}:
        return [cast(list[int], list(prompts))]
    if len(prompts) > MAX_PROMPTS:
        raise BadRequest(
            f"{param} holds {len(prompts)} prompts, but {MAX_PROMPTS} are the most at once",
            param=param,
        )
    return cast(list[str | list[int]], list(prompts))


def render(text: Text, body: ChatRequest, close: int | None = None) -> str:
    """Render the messages of a request with the model's chat template. close: the token that ends
    reasoning; None: no reasoning precedes a structured answer."""
    extra = body.chat_template_kwargs or {}
    if clash := sorted(RESERVED & extra.keys()):
        raise BadRequest(
            f"chat_template_kwargs must not hold {clash[0]}", param="chat_template_kwargs"
        )
    if (effort := body.reasoning_effort) is not None:
        extra = {"reasoning_effort": effort, "enable_thinking": effort != "none"} | extra
    go_on = bool(body.continue_final_message)
    start = not go_on if body.add_generation_prompt is None else body.add_generation_prompt
    messages = [_plain(message) for message in body.messages]
    without = [{k: v for k, v in message.items() if k != "tool_calls"} for message in messages]

    def chat(tools: list[dict[str, Any]] | None, messages: list[dict[str, Any]]) -> str:
        return text.chat(
            messages, tools, add_generation_prompt=start, continue_final_message=go_on, **extra
        )

    if messages != without and chat(None, messages) == chat(None, without):
        messages = [_spelled(message) for message in messages]
    toolbox = body.toolbox
    prompt = chat(toolbox.plain(), messages)
    if toolbox.tools and prompt == chat(None, messages):  # the template ignores tools
        prompt = chat(None, _instructed(messages, toolbox.instructions()))
    if inside(prompt) and not body.free and (close is None or not body.may_think):
        prompt = closed(prompt)
    return prompt + (BEGIN if toolbox.must and not inside(prompt) else "")


def thought(text: Text, body: ChatRequest, prompt: str, close: int | None) -> Thought | None:
    """The reasoning that may precede a structured answer to `prompt`; None if there may be none, or
    the answer is free. close: as in `render`."""
    if close is None or body.free or not body.may_think:
        return None
    begin = None
    if not inside(prompt):
        begin = text.tokenizer.token_to_id(OPEN)
        called = body.toolbox.must or body.continue_final_message
        if begin is None or called or prompt.rstrip().endswith(CLOSE):
            return None
    after = text.encode(CLOSE + AFTER + (BEGIN if body.toolbox.must else ""), False)
    return Thought(close, list(after[after.index(close) + 1 :]), begin)


def _spelled(message: dict[str, Any]) -> dict[str, Any]:
    """Write the calls of a message into its content, for templates that ignore calls."""
    calls = message.get("tool_calls")
    said = [message["content"], written(calls) if calls else ""]
    return message | {"content": "\n".join(part for part in said if part)}


def _instructed(messages: list[dict[str, Any]], instructions: str) -> list[dict[str, Any]]:
    """Put instructions first, in the system message if there is one."""
    first, *others = messages
    if first["role"] != "system":
        return [{"role": "system", "content": instructions}, *messages]
    return [first | {"content": f"{instructions}\n\n{first['content']}"}, *others]


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates expect it: absent fields are missing, not null; content is a text, or
    missing where there must be one; the role "developer", which they do not know, is "system"."""
    fields = msgspec.to_builtins(message)
    fields.pop("annotations", None)
    thought = fields.pop("reasoning")
    fields["reasoning_content"] = message.reasoning_content or thought
    if isinstance(message.content, list):
        fields["content"] = "\n".join(part.text for part in message.content)
    if message.role == "developer":
        fields["role"] = "system"
    given = {name: value for name, value in fields.items() if value is not None}
    return ({"content": ""} if wordless(given) else {}) | given
