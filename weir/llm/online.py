"""`AsyncLLM`: a model that streams answers, many at once."""

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Self

from weir import build, connect
from weir.client import Client, Local
from weir.config import load
from weir.errors import BadRequest, EngineDead
from weir.llm.outputs import RequestOutput, begin, request_output
from weir.params import SamplingParams

Message = Mapping[str, Any]


class AsyncLLM:
    """A model that streams answers, many at once, on one event loop.

    ```
    async with weir.AsyncLLM("smollm2-135m") as llm:
        async for output in llm.generate("Once upon a time"):
            print(output.outputs[0].text)
    ```
    The engine runs in a process of its own, which is restarted if it dies and does not disturb the
    event loop; with `in_process` it runs on a thread here. settings: fields of `Config`.
    """

    _entered = False

    def __init__(self, model: str, *, in_process: bool = False, **settings: Any):
        config = load({"model": model, **settings}, {})
        if in_process:
            text, options = connect.text(config), connect.options(config)
            self.client: Client = Local(build.engine(config), text, config.names, **options)
        else:
            self.client = connect.remote(config)

    @classmethod
    def of(cls, client: Client) -> Self:
        """An `AsyncLLM` of a client made elsewhere."""
        llm = cls.__new__(cls)
        llm.client = client
        return llm

    async def __aenter__(self) -> Self:
        self._entered = True
        await self.client.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        add_special_tokens: bool = True,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield the whole output so far, each time there is more; the last one is `finished`.

        Leaving the loop aborts the request. Raises `BadRequest`, `Overloaded`, and `EngineDead` if
        the engine dies meanwhile or was not started.
        """
        self._check()
        params = self.client.model.sampling if params is None else params
        if not isinstance(params, SamplingParams):
            raise BadRequest("params must be SamplingParams", param="params")
        stream = self.client.submit(
            prompt,
            params,
            request_id=request_id,
            priority=priority,
            add_special_tokens=add_special_tokens,
            grammar=await self.client.compile(params),
        )
        choices = begin(stream.assembly)
        async with contextlib.aclosing(aiter(stream)) as events:
            async for output in events:
                choices[output.index].add(output)
                yield request_output(stream.assembly, choices)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        **template: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The next message of a conversation. template: see `Text.chat`; the rest: `generate`."""
        return self.generate(
            self.client.text.chat(messages, **template),
            params,
            request_id=request_id,
            priority=priority,
            add_special_tokens=False,
        )

    async def embed(self, prompt: str | list[int], pooling: str = "mean") -> list[float]:
        """A normalised vector: the mean of the tokens' hidden states, or with pooling "last" the
        last. Raises as `generate`."""
        self._check()
        stream = self.client.submit(prompt, SamplingParams(max_tokens=0), pool=pooling)
        (completion,) = await stream.collect()
        if stream.vector is None:
            raise EngineDead(f"request {stream.id} could not be computed: {completion.error}")
        return stream.vector

    def abort(self, request_id: str | None) -> int:
        """Abort one request, or all if None; returns how many were live."""
        return self.client.abort(request_id)

    def _check(self) -> None:
        if self.client.health == "starting" and not self._entered:
            raise EngineDead("this AsyncLLM was not started: use it in `async with`")
