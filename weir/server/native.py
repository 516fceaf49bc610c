"""POST /generate, SGLang's API: takes texts or ids, returns cumulative texts and `meta_info`."""

import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from weir import params
from weir.client import Logprob, Output
from weir.errors import BadRequest
from weir.params import SMALL, Count, Logprobs, SamplingParams, StructuredOutputs, TokenId
from weir.server.endpoint import DONE, Call, Reply, frame
from weir.server.jobs import Job
from weir.server.openai import ProgramId, RequestId, Unserved
from weir.server.prompts import split
from weir.text import Text

NAMES = {f"{end}_tokens": f"sampling_params.{end}_new_tokens" for end in ("max", "min")}
TokenTuple = tuple[float | None, int, str | None]
"""logprob, token id, token text if requested"""


class NativeSampling(Struct, kw_only=True, forbid_unknown_fields=True):
    max_new_tokens: Count | None = 128  # None: as many as fit
    min_new_tokens: Count = 0
    n: params.Choices = 1
    temperature: params.Temperature = 1.0
    top_p: params.TopP = 1.0
    top_k: params.TopK = -1
    min_p: params.MinP = 0.0
    frequency_penalty: params.Penalty = 0.0
    presence_penalty: params.Penalty = 0.0
    repetition_penalty: params.Repetition = 1.0
    stop: params.Stop | None = None
    stop_token_ids: params.StopTokens | None = None
    no_stop_trim: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logit_bias: dict[TokenId, params.Bias] | None = None
    sampling_seed: params.Seed | None = None
    stop_regex: Unserved = None
    regex: str | None = None
    ebnf: str | None = None
    json_schema: str | dict[str, Any] | None = None
    structural_tag: Unserved = None
    beam_width: Unserved = None
    custom_params: Unserved = None

    def sampling(self, **logprobs: Any) -> SamplingParams:
        given = {name: getattr(self, name) for name in SHARED}
        given |= {"min_tokens": self.min_new_tokens, "seed": self.sampling_seed}
        given["include_stop_str_in_output"] = self.no_stop_trim
        given["structured_outputs"] = self.structured
        asked = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(max_tokens=self.max_new_tokens, **asked, **logprobs)

    @property
    def structured(self) -> StructuredOutputs | None:
        asked = StructuredOutputs(json=self.json_schema, regex=self.regex, grammar=self.ebnf)
        return asked if asked != StructuredOutputs() else None


SHARED = sorted({*NativeSampling.__struct_fields__} & {*SamplingParams.__struct_fields__})


class GenerateRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /generate: exactly one of `text` and `input_ids`, one prompt or a list."""

    text: str | Annotated[list[str], Meta(min_length=1)] | None = None
    input_ids: Annotated[list[TokenId | list[TokenId]], Meta(min_length=1)] | None = None
    sampling_params: NativeSampling | list[NativeSampling] | None = None
    stream: bool = False
    return_logprob: bool = False
    logprob_start_len: Annotated[int, Meta(ge=-1, le=SMALL)] = -1  # -1: the output only
    top_logprobs_num: Logprobs = 0
    return_text_in_logprobs: bool = False
    rid: RequestId | None = None
    priority: Annotated[int, Meta(ge=-SMALL, le=SMALL)] = 0
    program: ProgramId = ""
    token_ids_logprob: Unserved = None
    input_embeds: Unserved = None
    image_data: Unserved = None
    audio_data: Unserved = None
    video_data: Unserved = None
    lora_path: Unserved = None
    session_params: Unserved = None
    return_hidden_states: Annotated[bool, Meta(extra_json_schema={"const": False})] = False


class MetaInfo(Struct, kw_only=True):
    id: str
    finish_reason: dict[str, Any] | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    e2e_latency: float  # seconds
    input_token_logprobs: list[TokenTuple] | UnsetType = UNSET
    output_token_logprobs: list[TokenTuple] | UnsetType = UNSET
    input_top_logprobs: list[list[TokenTuple] | None] | UnsetType = UNSET
    output_top_logprobs: list[list[TokenTuple] | None] | UnsetType = UNSET


class Generated(Struct):
    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | UnsetType = UNSET  # of the sequence, in a stream of several


async def generate(call: Call, body: GenerateRequest) -> Reply:
    if (body.text is None) == (body.input_ids is None):
        raise BadRequest("give either text or input_ids", param="text")
    if body.return_hidden_states:
        raise BadRequest("hidden states are not returned here", param="return_hidden_states")
    given: Any = body.input_ids if body.text is None else body.text
    field = "text" if body.input_ids is None else "input_ids"
    prompts = split(given, field)
    job = await call.submit(
        prompts,
        _params(body, len(prompts)),
        request_id=body.rid,
        priority=body.priority,
        program=body.program,
        names=NAMES | {"prompt": field},
        structured="sampling_params",
    )
    text = call.service.client.text
    if body.stream:
        return _chunks(job, body, text)
    answers = [_generated(job, body, text, one) for one in await job.collect()]
    several = job.choices > 1 or (isinstance(given, list) and not isinstance(given[0], int))
    return answers if several else answers[0]


async def _chunks(job: Job, body: GenerateRequest, text: Text) -> AsyncGenerator[bytes, None]:
    """Each event repeats the whole answer so far, as SGLang's clients expect."""
    several = len(job.streams) * job.choices > 1
    so_far: dict[int, Output] = {}
    async for burst in job.bursts():
        touched = []
        for prompt, output in burst:
            index = prompt * job.choices + output.index
            whole = so_far.setdefault(index, Output(index))
            whole.add(output)
            if whole not in touched:
                touched.append(whole)
        for whole in touched:
            answer = _generated(job, body, text, whole)
            answer.index = whole.index if several else UNSET
            yield frame(answer)
    yield DONE


