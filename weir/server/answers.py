"""OpenAI's answers and stream chunks, with vLLM's extra fields, as they go over the wire.

A field that is `UNSET` is left out; one that is None is sent as null, as OpenAI does.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from weir.client import Logprob, Output
from weir.server.jobs import Job
from weir.server.sse import DONE, frame


class PromptTokensDetails(Struct):
    cached_tokens: int
    loaded_tokens: dict[str, int] | UnsetType = UNSET  # of them, brought from "cpu" or "disk"


class CompletionTokensDetails(Struct):
    reasoning_tokens: int


class CompletionUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET  # where some thought


def usage(job: Job) -> CompletionUsage:
    """The usage of one HTTP request, from that of each of its prompts."""
    parts = job.usage
    prompt = sum(part.prompt_tokens for part in parts)
    completion = sum(part.completion_tokens for part in parts)
    loaded = sum((Counter(part.loaded_tokens) for part in parts), Counter[str]())
    cached = PromptTokensDetails(
        sum(part.cached_tokens for part in parts), dict(loaded) if loaded else UNSET
    )
    thought = CompletionTokensDetails(job.reasoning_tokens) if job.reasoning_tokens else UNSET
    return CompletionUsage(prompt, completion, prompt + completion, cached, thought)


class PromptLogprob(Struct):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""vLLM's: for each prompt token, by token id, itself and the most likely; null for the first."""


def prompt_logprobs(positions: list[Logprob | None]) -> PromptLogprobs:
    return [
        None
        if position is None
        else {
            str(one.token_id): PromptLogprob(one.logprob, one.rank, one.token)
            for one in (position, *position.top)
        }
        for position in positions
    ]


# /v1/chat/completions


class ChatTopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatTopLogprob):
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


def chat_logprobs(positions: list[Logprob]) -> ChatLogprobs:
    content = []
    for one in positions:
        top = [ChatTopLogprob(entry.token, entry.logprob, entry.bytes) for entry in one.top]
        content.append(ChatTokenLogprob(one.token, one.logprob, one.bytes, top))
    return ChatLogprobs(content)


class CalledFunction(Struct):
    arguments: str  # JSON; in a stream, what is new of it
    name: str | UnsetType = UNSET


class ToolCall(Struct):
    """A call of a tool; in a stream, what is new of it, with id, type and name when it begins."""

    index: int
    function: CalledFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AssistantMessage(Struct):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # another name of it


class ChatChoice(Struct):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Delta(Struct):
    content: str | UnsetType
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # another name of it
    role: Literal["assistant"] | UnsetType = UNSET  # with the first chunk of a choice


class ChatChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]  # one, or none in the last chunk, which holds the usage
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: CompletionUsage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


# /v1/completions


class CompletionLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct):
    """One choice of a prompt, whole or what is new of it in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class Completion(Struct):
    """An answer, or a chunk of a stream, whose last one has no choices but the usage."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: CompletionUsage | UnsetType | None = UNSET


async def chunks(
    job: Job,
    write: Callable[[int, Output], ChatChunk | Completion],
    last: ChatChunk | Completion,
    usage_wanted: bool,
    usage_always: bool,
) -> AsyncGenerator[bytes, None]:
    """A frame for each event, as `write` makes it of its prompt's index and the event; with usage
    in each, or in `last`, which has no choices."""
    async for burst in job.bursts():
        frames = []
        for prompt, output in burst:
            chunk = write(prompt, output)
            if usage_always:
                chunk.usage = usage(job)
            elif usage_wanted:
                chunk.usage = None
            frames.append(frame(chunk))
        yield b"".join(frames)
    last.usage = usage(job)
    yield (frame(last) if usage_wanted else b"") + DONE


# /v1/embeddings, /v1/models, /tokenize, /detokenize


class Embedding(Struct):
    index: int
    embedding: list[float] | str  # or base64 of little-endian float32
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class ModelCard(Struct):
    id: str
    created: int
    root: str
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: Literal["weir"] = "weir"
    parent: None = None


class ModelList(Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class Tokens(Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Prompt(Struct):
    prompt: str


class TokenizerInfo(Struct):
    """Under the names of tokenizer_config.json."""

    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    chat_template: str | None
    tokenizer_class: str = "PreTrainedTokenizerFast"
