"""POST /tokenize and /detokenize, GET /tokenizer_info"""

from typing import Annotated, Any

from msgspec import Meta, Struct

from weir.errors import BadRequest
from weir.params import TokenId
from weir.server.chat import rendered
from weir.server.endpoint import Call, Reply
from weir.server.openai import ChatRequest, Message, Unserved


class TokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize: a `prompt`, or `messages` through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None  # true for a prompt, false for messages
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: Unserved = None
    tools: Unserved = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[TokenId]


class Tokens(Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Prompt(Struct):
    prompt: str


class TokenizerInfo(Struct):
    """Fields are named as in tokenizer_config.json."""

    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    chat_template: str | None
    tokenizer_class: str = "PreTrainedTokenizerFast"


async def tokenize(call: Call, body: TokenizeRequest) -> Reply:
    service = call.service
    service.model(body.model)
    text = service.client.text
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("give either prompt or messages", param="prompt")
    special = body.add_special_tokens
    if body.prompt is not None:
        ids = await service.encode(body.prompt, special is not False)
    else:
        asked = ChatRequest(
            messages=body.messages or [],
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            chat_template_kwargs=body.chat_template_kwargs,
        )
        ids = await service.encode(rendered(call, asked), bool(special))
    pieces = [text.token(one) for one in ids] if body.return_token_strs else None
    return Tokens(len(ids), service.client.model.context, ids, pieces)


async def detokenize(call: Call, body: DetokenizeRequest) -> Reply:
    service = call.service
    service.model(body.model)
    return Prompt(service.client.text.decode(body.tokens, skip_special_tokens=False))


async def tokenizer_info(call: Call, _: None) -> Reply:
    """What a remote client needs to build prompts, as lm-eval's "remote" tokenizer does."""
    model, text = call.service.client.model, call.service.client.text
    names = text.special_names
    return TokenizerInfo(
        model_max_length=model.context,
        vocab_size=text.vocab,
        bos_token=names.get("bos_token"),
        eos_token=names.get("eos_token"),
        unk_token=names.get("unk_token"),
        pad_token=names.get("pad_token"),
        chat_template=text.chat_template,
    )
