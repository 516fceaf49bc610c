"""Requests of OpenAI's responses API as they come over the wire: lists of items.

Fields typed `Ignored` are hints without effect here; unknown fields are refused.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from weir.errors import BadRequest
from weir.params import Count, Temperature, TopP
from weir.server.openai import (
    ChatRequest,
    Effort,
    Ignored,
    JsonSchema,
    Message,
    OpenAIRequest,
    ResponseFormat,
    Unserved,
    parts,
)
from weir.server.tools import ChosenFunction, ChosenTool, Function, Name, Tool


class Part(Struct, forbid_unknown_fields=True):
    type: Literal["input_text", "output_text", "reasoning_text", "text"]
    text: str
    annotations: Ignored = None
    logprobs: Ignored = None


Content = str | list[Part]


class Item(Struct, forbid_unknown_fields=True):
    """A message, a function call, the output of one, or reasoning."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content | None = None
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None
    summary: Ignored = None
    encrypted_content: Ignored = None


NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class Offered(Struct, forbid_unknown_fields=True):
    """A function; tools that OpenAI's servers run are refused."""

    type: Literal["function"]
    name: Name
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class Chosen(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    name: str

    @property
    def chat(self) -> ChosenTool:
        return ChosenTool(ChosenFunction(self.name))


class Format(Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str = "answer"
    schema: dict[str, Any] | bool = True
    description: str | None = None
    strict: bool | None = None

    @property
    def chat(self) -> ResponseFormat:
        shape = JsonSchema(self.name, self.schema) if self.type == "json_schema" else None
        return ResponseFormat(self.type, shape)


class TextAsked(Struct, forbid_unknown_fields=True):
    format: Format | None = None
    verbosity: Unserved = None


class Reasoning(Struct, forbid_unknown_fields=True):
    effort: Effort | None = None
    summary: Ignored = None


class ResponsesRequest(OpenAIRequest, kw_only=True):
    """POST /v1/responses"""

    input: str | Annotated[list[Item], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    stream_options: Ignored = None
    tools: list[Offered] | None = None
    tool_choice: Literal["none", "auto", "required"] | Chosen | None = None
    parallel_tool_calls: bool | None = None
    text: TextAsked | None = None
    reasoning: Reasoning | None = None
    include: Ignored = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    top_logprobs: Unserved = None
    max_tool_calls: Unserved = None
    previous_response_id: Unserved = None
    conversation: Unserved = None
    prompt: Unserved = None

    def chat(self) -> ChatRequest:
        choice = self.tool_choice
        form = self.text.format if self.text is not None else None
        return ChatRequest(
            messages=self._messages(),
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            tools=[
                Tool("function", Function(one.name, one.description, one.parameters))
                for one in self.tools or ()
            ],
            tool_choice=choice.chat if isinstance(choice, Chosen) else choice,
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=form.chat if form is not None else None,
            reasoning_effort=self.reasoning.effort if self.reasoning is not None else None,
        )

    def _messages(self) -> list[Message]:
        """Items as messages. Consecutive calls, with the reasoning and text before them, become one
        message."""
        thought = ""
        found = [Message("developer", self.instructions)] if self.instructions else []
        items = (
            self.input if isinstance(self.input, list) else [Item(role="user", content=self.input)]
        )
        for at, item in enumerate(items):
            for name in NEEDED[item.type]:
                if getattr(item, name) is None:
                    param = f"input[{at}].{name}"
                    raise BadRequest(f"{param} is required.", param=param, code="missing_field")
            if item.type == "message":
                assert item.role is not None
                found.append(Message(item.role, parts(item.content)))
                if item.role == "assistant":
                    found[-1].reasoning_content, thought = thought or None, ""
            elif item.type == "function_call":
                if not found or found[-1].role != "assistant":
                    found.append(Message("assistant", reasoning_content=thought or None))
                    thought = ""
                called = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": called}
                found[-1].tool_calls = [*(found[-1].tool_calls or ()), call]
            elif item.type == "function_call_output":
                found.append(Message("tool", parts(item.output), tool_call_id=item.call_id))
            elif isinstance(item.content, list):
                thought += "".join(part.text for part in item.content)
        return found
