"""GGUF files in the real llama.cpp."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cgconvert import embedded
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf.writer import file_name, plan
from cgconvert.formats.read import read as read_source
from cgconvert.runtimes import llamacpp
from cgconvert.runtimes.llamacpp import LlamaCppRuntime
from cgconvert.texts import corpus
from cgconvert.write.execute import execute
from tests.support.gguf_bytes import string
from tests.support.gguf_models import (
    CODE,
    GEOMETRIES,
    ROWS,
    converted,
    prompt,
    random_checkpoint,
    reference,
    tokenizer,
)
from tests.support.logit_distances import kl_divergence, max_difference


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return functools.partial(converted, tmp_path_factory.mktemp("gguf"))


@pytest.fixture
def run() -> Iterator[Callable[..., LlamaCppRuntime]]:
    """Open files in llama.cpp, closed at the end."""
    opened: list[LlamaCppRuntime] = []

    def start(path: Path, **options: object) -> LlamaCppRuntime:
        opened.append(LlamaCppRuntime.open(path, "cpu", 1, **options))
        return opened[-1]

    yield start
    for runtime in opened:
        runtime.close()


# What llama.cpp computes


@pytest.mark.parametrize("head", GEOMETRIES)
@pytest.mark.parametrize(
    ("type_", "bound"),
    [("F32", 5e-7), ("F16", 1e-6), ("BF16", 1e-4), ("Q8_0", 1e-3), ("Q4_0", 0.1)],
)
def test_logits_equal_transformers_within_the_types_bound(
    head: int,
    type_: str,
    bound: float,
    convert: Callable[..., Path],
    run: Callable[..., LlamaCppRuntime],
) -> None:
    """About five times what is measured on the worst of the three, head size 256."""
    ids = prompt()
    logits = run(convert(type_, head)).feed(ids)[:, : tokenizer().size]
    divergence = kl_divergence(reference(head, ids), logits).mean()
    assert divergence <= bound


def test_a_wrong_rotary_order_would_show(
    tmp_path: Path, run: Callable[..., LlamaCppRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds above mean something: such a mistake gives 4e-3 where attention is sharp."""
    checkpoint = random_checkpoint(64)
    monkeypatch.setattr(type(checkpoint.decoder), "half_split", lambda decoder: decoder)
    output = tmp_path / "wrong.gguf"
    execute(plan(checkpoint, output, type="F32"))
    logits = run(output).feed(prompt())[:, : tokenizer().size]
    assert kl_divergence(reference(64, prompt()), logits).mean() > 1e-3


def test_the_embedded_model_keeps_the_promised_bounds(
    tmp_path: Path, run: Callable[..., LlamaCppRuntime]
) -> None:
    """On trained weights and held-out text: the bounds the project promises."""
    from transformers import AutoModelForCausalLM

    checkpoint = read_source(str(embedded.path()))
    model = AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32).eval()
    ids = checkpoint.tokenizer.encode("\n".join(corpus.text("evaluation", 4000)))[:512]
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, :, : checkpoint.tokenizer.size].numpy()
    for type_, bound in (("F32", 1e-6), ("F16", 1e-6), ("Q8_0", 3e-4)):
        output = tmp_path / file_name(checkpoint, type_)
        execute(plan(checkpoint, output, type=type_))
        logits = run(output).feed(ids)[:, : checkpoint.tokenizer.size]
        assert kl_divergence(expected, logits).mean() <= bound, type_


def test_pieces_through_the_cache_equal_a_full_pass(
    convert: Callable[..., Path], run: Callable[..., LlamaCppRuntime]
) -> None:
    runtime, ids = run(convert("F32")), prompt()
    whole = runtime.feed(ids)
    runtime.reset()
    steps = np.concatenate([runtime.feed(ids[:40]), *(runtime.feed([t]) for t in ids[40:])])
    assert max_difference(whole, steps) <= 5e-4 * np.abs(whole).max()
    assert max_difference(whole, runtime.feed(ids)) > 0.1  # not reset: these are other positions
    runtime.reset()
    np.testing.assert_array_equal(runtime.feed(ids), whole)


