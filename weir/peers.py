"""What other engines call our settings, so that a command line written for one of them works here.

Plain tables; `config`, `options` and the command line read them.
"""

ALIASES = {
    "model_path": "model",
    "tokenizer_path": "tokenizer",
    "context_length": "max_model_len",
    "ctx_size": "max_model_len",
    "mem_fraction_static": "gpu_memory_utilization",
    "page_size": "block_size",
    "kv_cache_memory_bytes": "kv_cache_memory",
    "max_running_requests": "max_num_seqs",
    "chunked_prefill_size": "max_num_batched_tokens",
    "schedule_policy": "scheduling_policy",
    "max_queued_requests": "max_num_queued_reqs",
    "random_seed": "seed",
    "sampling_defaults": "generation_config",
    "log_requests": "enable_log_requests",
    "uvicorn_log_level": "log_level",
    "disable_cuda_graph": "enforce_eager",
    "cudagraph_capture_sizes": "cuda_graph_sizes",
    "cuda_graph_bs": "cuda_graph_sizes",
    "swap_space": "cpu_cache",
    "kv_offloading_size": "cpu_cache",
    "hicache_size": "cpu_cache",
}
"""Other engines' names for the same setting."""

GIBIBYTES = {"swap_space", "kv_offloading_size", "hicache_size"}
"""Those of them whose plain numbers are GiB."""

OPPOSITES = {"disable_radix_cache": "enable_prefix_caching", "disable_overlap_schedule": "overlap"}
"""Other engines' switches that turn a setting off."""

KERNELS = {"awq_marlin": "awq", "gptq_marlin": "gptq"}
"""Other engines' names of how a file is quantised that also name a kernel."""

TYPES = {"half": "float16", "float": "float32"}
"""vLLM's other names of types."""

NEUTRAL: dict[str, tuple[frozenset[str], str]] = {}
"""Peers' settings that have one meaning here: the values accepted, and why no other is."""


def _neutral(names: str, values: str, why: str) -> None:
    NEUTRAL.update({name: (frozenset(values.split()), why) for name in names.split()})


_neutral(
    "tensor_parallel_size tp_size tp pipeline_parallel_size pp_size pp data_parallel_size dp_size "
    "dp ep_size ep nnodes",
    "1",
    "Weir runs one rank for now",
)
_neutral("node_rank", "0", "Weir runs on one machine for now")
_neutral("enable_expert_parallel enable_lora", "false", "Weir cannot do that yet")
_neutral("trust_remote_code", "false", "Weir never runs code that comes with a model")
_neutral("speculative_config speculative_algorithm", "none", "Weir does not speculate yet")
_neutral("cpu_offload_gb", "0", "use --offload auto with --gpu-memory instead")
_neutral("kv_transfer_config", "none", "Weir does not transfer KV caches yet")
_neutral("tool_call_parser", "none hermes qwen qwen25", "Weir reads calls as these write them")
_neutral(
    "reasoning_parser",
    "auto qwen3 qwen3-thinking deepseek_r1 deepseek-r1 deepseek_v3 deepseek-v3 glm45 olmo3",
    "Weir tells reasoning by its <think> tags; --no-separate-reasoning leaves it in the text",
)
_neutral("enable_auto_tool_choice", "true", "models may always choose tools")
_neutral("disable_log_requests disable_log_stats", "true", "use --enable-log-requests instead")
_neutral("tokenizer_mode", "auto fast", "Weir has one tokenizer")
_neutral("performance_mode", "balanced", "Weir has one mode")
_neutral("attention_backend", "auto", "Weir chooses its kernels itself")
_neutral("cont_batching jinja", "true", "Weir always works so")
_neutral("enable_chunked_prefill enable_mixed_chunk", "true", "use --composer whole instead")
_neutral("enable_metrics enable_cache_report metrics", "true", "Weir always reports these")
_neutral("enable_prompt_tokens_details", "true", "Weir always reports these")

MEANT = {
    name: ours
    for names, ours in {
        "-m --hf-repo": "--model",
        "-a --alias": "--served-model-name",
        "-c": "--max-model-len",
        "-t": "--threads",
        "-np --parallel": "--max-num-seqs",
        "-b -ub --batch-size --ubatch-size --max-prefill-tokens": "--max-num-batched-tokens",
        "-ngl --gpu-layers --n-gpu-layers": "--offload",
        "-ctk -ctv --cache-type-k --cache-type-v": "--kv-cache-dtype",
        "--num-gpu-blocks-override --max-total-tokens": "--kv-cache-memory",
        "-v --verbose": "--log-level",
        "-f": "--file",
        "-n --predict --n-predict --max-new-tokens": "--max-tokens",
        "--temp": "--temperature",
        "--rate": "--request-rate",
        "--url": "--base-url",
        "--base-url": "--url",
    }.items()
    for name in names.split()
}
"""Other engines' flags whose values may be of another kind, and the nearest of ours."""
