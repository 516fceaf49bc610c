"""Tools: describes them to a model, constrains its calls to their schemas, and parses the calls.

A call has the format of Hermes and Qwen: a JSON object between `<tool_call>` tags. A grammar
enforces it from the tag on, so the parser here needs to accept one form only.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from weir.errors import BadRequest
from weir.params import StructuredOutputs
from weir.text.stop import before

BEGIN, END = "<tool_call>\n", "\n</tool_call>"
HEAD = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')
TAIL = "}" + END

STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

INSTRUCTIONS = """You may call these functions, each described by a JSON schema:
{tools}
To call one, answer with its name and arguments as JSON between tags:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""
"""For models whose chat template ignores tools."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


class Function(Struct, forbid_unknown_fields=True):
    """`strict` or not, calls follow the parameters' schema; without one there are no parameters."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function


class ChosenFunction(Struct, forbid_unknown_fields=True):
    name: str


class ChosenTool(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: ChosenFunction


class Allowed(Struct, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: list[ChosenTool]


class AllowedTools(Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """A subset of the tools. The prompt still lists all, so that its cached prefix stays valid."""

    allowed_tools: Allowed


ToolChoice = Literal["none", "auto", "required"] | ChosenTool | AllowedTools


class CalledFunction(Struct):
    arguments: str  # JSON; in a stream, its new part
    name: str | UnsetType = UNSET


class ToolCall(Struct):
    """A tool call; in a stream, its new part: the first has id, type and name, others arguments."""

    index: int
    function: CalledFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Toolbox:
    """The tools of one request. must: whether the answer must be a call, so that the prompt ends
    with `BEGIN`. several: whether there may be several calls."""

    def __init__(self, tools: Sequence[Tool] | None, choice: ToolChoice | None, several: bool):
        """Raises `BadRequest` for duplicate tools, or a choice that names none of them."""
        self.tools = [] if choice == "none" else list(tools or ())
        chosen = [choice] if isinstance(choice, ChosenTool) else None
        self.must = chosen is not None or choice == "required"
        if isinstance(choice, AllowedTools):
            chosen = choice.allowed_tools.tools
            self.must = choice.allowed_tools.mode == "required"
        self.several = several
        known = {tool.function.name: tool.function for tool in self.tools}
        if len(known) < len(self.tools):
            raise BadRequest("two tools have the same name", param="tools")
        for name, function in known.items():
            if (function.parameters or {}).get("type", "object") != "object":
                raise BadRequest(f"the parameters of {name!r} must be an object's", param="tools")
        names = list(known) if chosen is None else [one.function.name for one in chosen]
        for name in names:
            if name not in known:
                raise BadRequest(f"tool_choice names {name!r}, no tool", param="tool_choice")
        self._callable = [known[name] for name in names]
        if self.must and not self._callable:
            raise BadRequest("tool_choice needs tools to choose from", param="tool_choice")

    def structured(self, form: StructuredOutputs | None = None) -> StructuredOutputs | None:
        """The grammar of an answer: calls that follow their schemas, with any text between, or
        instead of calls one JSON value of `form`."""
        if not self._callable:
            return form
        again = '("\\n" tag body end)*' if self.several else ""
        if self.must:
            start = f"start: body end {again}"
        elif form is not None:
            start = f"start: form | tag body end {again}"
        elif self.several:
            start = "start: (trigger body end)* TEXT"
        else:
            start = "start: TEXT | trigger body end"
        rules = [
            "%llguidance {}",
            start,
            "TEXT: /(.|\\n)*/",
            f"trigger[lazy]: TEXT {json.dumps(BEGIN)}",
            f"tag: {json.dumps(BEGIN)}",
            f"end: {json.dumps(END)}",
            f"body: %json {json.dumps(self._schema())}",
        ]
        if form is not None:
            schema = {"x-guidance": STYLE} | (form.schema or {})
            rules.append(f"form: %json {json.dumps(schema)}")
        return StructuredOutputs(grammar="\n".join(rules) + "\n")

    def _schema(self) -> dict[str, Any]:
        """The JSON object of a call."""
        definitions = {}
        calls = []
        for index, function in enumerate(self._callable):
            at = f"#/$defs/{index}"
            definitions[str(index)] = _moved(
                {"type": "object"} | (function.parameters or NO_PARAMETERS), at
            )
            calls.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": function.name}, "arguments": {"$ref": at}},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
        return {"x-guidance": STYLE, "$defs": definitions, "anyOf": calls}

    def plain(self) -> list[dict[str, Any]] | None:
        """As chat templates take them."""
        found: list[dict[str, Any]] = []
        for tool in self.tools:
            function = msgspec.to_builtins(tool.function)
            kept = {name: value for name, value in function.items() if value is not None}
            found.append({"type": "function", "function": kept})
        return found or None

    def instructions(self) -> str:
        tools = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.plain() or ())
        return INSTRUCTIONS.format(tools=tools)


def written(calls: Sequence[dict[str, Any]]) -> str:
    """Write calls of an earlier answer in the model's format. Raises `BadRequest`."""
    try:
        made = [
            {"name": one["name"], "arguments": json.loads(one["arguments"] or "{}")}
            for one in (call["function"] for call in calls)
        ]
    except (KeyError, TypeError, ValueError):
        raise BadRequest(
            "a tool call needs a function with a name, and arguments that are JSON",
            param="messages",
        ) from None
    return "\n".join(BEGIN + json.dumps(one, ensure_ascii=False) + END for one in made)


def _moved(schema: Any, root: str) -> Any:
    """Rewrite a schema's references to itself, to embed it at `root` of another schema."""
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(value, root) for name, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


class Calls:
    """Parses one streamed answer. inside: it begins within a call whose tag is in the prompt."""

    def __init__(self, inside: bool):
        self._mode = "head" if inside else "text"
        self._held = ""
        self._gap = False  # the newlines after a call are next
        self._arguments = ""  # of the open call
        self.count = 0  # calls begun

    @property
    def complete(self) -> bool:
        """Whether at least one call has begun and the last one is complete."""
        return self.count > 0 and self._mode != "arguments"

    def push(self, text: str, last: bool) -> tuple[str, list[ToolCall]]:
        """The new text and calls (or more arguments of the open call)."""
        self._held += text
        content, calls = "", list[ToolCall]()
        while True:
            if self._mode == "text":
                shown, found = self._until(BEGIN, last)
                shown = shown.lstrip("\n") if self._gap else shown
                self._gap = self._gap and not shown
                content += shown
                if not found:
                    return content, calls
                self._mode = "head"
            elif self._mode == "head":
                head = HEAD.match(self._held)
                if head is None:
                    return content, calls
                self._held = self._held[head.end() :]
                function = CalledFunction("", json.loads(head[1]))
                calls.append(ToolCall(self.count, function, f"call_{uuid4().hex[:24]}", "function"))
                self.count += 1
                self._mode, self._arguments = "arguments", ""
            else:
                shown, found = self._until(TAIL, last)
                shown, cut, _ = shown.partition("}\n")  # a tail cut short: arguments are one line
                self._arguments += shown
                if last and not (found or cut) and _whole(self._arguments[:-1]):
                    shown, cut = shown[:-1], "}"
                if shown:
                    calls.append(ToolCall(self.count - 1, CalledFunction(shown)))
                if not (found or cut):
                    return content, calls
                self._mode, self._gap = "text", True

    def _until(self, mark: str, last: bool) -> tuple[str, bool]:
        """Take the text before `mark`, and the mark if present; keep back what may begin one."""
        shown, found, self._held = before(self._held, mark, last)
        return shown, found


def _whole(text: str) -> bool:
    """Whether a text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def merged(parts: Sequence[ToolCall]) -> list[ToolCall]:
    """Join the parts of calls into whole calls."""
    calls: dict[int, ToolCall] = {}
    for part in parts:
        if isinstance(part.id, str):
            calls[part.index] = part
        else:
            calls[part.index].function.arguments += part.function.arguments
    return list(calls.values())