def _params(body: GenerateRequest, prompts: int) -> list[SamplingParams]:
    given = body.sampling_params or NativeSampling()
    each = given if isinstance(given, list) else [given] * prompts
    if len(each) != prompts:
        raise BadRequest(
            f"sampling_params has {len(each)} entries for {prompts} prompts",
            param="sampling_params",
        )
    if len({one.n for one in each}) > 1:
        raise BadRequest("n must be the same for all prompts", param="sampling_params")
    logprobs: dict[str, int] = {}
    if body.return_logprob:
        logprobs["logprobs"] = body.top_logprobs_num
        if body.logprob_start_len >= 0:
            logprobs["prompt_logprobs"] = body.top_logprobs_num
            logprobs["score_from"] = body.logprob_start_len + 1
    return [one.sampling(**logprobs) for one in each]


def _generated(job: Job, body: GenerateRequest, text: Text, whole: Output) -> Generated:
    stream = job.streams[whole.index // job.choices]
    latest = stream.timing.last if whole.finish_reason else time.monotonic()
    meta = MetaInfo(
        id=stream.id,
        finish_reason=_finish(whole),
        prompt_tokens=stream.usage.prompt_tokens,
        completion_tokens=len(whole.token_ids),
        cached_tokens=stream.usage.cached_tokens,
        e2e_latency=max(0.0, latest - stream.timing.arrival),
    )
    if body.return_logprob:
        start, named = body.logprob_start_len, body.return_text_in_logprobs
        outputs = whole.logprobs or []
        # from `start` on; the first has no logprob, as in SGLang
        inputs = [] if stream.prompt_logprobs is None else stream.prompt_logprobs[start:]
        meta.input_token_logprobs = [
            (None, token, text.token(token) if named else None)
            if one is None
            else _tuple(one, named)
            for token, one in zip(stream.prompt_ids[start:], inputs, strict=False)
        ]
        meta.output_token_logprobs = [_tuple(one, named) for one in outputs]
        if body.top_logprobs_num:
            meta.input_top_logprobs = [_top(one, named) for one in inputs]
            meta.output_top_logprobs = [_top(one, named) for one in outputs]
    return Generated(whole.text, whole.token_ids, meta)


def _tuple(one: Logprob, named: bool) -> TokenTuple:
    return one.logprob, one.token_id, one.token if named else None


def _top(one: Logprob | None, named: bool) -> list[TokenTuple] | None:
    return None if one is None else [_tuple(entry, named) for entry in one.top]


def _finish(whole: Output) -> dict[str, Any] | None:
    reason = whole.finish_reason
    if reason is None:
        return None
    if reason == "length":
        return {"type": "length", "length": len(whole.token_ids)}
    if reason == "stop":
        last = whole.token_ids[-1] if whole.token_ids else None
        return {"type": "stop", "matched": last if whole.stop_reason is None else whole.stop_reason}
    return {"type": "abort", "message": whole.error or "aborted"}
