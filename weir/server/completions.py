"""POST /v1/completions"""

import time
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from weir.client import Logprob, Output
from weir.errors import BadRequest
from weir.params import Choices, Logprobs, SamplingParams
from weir.server.answers import CompletionUsage, PromptLogprobs, chunks, prompt_logprobs, usage
from weir.server.endpoint import Call, Reply
from weir.server.jobs import Job
from weir.server.openai import Generation, Prompts, Unserved
from weir.server.prompts import split
from weir.text import Text


class CompletionRequest(Generation, kw_only=True):
    """POST /v1/completions"""

    prompt: Prompts
    echo: bool | None = None
    logprobs: Logprobs | None = None
    best_of: Choices | None = None  # must equal n
    suffix: Unserved = None
    prompt_embeds: Unserved = None


class CompletionLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct):
    """One choice of a prompt: all of it, or in a stream its new part."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class Completion(Struct):
    """An answer, or a chunk of a stream. The last chunk has no choices but the usage."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: CompletionUsage | UnsetType | None = UNSET


async def completions(call: Call, body: CompletionRequest) -> Reply:
    service = call.service
    model = service.model(body.model)
    params = _params(body, service.client.model.sampling)
    prompts = split(body.prompt, "prompt")
    special = body.add_special_tokens is not False
    job = await call.submit(prompts, params, add_special_tokens=special, **body.details)
    identity, created = f"cmpl-{job.id}", int(time.time())
    writer = Writer(job, body, prompts, service.client.text)
    if body.stream:

        def write(prompt: int, output: Output) -> Completion:
            choice = writer.choice(prompt, output.index, output)
            return Completion(identity, created, model, [choice])

        last = Completion(identity, created, model, [])
        return chunks(job, body.stream_options, write, last)
    choices = [
        writer.choice(one.index // job.choices, one.index % job.choices, one)
        for one in await job.collect()
    ]
    return Completion(identity, created, model, choices, usage=usage(job))


class Writer:
    """Turns events into choices. The first event of a choice includes the prompt if requested."""

    def __init__(
        self, job: Job, body: CompletionRequest, prompts: list[str | list[int]], text: Text
    ):
        self._job = job
        self._body = body
        self._prompts = prompts
        self._text = text
        self._offsets: dict[int, int] = {}  # characters of logprob tokens so far, by choice

    def choice(self, prompt: int, index: int, output: Output) -> CompletionChoice:
        """Turn an event of choice `index` of prompt `prompt` into a `CompletionChoice`."""
        body, stream = self._body, self._job.streams[prompt]
        number = prompt * self._job.choices + index
        first = number not in self._offsets
        offset = self._offsets.setdefault(number, 0)
        choice = CompletionChoice(number, output.text, finish_reason=output.finish_reason)
        if output.finish_reason is not None:
            choice.stop_reason = output.stop_reason
        if first and body.echo:
            choice.text = self._echo(prompt) + choice.text
        if first and body.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(stream.prompt_logprobs or [])
        if body.return_token_ids:
            choice.token_ids = output.token_ids
            choice.prompt_token_ids = stream.prompt_ids if first else UNSET
        if body.logprobs is not None:
            scored: list[Logprob | None] = list(output.logprobs or [])
            ids = output.token_ids
            if first and body.echo:
                known = stream.prompt_logprobs or []  # incomplete if the prompt was aborted
                scored = [*known, *scored]
                ids = [*stream.prompt_ids[: len(known)], *ids]
            choice.logprobs, self._offsets[number] = self._logprobs(scored, ids, offset)
        return choice

    def _echo(self, prompt: int) -> str:
        given = self._prompts[prompt]
        if isinstance(given, str) and self._body.truncate_prompt_tokens is None:
            return given
        skip = self._body.skip_special_tokens is not False
        return self._text.decode(self._job.streams[prompt].prompt_ids, skip)

    def _logprobs(
        self, scored: list[Logprob | None], ids: list[int], offset: int
    ) -> tuple[CompletionLogprobs, int]:
        """OpenAI's four lists; `top_logprobs` always includes the token itself."""
        limit = self._body.logprobs or 0
        answer = CompletionLogprobs([], [], [], [])
        for token_id, one in zip(ids, scored, strict=True):
            token = self._text.token(token_id) if one is None else one.token
            answer.tokens.append(token)
            answer.token_logprobs.append(None if one is None else one.logprob)
            answer.text_offset.append(offset)
            offset += len(token)
            if one is None:
                answer.top_logprobs.append(None)
                continue
            top: dict[str, float] = {}
            for entry in (*one.top[:limit], one):
                top.setdefault(entry.token, entry.logprob)  # likeliest of tokens with equal text
            answer.top_logprobs.append(top)
        return answer, offset


def _params(body: CompletionRequest, default: SamplingParams) -> SamplingParams:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise BadRequest("best_of is not supported beyond n: leave it out", param="best_of")
    echoed = body.logprobs if body.echo else None
    wanted = [top for top in (echoed, body.prompt_logprobs) if top is not None]
    return body.sampling(default, logprobs=body.logprobs, prompt_logprobs=max(wanted, default=None))