def test_long_input_is_computed_in_batches(
    convert: Callable[..., Path],
    run: Callable[..., LlamaCppRuntime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = prompt()
    whole = run(convert("F32")).feed(ids)
    monkeypatch.setattr(llamacpp, "BATCH_TOKENS", 16)
    assert max_difference(whole, run(convert("F32")).feed(ids)) <= 5e-4 * np.abs(whole).max()


def test_greedy_tokens_are_the_references_best(
    convert: Callable[..., Path], run: Callable[..., LlamaCppRuntime]
) -> None:
    """Each token is the reference's best, or as good within the noise of the arithmetic."""
    runtime, start = run(convert("F32")), list(prompt()[:24])
    ids, waiting = list(start), start
    for _ in range(32):
        waiting = [int(runtime.feed(waiting)[-1, : tokenizer().size].argmax())]
        ids += waiting
    expected = reference(64, tuple(ids))[len(start) - 1 : -1]
    lost = expected.max(-1) - expected[np.arange(len(expected)), ids[len(start) :]]
    assert lost.max() <= 2e-3 * np.abs(expected).max()
    assert (lost == 0).mean() > 0.9


# The tokenizer


@pytest.mark.parametrize("text", [CODE, *(t[:2000] for t in corpus.text("evaluation", 40_000))])
def test_ids_are_those_of_hugging_face(
    text: str, convert: Callable[..., Path], run: Callable[..., LlamaCppRuntime]
) -> None:
    runtime, ids = run(convert()), tokenizer().encode(text)
    assert runtime.tokenize(text) == ids
    assert runtime.detokenize(ids) == text


@pytest.mark.parametrize("text", ["", " ", "  ", "\t", " " * 64, "\t" * 20, "a\x00b", "[PAD4150]"])
def test_ids_of_odd_texts_are_those_of_hugging_face(
    text: str, convert: Callable[..., Path], run: Callable[..., LlamaCppRuntime]
) -> None:
    runtime, ids = run(convert()), tokenizer().encode(text)
    assert runtime.tokenize(text) == ids
    assert runtime.detokenize(ids) == text


def test_every_id_has_its_own_bytes(
    convert: Callable[..., Path], run: Callable[..., LlamaCppRuntime]
) -> None:
    runtime = run(convert())
    for index in range(tokenizer().size):
        assert runtime.detokenize([index]) == tokenizer().decode([index])
    assert runtime.detokenize(range(tokenizer().size, ROWS)) == ""
    assert runtime.eos_token_ids == (tokenizer().eos_token_id,)
    assert runtime.tokenizer_size == tokenizer().size


def test_samplers_suppress_padding(
    convert: Callable[..., Path], run: Callable[..., LlamaCppRuntime]
) -> None:
    runtime = run(convert())
    count = ctypes.c_int32()
    function = runtime._library.llama_vocab_get_suppress_tokens
    ids = function(runtime._vocab, ctypes.byref(count))
    assert ids[: count.value] == list(range(tokenizer().size, ROWS))


# The runtime's manners


def test_llama_cpp_is_silent(
    convert: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    LlamaCppRuntime.open(convert(), threads=1).close()
    assert capfd.readouterr() == ("", "")


def test_closing_twice_is_harmless(convert: Callable[..., Path]) -> None:
    runtime = LlamaCppRuntime.open(convert(), threads=1)
    runtime.close()
    runtime.close()


def test_the_context_is_the_files_or_a_smaller_one(
    convert: Callable[..., Path], run: Callable[..., LlamaCppRuntime]
) -> None:
    assert run(convert()).n_positions == 256
    short = run(convert(), n_ctx=32)
    assert short.n_positions == 32
    short.feed(prompt()[:30])
    with pytest.raises(UsageError, match=r"33 tokens are more than .* 32"):
        short.feed([1, 2, 3])
    with pytest.raises(UsageError, match=f"token {ROWS} is not one"):
        short.feed([ROWS])


def test_other_caches_are_nearly_as_good(
    convert: Callable[..., Path], run: Callable[..., LlamaCppRuntime]
) -> None:
    expected = reference(64, prompt())
    for options in (
        {"cache_type": "F16"},
        {"flash_attention": True},
        {"cache_type": "F16", "flash_attention": True},
    ):
        logits = run(convert("F32"), **options).feed(prompt())[:, : tokenizer().size]
        assert 0 < kl_divergence(expected, logits).mean() <= 1e-5


def test_an_absent_device_is_an_error(convert: Callable[..., Path]) -> None:
    """Either this build runs on CUDA, or it says that it does not: never the CPU instead."""
    if llamacpp._library().llama_supports_gpu_offload():
        runtime = LlamaCppRuntime.open(convert(), "cuda")
        assert runtime.device == "cuda"
        runtime.close()
    else:
        with pytest.raises(UsageError, match="cuda"):
            LlamaCppRuntime.open(convert(), "cuda")
    with pytest.raises(UsageError, match="tpu"):
        LlamaCppRuntime.open(convert(), "tpu")


def test_a_missing_tensor_is_named(tmp_path: Path, convert: Callable[..., Path]) -> None:
    """A sound header, but a tensor llama.cpp needs goes by another name."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(convert().read_bytes().replace(b"output_norm.bias", b"output_norm.bios"))
    with pytest.raises(InputError, match=r"output_norm\.bias is missing"):
        LlamaCppRuntime.open(broken)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phi2.block_count", 0),
        ("phi2.block_count", 3),
        ("phi2.block_count", 1 << 30),
        ("phi2.block_count", (1 << 32) - 1),
        ("phi2.rope.dimension_count", 1 << 30),
        ("phi2.attention.head_count", 3),
        ("phi2.attention.head_count_kv", 2),
        ("phi2.context_length", 0),
    ],
)
def test_metadata_that_breaks_llama_cpp_is_refused(
    key: str, value: int, tmp_path: Path, convert: Callable[..., Path]
) -> None:
    """Some of these abort llama.cpp, and the process with it, or keep it busy for ever."""
    data, name = convert().read_bytes(), string(key.encode())
    place = data.index(name) + len(name) + 4
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data[:place] + struct.pack("<I", value) + data[place + 4 :])
    with pytest.raises(InputError, match=r"broken\.gguf: [^\n]+$"):
        LlamaCppRuntime.open(broken)
