"""The HTTP application: its routes and the middleware in front of them."""

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from weir.client import Client
from weir.config import Config
from weir.errors import WeirError
from weir.server import (
    anthropic,
    chat,
    completions,
    embeddings,
    items,
    logs,
    messages,
    native,
    openai,
    operations,
    responses,
    tokens,
)
from weir.server.edge import Edge, explain
from weir.server.endpoint import Endpoint, Serving
from weir.server.metrics import Metrics
from weir.server.page import page
from weir.server.programs import ProgramList
from weir.server.schema import document
from weir.server.service import Service
from weir.server.tracing import Tracer

GET, POST, BOTH = ("GET",), ("POST",), ("GET", "POST")

ENDPOINTS = (
    Endpoint(
        "/v1/chat/completions", chat.chat, "Answer a conversation.", POST, openai.ChatRequest,
        chat.ChatCompletion, chunk=chat.ChatChunk, generates=True,
    ),
    Endpoint(
        "/v1/completions", completions.completions, "Continue one or several prompts.", POST,
        completions.CompletionRequest, completions.Completion, chunk=completions.Completion,
        generates=True,
    ),
    Endpoint(
        "/v1/responses", responses.responses, "Answer a conversation, given as items.", POST,
        items.ResponsesRequest, responses.Response, chunk=responses.Event, generates=True,
    ),
    Endpoint(
        "/v1/messages", messages.messages, "Answer a conversation, in Anthropic's words.", POST,
        anthropic.MessagesRequest, messages.Answer, chunk=messages.Event, generates=True,
    ),
    Endpoint(
        "/v1/messages/count_tokens", messages.count, "How long its prompt is.", POST,
        anthropic.Counted, messages.InputTokens,
    ),
    Endpoint(
        "/v1/embeddings", embeddings.embeddings,
        "Hidden states of texts, pooled to one vector each.", POST, embeddings.EmbeddingRequest,
        embeddings.Embeddings, generates=True,
    ),
    Endpoint(
        "/generate", native.generate, "Continue prompts, in SGLang's words.", POST,
        native.GenerateRequest, native.Generated | list[native.Generated], chunk=native.Generated,
        generates=True,
    ),
    Endpoint(
        "/v1/models", operations.models, "The models served.", GET, answer=operations.ModelList
    ),
    Endpoint(
        "/v1/models/{model_id:path}", operations.model, "One of them.", GET,
        answer=operations.ModelCard,
    ),
    Endpoint(
        "/tokenize", tokens.tokenize, "Text or a conversation as token ids.", POST,
        tokens.TokenizeRequest, tokens.Tokens, aliases=("/v1/tokenize",),
    ),
    Endpoint(
        "/detokenize", tokens.detokenize, "Token ids as text.", POST,
        tokens.DetokenizeRequest, tokens.Prompt, aliases=("/v1/detokenize",),
    ),
    Endpoint(
        "/tokenizer_info", tokens.tokenizer_info, "Special tokens and the chat template.", GET,
        answer=tokens.TokenizerInfo,
    ),
    Endpoint(
        "/health", operations.health,
        "200 while the engine lives; ?deep=1 makes it generate a token.", GET,
        operations.HealthQuery, aliases=("/ping",), open=True,
    ),
    Endpoint(
        "/ready", operations.ready, "200 while requests are taken.", GET,
        aliases=("/readyz",), open=True,
    ),
    Endpoint("/livez", operations.live, "200 unless restarting helps.", GET, open=True),
    Endpoint("/metrics", operations.metrics, "Prometheus metrics.", GET, media="text/plain"),
    Endpoint("/version", operations.version, "The version.", GET, answer=operations.Version),
    Endpoint(
        "/programs", operations.programs, "What programs cost so far.", GET, answer=ProgramList
    ),
    Endpoint("/load", operations.load, "Requests in hand.", GET, answer=operations.Load),
    Endpoint(
        "/model_info", operations.model_info, "What is served.", GET,
        answer=operations.ModelFacts, aliases=("/get_model_info",),
    ),
    Endpoint(
        "/server_info", operations.server_info, "Settings and state.", GET,
        answer=operations.ServerInfo, aliases=("/get_server_info",),
    ),
    Endpoint(
        "/flush_cache", operations.flush_cache, "Drop unused cached prefixes.", BOTH,
        answer=operations.Ordered, aliases=("/reset_prefix_cache",),
    ),
    Endpoint(
        "/pin_prefix", operations.pin_prefix, "Keep a prompt cached.", POST,
        operations.PinPrefix, operations.Pinned,
    ),
    Endpoint(
        "/unpin_prefix", operations.unpin_prefix, "Let a pinned prompt be dropped.", POST,
        operations.UnpinPrefix, operations.Ordered,
    ),
    Endpoint(
        "/abort_request", operations.abort_request, "End requests early.", BOTH,
        operations.AbortRequest, operations.Aborted, aliases=("/abort_requests",),
    ),
    Endpoint("/openapi.json", operations.openapi, "Requests and answers in full.", GET),
    Endpoint(
        "/docs", operations.docs, "The routes as a page.", GET, media="text/html", aliases=("/",)
    ),
)  # fmt: skip


def create_app(client: Client, config: Config) -> Starlette:
    """The application over a client, which the caller starts and closes.

    Raises `ConfigError` when tracing is asked for and its packages are missing.
    """
    metrics = Metrics(client, vllm_names=config.vllm_metric_names)
    client.listeners.append(metrics)
    tracer = None
    if config.otlp_traces_endpoint is not None:
        tracer = Tracer(config.otlp_traces_endpoint, client.model.name)
        client.listeners.append(tracer)
    if config.enable_log_requests:
        client.listeners.append(logs.log_finished)
    service = Service(client, config, metrics, tracer)
    client.listeners.append(service.programs)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=config.allowed_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    app = Starlette(
        routes=[
            Route(path, Serving(endpoint, service), methods=endpoint.methods)
            for endpoint in ENDPOINTS
            for path in (endpoint.path, *endpoint.aliases)
        ],
        middleware=[cors, Middleware(Edge, service)],
        exception_handlers={WeirError: explain, HTTPException: explain},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.openapi = msgspec.json.encode(document(ENDPOINTS, secured=service.keys.asked))
    app.state.docs = page(ENDPOINTS)
    return app
