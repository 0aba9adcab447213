"""A contender of decode.py: loads a model, reads requests from stdin and answers on stdout.

    python benchmarks/decoding.py KIND PATH THREADS

For each line {"batch", "prompt", "steps"} it prints {"prefill", "decode"}: the seconds until the
last logits of the prompt, and the seconds of one step after it. Where the runtime allows it, tokens
are fed and not sampled.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Answer = Callable[[int, int, int], tuple[float, float]]
"""From batch, prompt length and number of steps to the seconds of the prefill and of a step."""

TOKEN = 100


def onnxruntime(path: Path, threads: int) -> Answer:
    """Batch 1 uses the shared buffer of `cgconvert generate`; larger batches a growing cache."""
    from cgconvert.runtimes.onnxruntime import OnnxRuntime

    runtime: Any = OnnxRuntime.open(path, "cpu", threads)

    def single(batch: int, prompt: int, steps: int) -> tuple[float, float]:
        runtime.reset()
        began = time.perf_counter()
        runtime.feed_last([TOKEN] * prompt)
        middle = time.perf_counter()
        for _ in range(steps):
            runtime.feed_last([TOKEN])
        return middle - began, (time.perf_counter() - middle) / steps

    def several(batch: int, prompt: int, steps: int) -> tuple[float, float]:
        def run(length: int, total: int, cache: Any) -> Any:
            tokens = np.full((batch, length), TOKEN, dtype=np.int64)
            positions = np.broadcast_to(np.arange(total - length, total), tokens.shape)
            mask = np.ones((batch, total), dtype=np.int64)
            return runtime._run(tokens, mask, positions, cache)[1]

        began = time.perf_counter()
        cache = run(prompt, prompt, {})
        middle = time.perf_counter()
        for step in range(steps):
            cache = run(1, prompt + step + 1, cache)
        return middle - began, (time.perf_counter() - middle) / steps

    return lambda batch, prompt, steps: (single if batch == 1 else several)(batch, prompt, steps)


def genai(path: Path, threads: int) -> Answer:
    """onnxruntime-genai's generator, which samples greedily."""
    import onnxruntime_genai as og

    config = og.Config(str(path))
    options = {"log_severity_level": 4, "intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)

    def answer(batch: int, prompt: int, steps: int) -> tuple[float, float]:
        parameters = og.GeneratorParams(model)
        total = prompt + steps + 1
        parameters.set_search_options(
            max_length=total, min_length=total, do_sample=False, batch_size=batch
        )
        generator = og.Generator(model, parameters)
        began = time.perf_counter()
        generator.append_tokens(np.full((batch, prompt), TOKEN, dtype=np.int32))
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(steps):
            generator.generate_next_token()
        return middle - began, (time.perf_counter() - middle) / steps

    return answer


def optimum(path: Path, threads: int) -> Answer:
    """Calls ORTModelForCausalLM step by step with its cache, without its `generate`."""
    import onnxruntime as ort
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    torch.set_num_threads(threads)
    model = ORTModelForCausalLM.from_pretrained(path, session_options=options)

    def answer(batch: int, prompt: int, steps: int) -> tuple[float, float]:
        def run(length: int, total: int, past: Any) -> Any:
            tokens = torch.full((batch, length), TOKEN)
            positions = torch.arange(total - length, total).expand(batch, -1)
            mask = torch.ones(batch, total, dtype=torch.long)
            return model(
                input_ids=tokens, attention_mask=mask, position_ids=positions,
                past_key_values=past, use_cache=True,
            ).past_key_values  # fmt: skip

        began = time.perf_counter()
        past = run(prompt, prompt, None)
        middle = time.perf_counter()
        for step in range(steps):
            past = run(1, prompt + step + 1, past)
        return middle - began, (time.perf_counter() - middle) / steps

    return answer


def ctranslate2(path: Path, threads: int) -> Answer:
    """There is no call for a single step: the time of a longer text minus that of one token."""
    import ctranslate2 as ct2

    generator = ct2.Generator(str(path), device="cpu", intra_threads=threads, inter_threads=1)
    vocabulary = json.loads((path / "vocabulary.json").read_text())

    def answer(batch: int, prompt: int, steps: int) -> tuple[float, float]:
        def run(length: int) -> float:
            began = time.perf_counter()
            generator.generate_batch(
                [[vocabulary[TOKEN]] * prompt] * batch, max_length=length, min_length=length,
                sampling_topk=1, beam_size=1, include_prompt_in_result=False, end_token=[],
            )  # fmt: skip
            return time.perf_counter() - began

        first = run(1)
        return first, (run(1 + steps) - first) / steps

    return answer


def llamacpp(path: Path, threads: int) -> Answer:
    """llama.cpp with its fastest settings: repacked weights, flash attention, float16 cache."""
    from llama_cpp import llama_cpp as lib

    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    model_parameters = lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(str(path).encode(), model_parameters)
    parameters = lib.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 4096, 2048, 512
    parameters.n_seq_max = 8
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.flash_attn_type = 1
    context = lib.llama_init_from_model(model, parameters)
    batch_of = lib.llama_batch_init(2048, 0, 1)

    def decode(tokens: list[tuple[int, int, bool]]) -> None:
        batch_of.n_tokens = len(tokens)
        for i, (sequence, position, with_logits) in enumerate(tokens):
            batch_of.token[i], batch_of.pos[i], batch_of.logits[i] = TOKEN, position, with_logits
            batch_of.n_seq_id[i], batch_of.seq_id[i][0] = 1, sequence
        if lib.llama_decode(context, batch_of):
            raise SystemExit("llama_decode failed")
        lib.llama_synchronize(context)

    def answer(batch: int, prompt: int, steps: int, kept: Any = silent) -> tuple[float, float]:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        began = time.perf_counter()
        decode([(s, p, p == prompt - 1) for s in range(batch) for p in range(prompt)])
        middle = time.perf_counter()
        for step in range(steps):
            decode([(s, prompt + step, True) for s in range(batch)])
        return middle - began, (time.perf_counter() - middle) / steps

    return answer


def llama_quantize(source: str, target: str, type_: str) -> None:
    """Quantize a GGUF file as llama-quantize does."""
    import ctypes

    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type_}")
    status = llama_cpp.llama_model_quantize(
        source.encode(), target.encode(), ctypes.byref(parameters)
    )
    if status:
        raise SystemExit(f"llama_model_quantize returned {status}")


KINDS: dict[str, Callable[[Path, int], Answer]] = {
    "onnxruntime": onnxruntime,
    "genai": genai,
    "optimum": optimum,
    "ctranslate2": ctranslate2,
    "llama.cpp": llamacpp,
}


def main() -> None:
    """Answer the requests on stdin until it is closed."""
    kind, *rest = sys.argv[1:]
    if kind == "llama-quantize":
        llama_quantize(*rest)
        return
    answer = KINDS[kind](Path(rest[0]), int(rest[1]))
    for line in sys.stdin:
        request = json.loads(line)
        prefill, decode = answer(request["batch"], request["prompt"], request["steps"])
        print(json.dumps({"prefill": prefill, "decode": decode}), flush=True)


if __name__ == "__main__":
    main()
