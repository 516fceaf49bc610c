"""OpenAI's requests, with vLLM's extra fields, as they come over the wire.

The type of a field admits exactly what is served: `Unserved` takes only null, `Ignored` has no
effect, and unknown names are refused. Answers are in `answers`.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from weir import params
from weir.errors import BadRequest
from weir.params import SMALL, Count, Logprobs, SamplingParams, StructuredOutputs, TokenId
from weir.server.tools import Tool, Toolbox, ToolChoice
from weir.text.thoughts import Told

MAX_PROMPTS = 2048

Unserved = Annotated[None, Meta(description="not served here: null or left out")]
Ignored = Annotated[Any, Meta(description="accepted and ignored: it cannot change the answer")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
User = Annotated[str, Meta(max_length=1024)]
RequestId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:/@-]{1,128}$")]
Prompts = (
    str
    | Annotated[
        list[str | TokenId | list[TokenId]],
        Meta(min_length=1, description="of one kind throughout"),
    ]
)
"""One text or several, or the token ids of one prompt or several. See `prompts.split`."""


ProgramId = Annotated[
    str, Meta(max_length=256, description="the program this call is of, and /its branch")
]


class OpenAIRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of every OpenAI request."""

    model: str | None = None  # None: the served model
    user: User | None = None
    program: ProgramId | None = None
    request_id: RequestId | None = None
    priority: Annotated[int, Meta(ge=-SMALL, le=SMALL)] | None = None  # smaller goes first
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=SMALL)] | None = None  # -1: all that fit
    store: Ignored = None
    metadata: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    cache_salt: Unserved = None

    @property
    def details(self) -> dict[str, Any]:
        """The fields besides prompt and sampling, as `Call.submit` takes them."""
        said = {"user": self.user, "program": self.program, "priority": self.priority}
        said |= {"request_id": self.request_id, "truncate": self.truncate_prompt_tokens}
        return {name: value for name, value in said.items() if value is not None}


OTHER_FORMS = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
OTHER_FORMS |= {"regex": "regex", "ebnf": "grammar"}
"""Other engines' fields for one of `structured_outputs`."""


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Ignored = None


class JsonSchema(Struct, forbid_unknown_fields=True):
    """The answer follows the schema whether it is `strict` or not."""

    name: str
    schema: dict[str, Any] | bool = True
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def structured(self) -> StructuredOutputs | None:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise BadRequest(
                'response_format has a json_schema if, and only if, its type is "json_schema"',
                param="response_format.json_schema",
            )
        if self.json_schema is not None:
            return StructuredOutputs(json=self.json_schema.schema)
        return StructuredOutputs(json_object=True) if self.type == "json_object" else None


