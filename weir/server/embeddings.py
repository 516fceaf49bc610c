"""POST /v1/embeddings"""

import base64
import struct
from typing import Literal

from msgspec import Struct

from weir.errors import EngineDead
from weir.params import SamplingParams
from weir.server.endpoint import Call, Reply
from weir.server.openai import OpenAIRequest, Prompts, Unserved
from weir.server.prompts import split


class EmbeddingRequest(OpenAIRequest, kw_only=True):
    """POST /v1/embeddings"""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["mean", "last"] | None = None  # over the hidden states; mean by default
    add_special_tokens: bool | None = None
    dimensions: Unserved = None


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


async def embeddings(call: Call, body: EmbeddingRequest) -> Reply:
    model = call.service.model(body.model)
    job = await call.submit(
        split(body.input, "input"),
        SamplingParams(max_tokens=0),
        names={"prompt": "input"},
        pool=body.pooling or "mean",
        add_special_tokens=body.add_special_tokens is not False,
        **body.details,
    )
    await job.collect()
    data = []
    for index, stream in enumerate(job.streams):
        if stream.vector is None:
            raise EngineDead("The request was aborted before its vector was computed.")
        packed = body.encoding_format == "base64"
        data.append(Embedding(index, _pack(stream.vector) if packed else stream.vector))
    tokens = sum(part.prompt_tokens for part in job.usage)
    return Embeddings(data, model, EmbeddingUsage(tokens, tokens))


def _pack(vector: list[float]) -> str:
    """Base64 of little-endian float32, as OpenAI's clients unpack it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
