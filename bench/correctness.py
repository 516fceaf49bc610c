"""Greedy tokens of the real models against transformers, in float32, however they are scheduled.

    python bench/correctness.py [--model smollm2-135m] [--prompts 200] [--tokens 64]

Every mode below generates for all prompts. transformers, which reads the same GGUF by its own
means, then scores each distinct answer in one forward pass: at every position our token must be its
argmax. Where it is not, the gap of the two logits is shown; below 1e-4 it is a tie. Prompts are
real ones (WEIR_DATA/prefix, else the committed sample).
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.audit import audit
from weir import build, hub
from weir.config import Config
from weir.core import Request, Sampling
from weir.gguf import GGUF
from weir.rows import read_rows
from weir.text import Text

TIE = 1e-4
SAMPLE = Path(__file__).parent.parent / "weir" / "data" / "demo_prompts.jsonl"

MODES = {
    "one at a time, whole prompts": {"composer": "whole", "max_num_seqs": 1},
    "32 at once, whole prompts": {"composer": "whole", "max_num_seqs": 32},
    "32 at once, chunks of 16": {"max_num_batched_tokens": 48, "max_num_seqs": 32},
    "32 at once, chunks of 256": {"max_num_batched_tokens": 256, "max_num_seqs": 32},
    "the same without prefix cache": {
        "max_num_batched_tokens": 256,
        "max_num_seqs": 32,
        "enable_prefix_caching": False,
    },
    "page of 1, no overlap": {"block_size": 1, "overlap": False, "max_num_seqs": 32},
    "preemption forced": {"max_num_seqs": 32, "kv_cache_memory": -1},
}


def prompts(text: Text, count: int) -> list[list[int]]:
    """Real prompts of 1 to 400 tokens: questions alone and, every fourth, after a shared prefix."""
    folder = os.environ.get("WEIR_DATA")
    if folder:
        base = Path(folder) / "prefix"
        questions = [row["question"] for row in read_rows(base / "gsm8k.jsonl.gz")]
        questions += [row["turns"][0] for row in read_rows(base / "mt_bench.jsonl.gz")]
        code = [row["prompt"] for row in read_rows(base / "humaneval.jsonl.gz")]
        texts = [*questions[: count // 2], *questions[-60:], *code][:count]
        head = questions[-1] + "\n\n" + questions[3] + "\n\n"
    else:
        texts = [str(row) for row in read_rows(SAMPLE, count)]
        head = texts[0]
    texts = [head + t if i % 4 == 0 else t for i, t in enumerate(texts)]
    return [text.encode(t)[:400] for t in texts]


def generate(model: str, mode: dict, work: list[list[int]], tokens: int) -> tuple[list, dict]:
    mode = dict(mode)
    if mode.get("kv_cache_memory") == -1:  # room for about three of the longest
        probe = build.engine(Config(model=model, dtype="float32", device="cpu"))
        spec, page = probe.executor.runner.model.spec, probe.capacity.page
        one = sum(2 * a.kv_heads * a.head_dim * 4 for a in spec.attention)
        probe.close()
        mode["kv_cache_memory"] = one * page * -(-3 * (max(map(len, work)) + tokens) // page)
    engine = build.engine(Config(model=model, dtype="float32", device="cpu", **mode))
    answers: dict[int, list[int]] = {uid: [] for uid in range(len(work))}
    for uid, ids in enumerate(work):
        engine.add(Request(uid, list(ids), Sampling(temperature=0, max_tokens=tokens), float(uid)))
    while engine.busy:
        for delta in engine.step():
            assert delta.done != "error", delta.error
            answers[delta.uid] += delta.tokens
    audit(engine.scheduler.cache)
    stats = engine.stats()
    engine.close()
    facts = {"preempted": stats.preemptions, "hit tokens": stats.hit_tokens}
    return [answers[uid] for uid in range(len(work))], facts


def judge(reference, prompt: list[int], answer: list[int]) -> list[tuple[int, float]]:
    """(position, gap) wherever transformers would rather have another token."""
    ids = torch.tensor([prompt + answer])
    with torch.inference_mode():
        logits = reference(ids).logits[0, len(prompt) - 1 : -1].float()
    best = logits.max(-1).values
    gaps = best - logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
    return [(i, gap) for i, gap in enumerate(gaps.tolist()) if gap > 0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    source = hub.resolve(args.model)
    text = Text.from_gguf(GGUF.open(source.path))
    work = prompts(text, args.prompts)
    print(
        f"{args.model}, float32, {len(work)} prompts of {min(map(len, work))} to "
        f"{max(map(len, work))} tokens, {args.tokens} tokens each"
    )
    runs = {}
    for name, mode in MODES.items():
        began = time.perf_counter()
        runs[name], facts = generate(args.model, mode, work, args.tokens)
        print(f"  {name}: {time.perf_counter() - began:.1f} s, {facts}", flush=True)
    reference = AutoModelForCausalLM.from_pretrained(
        source.path.parent, gguf_file=source.path.name, dtype=torch.float32
    )
    verdicts: dict[tuple[int, tuple[int, ...]], list[tuple[int, float]]] = {}
    wrong = 0
    for name, answers in runs.items():
        same = ties = 0
        for i, answer in enumerate(answers):
            key = (i, tuple(answer))
            if key not in verdicts:
                verdicts[key] = judge(reference, work[i], answer)
            gaps = verdicts[key]
            bad = [g for g in gaps if g[1] >= TIE]
            wrong += bool(bad)
            ties += bool(gaps) and not bad
            same += not gaps
            for position, gap in gaps:
                print(f"    prompt {i}, token {position}: gap {gap:.2e}")
        print(
            f"{name}: {same} identical, {ties} by a tie below {TIE:g}, "
            f"{len(answers) - same - ties} different"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