class Generation(OpenAIRequest, kw_only=True):
    """Fields of both completion routes. Names shared with `SamplingParams` mean the same."""

    pin: params.Pin | None = None  # name under which the prompt stays cached
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: params.Choices | None = None
    max_tokens: Count | None = None
    min_tokens: Count | None = None
    temperature: params.Temperature | None = None
    top_p: params.TopP | None = None
    top_k: params.TopK | None = None
    min_p: params.MinP | None = None
    presence_penalty: params.Penalty | None = None
    frequency_penalty: params.Penalty | None = None
    repetition_penalty: params.Repetition | None = None
    logit_bias: dict[TokenId, params.Bias] | None = None
    allowed_token_ids: params.Allowed | None = None
    seed: params.Seed | None = None
    stop: params.Stop | None = None
    stop_token_ids: params.StopTokens | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Logprobs | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    prediction: Ignored = None  # a hint for speed
    bad_words: Unserved = None
    spaces_between_special_tokens: Unserved = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None  # vLLM's earlier names for the same
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: Ignored = None
    regex: str | None = None  # SGLang's
    ebnf: str | None = None
    return_tokens_as_token_ids: Unserved = None
    kv_transfer_params: Unserved = None
    vllm_xargs: Unserved = None

    @property
    def toolbox(self) -> Toolbox:
        """The tools that the answer may call."""
        return Toolbox(None, None, several=False)

    def sampling(self, default: SamplingParams, **changes: Any) -> SamplingParams:
        """The requested sampling parameters; `default` fills in the others. `changes`: those with
        another name in the route's request."""
        if self.stream and self.prompt_logprobs is not None:
            raise BadRequest("prompt_logprobs cannot be streamed", param="prompt_logprobs")
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options needs stream to be true", param="stream_options")
        given = {name: getattr(self, name) for name in SHARED}
        given["structured_outputs"] = self.structured[1]
        asked = {name: value for name, value in given.items() if value is not None}
        return replace(default, **(asked | changes))

    @property
    def details(self) -> dict[str, Any]:
        return super().details | {"structured": self.structured[0]}

    def details_as(self, form: str) -> dict[str, Any]:
        """`details` for a route that has another name for `response_format`."""
        found = self.details
        return found | ({"structured": form} if found["structured"] == "response_format" else {})

    @property
    def structured(self) -> tuple[str, StructuredOutputs | None]:
        """The structure of the answer, and the field that requests it (first)."""
        form = None if self.response_format is None else self.response_format.structured
        called = self.toolbox.structured(form) if self.toolbox.tools else None
        asked = {"structured_outputs": self.structured_outputs, "tools": called}
        for name, ours in OTHER_FORMS.items():
            value = getattr(self, name)
            asked[name] = None if value is None else StructuredOutputs(**{ours: value})
        asked["response_format"] = None if called else form
        found = [(name, value) for name, value in asked.items() if value is not None]
        if len(found) > 1:
            raise BadRequest(
                f"{found[1][0]} and {found[0][0]} exclude each other", param=found[1][0]
            )
        return found[0] if found else ("structured_outputs", None)


SHARED = sorted(set(Generation.__struct_fields__) & set(SamplingParams.__struct_fields__))


class TextPart(Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str
    cache_control: Ignored = None


def parts(content: str | list[Any] | None) -> str | list[TextPart]:
    """Convert the content parts of another API, which all have a text."""
    if content is None or isinstance(content, str):
        return content or ""
    return [TextPart("text", part.text) for part in content]


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # another name for it
    refusal: str | None = None
    annotations: Ignored = None
    audio: Unserved = None
    function_call: Unserved = None


class ChatRequest(Generation, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Meta(min_length=1)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: Unserved = None  # clients' templates are not run
    max_completion_tokens: Count | None = None  # the new name of max_tokens
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None  # auto by default
    parallel_tool_calls: bool | None = None  # yes by default
    modalities: list[Literal["text"]] | None = None
    echo: Unserved = None
    audio: Unserved = None
    functions: Unserved = None
    function_call: Unserved = None
    documents: Unserved = None
    mm_processor_kwargs: Unserved = None
    reasoning_effort: Effort | None = None  # a hint that the chat template may read
    thinking_token_budget: Unserved = None
    include_reasoning: bool | None = None  # vLLM's; false: reasoning is not sent
    separate_reasoning: bool | None = None  # SGLang's; false: reasoning stays in the text
    stream_reasoning: bool | None = None  # SGLang's; false: it is sent at once when it ends
    verbosity: Unserved = None
    web_search_options: Unserved = None

    @property
    def limit(self) -> str:
        """The field that bounds the answer."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def told(self) -> Told:
        """How reasoning is sent."""
        if self.include_reasoning is False:
            return "never"
        return "at once" if self.stream_reasoning is False else "as it comes"

    @property
    def may_think(self) -> bool:
        said = (self.chat_template_kwargs or {}).get("enable_thinking", self.reasoning_effort)
        return said is not False and said != "none"

    @property
    def free(self) -> bool:
        """Whether the start of the answer is unconstrained, so that the model may reason first."""
        field, form = self.structured
        held = self.response_format is not None and self.response_format.structured is not None
        return form is None or (field == "tools" and not self.toolbox.must and not held)

    @property
    def toolbox(self) -> Toolbox:
        return Toolbox(self.tools, self.tool_choice, self.parallel_tool_calls is not False)
