"""Routes for operators: health, metrics, information and commands."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.responses import HTMLResponse, Response

from weir import __version__
from weir.client import Client
from weir.errors import BadRequest, EngineDead, Overloaded
from weir.params import SamplingParams, TokenId
from weir.server.endpoint import Call, Reply

FIRST = -(2**31) + 1  # ahead of every client's priority


class HealthQuery(Struct, kw_only=True):
    deep: bool = False  # generate one token
    timeout: Annotated[float, Meta(ge=0.1, le=600)] = 10.0  # seconds for that token


class AbortRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Names requests by `rid` or `request_ids`, or all of them."""

    rid: str | None = None
    request_ids: list[str] = []
    abort_all: bool = False


class Aborted(Struct):
    aborted: int


class Version(Struct):
    version: str


class Load(Struct):
    server_load: int  # live jobs; vLLM's name
    running: int
    waiting: int


class UnpinPrefix(Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]


class PinPrefix(UnpinPrefix, kw_only=True):
    prompt: Annotated[str, Meta(min_length=1)] | Annotated[list[TokenId], Meta(min_length=1)]


class Pinned(Struct):
    name: str
    prompt_tokens: int  # of which whole pages stay cached


class Ordered(Struct):
    message: str


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


class ModelFacts(Struct):
    """Fields have SGLang's names."""

    model_path: str
    tokenizer_path: str
    is_generation: bool
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]


class ServerInfo(Struct):
    version: str
    health: str
    model: str
    names: list[str]
    max_model_len: int
    max_total_num_tokens: int  # capacity of the KV cache
    config: dict[str, Any]
    sampling: SamplingParams  # defaults of requests
    engine: dict[str, Any]
    stats: dict[str, Any]


async def health(call: Call, query: HealthQuery) -> Reply:
    client = call.service.client
    if client.health not in ("ready", "draining"):
        raise client.unready()
    if query.deep:
        service = call.service
        if service.probe is None or service.probe.done():  # else wait for the one in progress
            service.probe = asyncio.create_task(probe(client, query.timeout))
        await asyncio.shield(service.probe)
    return Response()


async def ready(call: Call, _: None) -> Reply:
    """Like `health`, but fails while the server drains."""
    call.service.check_open()
    if call.service.client.health != "ready":
        raise call.service.client.unready()
    return Response()


async def live(call: Call, _: None) -> Reply:
    """Succeeds while the server process answers, unless the engine is dead for good."""
    state = call.service.client.health
    if state.startswith("dead"):
        raise EngineDead(f"The engine is {state}.")
    return Response()


async def probe(client: Client, limit: float) -> None:
    """Let the engine generate one token within `limit` seconds, or raise `EngineDead`.

    An engine too busy to start the request is healthy as long as it makes steps.
    """
    before = client.stats.step
    token = next((t for t in range(client.model.vocab) if t not in client.model.eos), 0)
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    try:
        async with asyncio.timeout(limit):
            stream = client.submit([token], params, priority=FIRST)
            try:
                outcome = (await stream.collect())[0]
            finally:
                stream.abort()
        if outcome.finish_reason == "error":
            raise EngineDead(f"The engine failed to generate a token: {outcome.error}")
    except (TimeoutError, Overloaded) as error:
        if isinstance(error, Overloaded):
            await asyncio.sleep(min(1.0, limit))
        if client.stats.step == before:
            reason = f"The engine made no step while a token was due in {limit:g} s."
            raise EngineDead(reason) from None


async def models(call: Call, _: None) -> Reply:
    return ModelList([_card(call, name) for name in call.service.client.model.names])


async def model(call: Call, _: None) -> Reply:
    return _card(call, call.service.model(call.request.path_params["model_id"]))


def _card(call: Call, name: str) -> ModelCard:
    served = call.service.client.model
    return ModelCard(name, call.service.created, served.name, served.context)


async def metrics(call: Call, _: None) -> Reply:
    text = call.service.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def version(call: Call, _: None) -> Reply:
    return Version(__version__)


async def load(call: Call, _: None) -> Reply:
    stats = call.service.client.stats
    return Load(len(call.service.jobs), stats.running, stats.waiting)


async def model_info(call: Call, _: None) -> Reply:
    served, config = call.service.client.model, call.service.config.public()
    path = str(config.get("model", served.name))
    tokenizer = str(config.get("tokenizer") or path)
    return ModelFacts(path, tokenizer, True, served.context, served.vocab, served.eos)


async def server_info(call: Call, _: None) -> Reply:
    client = call.service.client
    served = client.model
    return ServerInfo(
        version=__version__,
        health="draining" if call.service.draining else client.health,
        model=served.name,
        names=served.names,
        max_model_len=served.context,
        max_total_num_tokens=int(served.info.get("kv_tokens", 0)),
        config=call.service.config.public(),
        sampling=served.sampling,
        engine=served.info,
        stats=msgspec.to_builtins(client.stats),
    )


async def flush_cache(call: Call, _: None) -> Reply:
    call.service.client.flush()
    return Ordered("Every cached prefix that is not in use is being dropped.")


async def pin_prefix(call: Call, body: PinPrefix) -> Reply:
    """Compute a prompt and pin its KV in place until it is unpinned."""
    stream = call.service.client.submit(body.prompt, SamplingParams(max_tokens=0, pin=body.name))
    try:
        outcome = (await stream.collect())[0]
    finally:
        stream.abort()
    if outcome.finish_reason != "length":
        why = outcome.error or "it was aborted before it was pinned: ask again"
        raise BadRequest(why, param="name", code="pin_refused")
    return Pinned(body.name, stream.usage.prompt_tokens)


async def unpin_prefix(call: Call, body: UnpinPrefix) -> Reply:
    call.service.client.unpin(body.name)
    return Ordered("The prefix of that name, if there is one, may be dropped.")


async def abort_request(call: Call, body: AbortRequest) -> Reply:
    if body.abort_all:
        return Aborted(call.service.abort(None))
    wanted = [*([body.rid] if body.rid else []), *body.request_ids]
    if not wanted:
        raise BadRequest("name a request in rid, or set abort_all to true", param="rid")
    return Aborted(sum(call.service.abort(identity) for identity in wanted))


async def programs(call: Call, _: None) -> Reply:
    return call.service.programs.usage()


async def openapi(call: Call, _: None) -> Reply:
    return Response(call.request.app.state.openapi, media_type="application/json")


async def docs(call: Call, _: None) -> Reply:
    """The routes as a plain web page, without scripts or external resources."""
    return HTMLResponse(call.request.app.state.docs)
