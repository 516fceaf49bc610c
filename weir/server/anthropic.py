"""Anthropic's requests as they come over the wire, and their conversion to OpenAI's.

Fields typed `Ignored` are hints without effect here; unknown fields are refused.
"""

import json
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from weir import params
from weir.params import Count
from weir.server.openai import (
    ChatRequest,
    Effort,
    Ignored,
    JsonSchema,
    Message,
    ResponseFormat,
    User,
    parts,
)
from weir.server.tools import ChosenFunction, ChosenTool, Function, Name, Tool


class Text(Struct, tag="text", forbid_unknown_fields=True):
    text: str
    cache_control: Ignored = None
    citations: Ignored = None


class ToolUse(Struct, tag="tool_use", forbid_unknown_fields=True):
    id: str
    name: str
    input: dict[str, Any]
    cache_control: Ignored = None
    caller: Ignored = None


class ToolResult(Struct, tag="tool_result", forbid_unknown_fields=True):
    tool_use_id: str
    content: str | list[Text] | None = None
    is_error: Ignored = None  # the content says so too
    cache_control: Ignored = None


class Thinking(Struct, tag="thinking", forbid_unknown_fields=True):
    thinking: str
    signature: Ignored = None


class RedactedThinking(Struct, tag="redacted_thinking", forbid_unknown_fields=True):
    data: Ignored = None


class Turn(Struct, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[Text | ToolUse | ToolResult | Thinking | RedactedThinking]

    def messages(self) -> list[Message]:
        """As OpenAI's messages: one for each tool result, then one for everything else."""
        blocks = [Text(self.content)] if isinstance(self.content, str) else self.content
        said = [block.text for block in blocks if isinstance(block, Text)]
        calls = [
            {"id": block.id, "type": "function", "function": called}
            for block in blocks
            if isinstance(block, ToolUse)
            for called in [{"name": block.name, "arguments": json.dumps(block.input)}]
        ]
        thought = [block.thinking for block in blocks if isinstance(block, Thinking)]
        found = [
            Message("tool", parts(block.content), tool_call_id=block.tool_use_id)
            for block in blocks
            if isinstance(block, ToolResult)
        ]
        if said or calls or not found:
            message = Message(self.role, "\n".join(said), tool_calls=calls or None)
            message.reasoning_content = "\n".join(thought) or None
            found.append(message)
        return found


class Offered(Struct, forbid_unknown_fields=True):
    """A tool that the client runs; tools that Anthropic's servers run are refused."""

    name: Name
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: Ignored = None
    eager_input_streaming: Ignored = None
    input_examples: Ignored = None


class Choice(Struct, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingAsked(Struct, forbid_unknown_fields=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Ignored = None
    display: Ignored = None


class Format(Struct, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, forbid_unknown_fields=True):
    effort: Effort | None = None
    format: Format | None = None


class Metadata(Struct):
    user_id: User | None = None


class Counted(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens: a request without the fields that only generation needs."""

    messages: Annotated[list[Turn], Meta(min_length=1)]
    model: str | None = None
    system: str | list[Text] | None = None
    tools: list[Offered] | None = None
    tool_choice: Choice | None = None
    thinking: ThinkingAsked | None = None
    output_config: OutputConfig | None = None
    cache_control: Ignored = None
    context_management: Ignored = None

    def chat(self, **more: Any) -> ChatRequest:
        """Convert to an OpenAI request; `more` are its other fields."""
        system = [Message("system", parts(self.system))] if self.system else []
        asked = ChatRequest(
            messages=system + [one for turn in self.messages for one in turn.messages()],
            **more,
        )
        last = asked.messages[-1]
        asked.continue_final_message = last.role == "assistant" and not last.tool_calls
        if self.tools:
            asked.tools = [
                Tool("function", Function(one.name, one.description, one.input_schema, one.strict))
                for one in self.tools
            ]
        if self.tool_choice is not None:
            kind = self.tool_choice.type
            named = ChosenTool(ChosenFunction(self.tool_choice.name or ""))
            asked.tool_choice = named if kind == "tool" else "required" if kind == "any" else kind
            asked.parallel_tool_calls = not self.tool_choice.disable_parallel_tool_use
        if self.output_config is not None:
            asked.reasoning_effort = self.output_config.effort
            if (form := self.output_config.format) is not None:
                asked.response_format = ResponseFormat(
                    "json_schema", JsonSchema("answer", form.schema)
                )
        if self.thinking is not None and self.thinking.type == "disabled":
            asked.reasoning_effort = "none"
        return asked


class MessagesRequest(Counted, kw_only=True):
    """POST /v1/messages. An answer ends where the context is full, whatever `max_tokens` says."""

    max_tokens: Count
    stream: bool | None = None
    stop_sequences: params.StopStrings | None = None
    temperature: params.Temperature | None = None
    top_p: params.TopP | None = None
    top_k: params.TopK | None = None
    metadata: Metadata | None = None
    service_tier: Ignored = None
    inference_geo: Ignored = None
