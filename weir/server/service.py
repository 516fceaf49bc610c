"""What all routes share: the client, the live jobs, and whether new ones are accepted."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Unpack

from msgspec.structs import replace

from weir.client import Client
from weir.client.base import Details
from weir.config import Config
from weir.core import Thought
from weir.errors import BadRequest, Overloaded
from weir.params import SamplingParams
from weir.server.jobs import Job
from weir.server.keys import Keys
from weir.server.metrics import Metrics
from weir.server.openai import ChatRequest
from weir.server.programs import Programs
from weir.server.reading import Reader
from weir.server.tracing import Tracer
from weir.text.thoughts import CLOSE, Thoughts, inside, thinks

LONG = 16384  # characters; longer prompts are encoded on a thread, so that streams go on
YIELD = 16  # prompts of one job that are submitted before others get a turn


class Service:
    def __init__(self, client: Client, config: Config, metrics: Metrics, tracer: Tracer | None):
        self.client = client
        self.config = config
        self.metrics = metrics
        self.programs = Programs()
        self.tracer = tracer
        self.jobs: dict[str, Job] = {}
        self.open = 0  # HTTP requests being answered
        self.draining = False
        self.probe: asyncio.Task[None] | None = None  # the latest deep health check
        self.created = int(time.time())
        self.keys = Keys(config.api_key, config.tenants)

    def model(self, name: str | None) -> str:
        """The model name for the answer. Raises a 404 for one that is not served."""
        served = self.client.model
        if name is None or name in served.names:
            return name or served.name
        raise BadRequest(
            f"The model {name[:200]!r} is not served here; available: {', '.join(served.names)}.",
            param="model",
            code="model_not_found",
            status=404,
        )

    def close(self, body: ChatRequest) -> int | None:
        """The token that ends what is thought, where that is told from what is said."""
        return self.client.text.tokenizer.token_to_id(CLOSE) if self._separates(body) else None

    def reader(self, job: Job, body: ChatRequest, prompt: str) -> Reader:
        """What reads one answer to a chat."""
        thoughts = Thoughts(inside(prompt), body.told) if self._separates(body) else None
        return Reader(job, body.toolbox, thoughts, self.close(body))

    def _separates(self, body: ChatRequest) -> bool:
        asked = self.config.separate_reasoning and body.separate_reasoning is not False
        return asked and thinks(self.client.text)

    async def submit(
        self,
        prompts: Sequence[str | list[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        request_id: str,
        traceparent: str | None = None,
        truncate: int | None = None,
        names: Mapping[str, str] | None = None,
        structured: str = "",
        thought: Thought | None = None,
        **details: Unpack[Details],
    ) -> Job:
        """Submit prompts to the engine as one job: all of them, or none and an error.

        names: the client's for `prompt` and for fields of `params`, where they differ, for errors;
        structured: that of the grammar. thought: the reasoning that may precede what follows it.
        truncate: keep only so many of the last tokens of each prompt; -1: as many as fit.
        """
        self.check_open()
        if request_id in self.jobs:
            raise BadRequest(
                f"request_id {request_id!r} belongs to a request that is still running.",
                param="request_id",
                code="duplicate_request_id",
            )
        special = details.get("add_special_tokens", True)
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        choices, most = len(prompts) * each[0].n, self.config.max_num_queued_reqs
        if choices > most and len(prompts) > 1:  # however often it came, it would be refused
            raise BadRequest(
                f"{choices} answers are asked for at once, but at most {most} may wait: send fewer "
                "prompts, or a smaller n",
                param=(names or {}).get("prompt", "prompt"),
            )
        job = self.jobs[request_id] = Job(request_id, each[0].n)
        try:
            for index, (prompt, param) in enumerate(zip(prompts, each, strict=True)):
                grammar = await self.client.compile(param)
                if grammar is not None:
                    grammar = replace(grammar, thought=thought)
                stream = self.client.submit(
                    await self._prepare(prompt, param, special, truncate),
                    param,
                    request_id=request_id if len(prompts) == 1 else f"{request_id}-{index}",
                    grammar=grammar,
                    **details,
                )
                job.add(stream)
                if self.tracer is not None:
                    self.tracer.begin(stream.id, traceparent)
                if index % YIELD == YIELD - 1:
                    await asyncio.sleep(0)
        except BaseException as error:
            self.finish(job)
            if isinstance(error, BadRequest):
                if error.code == "invalid_grammar":
                    error.param = structured
                elif error.param is not None:
                    one = f"[{index}]" if error.param == "prompt" and len(prompts) > 1 else ""
                    error.param = (names or {}).get(error.param, error.param) + one
            raise
        return job

    def check_open(self) -> None:
        """Raise `Overloaded` while the server drains."""
        if self.draining:
            raise Overloaded("The server is shutting down: ask another one.", retry_after=5.0)

    def finish(self, job: Job) -> None:
        """Abort what is left of a job and forget it."""
        job.abort()
        self.jobs.pop(job.id, None)

    def abort(self, request_id: str | None) -> int:
        """Abort the prompts of one request, or of all; returns how many were live.

        An answer's id, such as chatcmpl-X, names the request X as well.
        """
        if request_id is None:
            return self.client.abort(None)
        job = self.jobs.get(request_id) or self.jobs.get(request_id.partition("-")[2])
        if job is None:
            return self.client.abort(request_id)
        return sum(self.client.abort(stream.id) for stream in job.streams)

    async def encode(self, prompt: str, add_special_tokens: bool) -> list[int]:
        encode = self.client.text.encode
        if len(prompt) <= LONG:
            return list(encode(prompt, add_special_tokens))
        return list(await asyncio.to_thread(encode, prompt, add_special_tokens))

    async def _prepare(
        self, prompt: str | list[int], params: SamplingParams, special: bool, truncate: int | None
    ) -> str | list[int]:
        """The prompt to submit: as token ids if it is long or must be truncated."""
        context = self.client.model.context
        if isinstance(prompt, str):
            # a text that is far too long is refused by the client without encoding
            if truncate is None and not LONG < len(prompt) <= 16 * context:
                return prompt
            prompt = await self.encode(prompt, special)
        if truncate is None:
            return prompt
        answer = 1 if params.max_tokens is None else params.max_tokens
        keep = truncate if truncate >= 0 else max(1, context - answer)
        return prompt[max(0, len(prompt) - keep) :]
