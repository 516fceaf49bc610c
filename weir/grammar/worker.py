"""The process that compiles grammars: `python -m weir.grammar.worker`, started by a `Compiler`.

It answers one job after the other, after an empty message that says it is ready. It limits its own
memory; its parent limits its time. When the parent ends, so does the worker, even within a job. A
long job continues at idle priority, on cores that nothing else uses.
"""

import contextlib
import os
import resource
import select
import sys
import threading
import time

import msgspec

from weir.errors import BadRequest
from weir.grammar.compile import compile
from weir.grammar.job import Answer, Job
from weir.grammar.process import parent, read, write

LONG = 0.25
"""Seconds of CPU time; nearly all schemas that people write take less."""
STACK = 256 << 20
RECURSION = 50_000


def answer(job: Job) -> Answer:
    resource.setrlimit(resource.RLIMIT_AS, (job.memory, resource.RLIM_INFINITY))
    try:
        return Answer(compile(job.asked, job.backend, job.key))
    except BadRequest as error:
        return Answer(error=str(error))
    except (MemoryError, RecursionError):
        return Answer(error="the grammar is too complex to be compiled")
    except BaseException as error:  # including a panic in llguidance
        return Answer(error=f"the grammar cannot be compiled: {error!r}")


def done(job: Job) -> Answer:
    """Run a job on a new thread, because a thread's priority cannot be raised again."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(answer(job)), daemon=True)
    thread.start()
    end = time.process_time() + LONG
    while thread.is_alive() and (left := end - time.process_time()) > 0:
        thread.join(max(left, 1e-2))
    if thread.is_alive():
        with contextlib.suppress(OSError):  # the thread has ended, or a sandbox forbids it
            os.sched_setscheduler(thread.native_id or 0, os.SCHED_IDLE, os.sched_param(0))
    thread.join()
    return answers[0]


def serve() -> None:
    compiler = parent()
    with contextlib.suppress(OSError):  # the compiler has ended
        write(compiler, b"")
        while message := read(compiler):
            write(compiler, msgspec.msgpack.encode(done(msgspec.json.decode(message, type=Job))))


def main() -> None:
    os.nice(19)  # the engine may compute on the same cores
    sys.setrecursionlimit(RECURSION)
    threading.stack_size(STACK)  # nested patterns need deep recursion
    threading.Thread(target=serve, daemon=True).start()
    gone = select.poll()
    gone.register(0, 0)  # reports only that the parent closed its end
    gone.poll()
    os._exit(0)


if __name__ == "__main__":
    main()
