"""POST /tokenize and /detokenize, GET /tokenizer_info"""

from weir.errors import BadRequest
from weir.server.answers import Prompt, TokenizerInfo, Tokens
from weir.server.endpoint import Call, Reply
from weir.server.openai import DetokenizeRequest, TokenizeRequest
from weir.server.prompts import render


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
        ids = await service.encode(render(text, body), bool(special))
    pieces = [text.token(one) for one in ids] if body.return_token_strs else None
    return Tokens(len(ids), service.client.model.context, ids, pieces)


async def detokenize(call: Call, body: DetokenizeRequest) -> Reply:
    service = call.service
    service.model(body.model)
    vocab = service.client.text.vocab
    bad = next((one for one in body.tokens if one >= vocab), None)
    if bad is not None:
        raise BadRequest(
            f"tokens holds {bad}, but token ids of this model run from 0 to {vocab - 1}",
            param="tokens",
        )
    return Prompt(service.client.text.decode(body.tokens, skip_special_tokens=False))


async def tokenizer_info(call: Call, _: None) -> Reply:
    """What a remote client needs to make prompts itself, as lm-eval's "remote" tokenizer does."""
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
