"""EleutherAI's lm-eval against a Weir server: does it get the numbers that the model itself gives?

    python bench/lm_eval.py [--model smollm2-135m] [--dtype float32] [--text] [--transformers]

Runs the command `lm_eval` (or $LM_EVAL; `pip install 'lm-eval[api]' transformers`, best in an
environment of its own) with the model `local-completions` on the two tasks of bench/data: 40
multiple-choice questions, scored, and 10 of GSM8K, generated. Every log-likelihood and every answer
is then computed again from the strings in lm-eval's log, with `weir.LLM` in this process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from weir import LLM, SamplingParams, connect, hub
from weir.bench.private import private
from weir.config import load
from weir.text import Text

DATA = Path(__file__).parent / "data"
TASKS = ("weir_choices", "weir_gsm8k")
TOLERANCE = 1e-3  # nats a choice
ANSWER = SamplingParams(temperature=0.0, max_tokens=128, stop=["\n\n", "Question:"])  # as the task

Row = dict[str, Any]
Pair = tuple[list[int], int]  # token ids of context and continuation, and where the latter begins


def write_tokenizer(text: Text, folder: Path) -> None:
    """As a Hugging Face folder: lm-eval counts the tokens of each context with it."""
    text.tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": text.token(text.eos[0])}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def evaluate(args: argparse.Namespace, text: Text, folder: Path) -> list[list[Row]]:
    """lm-eval's log of each task, its table shown."""
    write_tokenizer(text, folder)
    flags = ["--dtype", args.dtype, "--served-model-name", "weir"]
    with private(args.model, flags) as server:
        settings = f"model=weir,base_url={server.url}/v1/completions,tokenizer={folder}"
        settings += f",tokenizer_backend=huggingface,tokenized_requests={not args.text}"
        settings += ",num_concurrent=8"
        command = [os.environ.get("LM_EVAL", "lm_eval"), "run", "--include_path", "."]
        command += ["--model", "local-completions", "--model_args", settings, "--tasks", *TASKS]
        command += ["--log_samples", "--output_path", str(folder)]
        environ = {
            "OPENAI_API_KEY": server.headers["Authorization"].removeprefix("Bearer "),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder),
        }
        subprocess.run(command, cwd=DATA, env=os.environ | environ, check=True)
    logs = [next(folder.glob(f"**/samples_{task}_*.jsonl")) for task in TASKS]
    return [[json.loads(line) for line in log.open(encoding="utf-8")] for log in logs]


def pair(text: Text, context: str, continuation: str) -> Pair:
    """Encoded as one text, as lm-eval does it."""
    return text.encode(context + continuation, False), len(text.encode(context, False))


def score(llm: LLM, pairs: list[Pair]) -> list[float]:
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    sums = []
    outputs = llm.generate([ids for ids, _ in pairs], params)
    for (ids, begin), output in zip(pairs, outputs, strict=True):
        found = output.prompt_logprobs or []
        sums.append(sum(found[i][ids[i]].logprob for i in range(begin, len(ids))))
    return sums


def score_with_transformers(model: str, pairs: list[Pair]) -> list[float]:
    """In float32, a sequence at a time."""
    path = hub.resolve(model).path
    reference = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    sums = []
    with torch.inference_mode():
        for ids, begin in pairs:
            logprobs = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(logprobs[i - 1, ids[i]].item() for i in range(begin, len(ids))))
    return sums


def compare(name: str, scores: list[float], log: list[Row]) -> bool:
    """Whether `scores`, of all choices in the log's order, are lm-eval's."""
    gap, right, left = 0.0, 0, iter(scores)
    for row in log:
        theirs = [float(one[0][0]) for one in row["resps"]]  # of [[log-likelihood, is greedy]]
        ours = [next(left) for _ in theirs]
        gap = max(gap, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
        right += ours.index(max(ours)) == row["doc"]["gold"]
    print(f"{name}: accuracy {right / len(log):.4f}, log-likelihoods within {gap:.1e} of lm-eval's")
    return gap <= TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--text", action="store_true", help="send text, not token ids")
    parser.add_argument("--transformers", action="store_true", help="score with it too (GGUF only)")
    args = parser.parse_args()
    text = connect.text(load({"model": args.model}, {}))
    with tempfile.TemporaryDirectory() as folder:
        choices, problems = evaluate(args, text, Path(folder))
    pairs = [pair(text, *one.values()) for row in choices for one in row["arguments"].values()]
    prompts = [row["arguments"]["gen_args_0"]["arg_0"] for row in problems]
    with LLM(args.model, dtype=args.dtype) as llm:
        good = compare("weir.LLM", score(llm, pairs), choices)
        answers = [output.outputs[0].text for output in llm.generate(prompts, ANSWER)]
    same = sum(row["resps"][0][0] == one for row, one in zip(problems, answers, strict=True))
    print(f"weir.LLM: {same} of {len(answers)} generated answers are lm-eval's, to the character")
    if args.transformers:
        reference = score_with_transformers(args.model, pairs)
        good &= compare("transformers in float32", reference, choices)
    return 0 if good and same == len(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
