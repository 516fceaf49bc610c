"""Renders a conversation with a model's own chat template, in a sandbox.

The environment is that of transformers' `apply_chat_template`, for which templates are written
(huggingface.co/docs/transformers/chat_templating_writing). Templates come with models and are not
trusted: they run in jinja2's immutable sandbox, and what they raise is an error of the request.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from weir.errors import BadRequest, ConfigError

_END_OF_FINAL = "\ue000end of the final message\ue000"


class _Generation(Extension):
    """`{% generation %}` marks text for training; for inference it does nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As jinja2's own filter, but without escaping HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def read_template(value: str) -> str:
    """The template given by `--chat-template`: a file's content or `value` itself. Raises
    `ConfigError`."""
    if "{{" in value or "{%" in value:
        return value
    try:
        return Path(value).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--chat-template must be a jinja file or a template itself: {error}"
        ) from error


class ChatTemplate:
    """A model's templates by name (most have only "default") and its special tokens."""

    def __init__(self, sources: Mapping[str, str], variables: Mapping[str, str]):
        """`variables`: bos_token, eos_token, ... as templates see them. Raises `ConfigError`."""
        self.sources = sources
        self.variables = variables
        self._templates = {name: self._compile(source) for name, source in sources.items()}

    @staticmethod
    def _compile(source: str) -> Template:
        try:
            return _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"the chat template is not valid jinja: {error}") from error

    def _choose(self, source: str | None, tools: Any) -> Template:
        if source is not None:
            try:
                return self._compile(source)
            except ConfigError as error:
                raise BadRequest(str(error), param="chat_template") from error
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise BadRequest(
                "this model has no chat template, as base models have none: send plain prompts "
                "(/v1/completions), or give it one with --chat-template",
                param="messages",
            )
        return self._templates[name]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        source: str | None,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt text. `source`: a template to use instead. Raises `BadRequest`."""
        template = self._choose(source, tools)
        conversation = [_message(n, message) for n, message in enumerate(messages)]
        if not conversation:
            raise BadRequest("messages must not be empty", param="messages")
        if continue_final_message:
            if add_generation_prompt:
                raise BadRequest(
                    "continue_final_message and add_generation_prompt exclude each other",
                    param="continue_final_message",
                )
            conversation[-1]["content"] += _END_OF_FINAL
        context = dict(self.variables) | {"documents": None} | dict(variables)
        try:
            text = template.render(
                context,
                messages=conversation,
                tools=tools or None,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template is code: it may raise anything
            raise BadRequest(
                f"the chat template cannot render these messages: {error or type(error).__name__}",
                param="messages",
            ) from error
        return _continued(text) if continue_final_message else text


def _continued(text: str) -> str:
    head, mark, _ = text.rpartition(_END_OF_FINAL)
    if not mark:
        raise BadRequest(
            "the chat template does not show the final message, so it cannot be continued",
            param="continue_final_message",
        )
    return head


def _message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that all templates can read: content is a string, tool arguments are objects."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadRequest(f"{where} must be an object with a role", param=where)
    if message.get("content") is None and not wordless(message):
        raise BadRequest(
            f"{where}.content is missing: only an assistant that calls tools or reasons needs none",
            param=f"{where}.content",
        )
    plain = copy.deepcopy(dict(message))
    plain["content"] = _content(f"{where}.content", message.get("content"))
    for call in plain.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"] or "{}")
            except ValueError as error:
                raise BadRequest(
                    f"{where} calls a tool with arguments that are not JSON", param=where
                ) from error
    return plain


def wordless(message: Mapping[str, Any]) -> bool:
    """Whether a message may have no content."""
    instead = ("tool_calls", "reasoning_content", "refusal")
    return message["role"] == "assistant" and any(message.get(name) for name in instead)


def _content(where: str, content: Any) -> str:
    """Content as one string; text parts are joined by newlines."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be a string or a list of parts", param=where)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(part, dict) and part.get("type", "text") not in ("text", "input_text"):
            raise BadRequest(
                f"{where} has a part of type {part['type']!r}, but this model reads text only",
                param=where,
            )
        if not isinstance(text, str):
            raise BadRequest(f"{where} has a text part without text", param=where)
        texts.append(text)
    return "\n".join(texts)
