"""GGUF files in the real llama.cpp, read back by gguf-py and by the reader of their headers."""

from __future__ import annotations

import ctypes
import functools
import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from cgconvert import corpus, embedded, synthetic
from cgconvert.checkpoint import gguf as reader
from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.checkpoint.gguf_header import read_header
from cgconvert.checkpoint.read import read as read_source
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf import TYPES, file_name, plan
from cgconvert.model import Geometry
from cgconvert.names import CODEGEN, GGUF
from cgconvert.runtimes import llamacpp
from cgconvert.runtimes.llamacpp import LlamaCpp
from cgconvert.stream.execute import execute
from cgconvert.tensor import InMemory
from cgconvert.tokenizer import Tokenizer
from cgconvert.verify.metrics import kl_divergence, noise

ROWS = 4200
"""More than the embedded tokenizer has ids, so that there is padding."""

# Head sizes and rotary dimensions of the family, in four heads and two layers.
GEOMETRIES = {
    head: Geometry(
        n_layer=2, n_embd=4 * head, n_head=4, rotary_dim=rotary, n_positions=256,
        vocab_size=ROWS, mp_num=4,
    )
    for head, rotary in ((64, 32), (80, 64), (256, 64))
}  # fmt: skip

CODE = (
    "def hello(x):\n        return x + 1\n\t\tfoo\n\n\n\n\n"
    + " " * 33
    + "é = '日本語 🙂'\t\t\t\t\t\t\t\t\t\t\t# naïve\r\n"
    + "if x != 'a' and (y <= 3.14) :  # it's , . ! ?\n    pass<|endoftext|>\nclass  A:\n"
)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(embedded.path())


@functools.cache
def random_checkpoint(head: int) -> Checkpoint:
    geometry = GEOMETRIES[head]
    state = synthetic.RandomState(geometry, seed=head, sharpness=4)
    tensors = {name: InMemory(tensor) for name, tensor in state.items()}
    decoder = CODEGEN.decoder(geometry, tensors, "random")
    return Checkpoint("codegen-9M-multi", Path("random"), "torch", {}, decoder, tokenizer(), ())


@functools.cache
def reference(head: int, ids: tuple[int, ...]) -> np.ndarray:
    """Logits of transformers in float32, [tokens, tokenizer's ids]."""
    from transformers import CodeGenConfig, CodeGenForCausalLM

    geometry = GEOMETRIES[head]
    state = synthetic.RandomState(geometry, seed=head, sharpness=4)
    config = CodeGenConfig(**synthetic.codegen_config(geometry, torch.float32))
    model = CodeGenForCausalLM(config).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    scores: np.ndarray = logits[:, : tokenizer().size].numpy()
    return scores


def prompt() -> tuple[int, ...]:
    return tuple(tokenizer().encode(CODE))


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random model, each only once."""
    folder = tmp_path_factory.mktemp("gguf")

    def write(type: str = "F16", head: int = 64) -> Path:  # noqa: A002
        checkpoint = random_checkpoint(head)
        output = folder / f"{head}" / file_name(checkpoint, type)
        if not output.exists():
            execute(plan(checkpoint, output, type=type), checkpoint)
        return output

    return write


@pytest.fixture
def run() -> Iterator[Callable[..., LlamaCpp]]:
    """Open files in llama.cpp, closed at the end."""
    opened: list[LlamaCpp] = []

    def start(path: Path, **options: object) -> LlamaCpp:
        opened.append(LlamaCpp.open(path, "cpu", 1, **options))  # type: ignore[arg-type]
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
def test_logits_are_those_of_transformers(
    head: int, type_: str, bound: float, convert: Callable[..., Path], run: Callable[..., LlamaCpp]
) -> None:
    """About five times what is measured on the worst of the three, head size 256."""
    ids = prompt()
    logits = run(convert(type_, head)).feed(ids)[:, : tokenizer().size]
    divergence = kl_divergence(reference(head, ids), logits).mean()
    assert divergence <= bound


def test_a_wrong_rotary_order_would_show(
    tmp_path: Path, run: Callable[..., LlamaCpp], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds above mean something: such a mistake gives 4e-3 where attention is sharp."""
    checkpoint = random_checkpoint(64)
    monkeypatch.setattr(type(checkpoint.decoder), "half_split", lambda decoder: decoder)
    output = tmp_path / "wrong.gguf"
    execute(plan(checkpoint, output, type="F32"), checkpoint)
    logits = run(output).feed(prompt())[:, : tokenizer().size]
    assert kl_divergence(reference(64, prompt()), logits).mean() > 1e-3


def test_embedded_model(tmp_path: Path, run: Callable[..., LlamaCpp]) -> None:
    """On trained weights and held-out text: the bounds the project promises."""
    from transformers import AutoModelForCausalLM

    checkpoint = read_source(str(embedded.path()))
    model = AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32).eval()
    ids = checkpoint.tokenizer.encode("\n".join(corpus.text("evaluation", 4000)))[:512]
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0, :, : checkpoint.tokenizer.size].numpy()
    for type_, bound in (("F32", 1e-6), ("F16", 1e-6), ("Q8_0", 3e-4)):
        output = tmp_path / file_name(checkpoint, type_)
        execute(plan(checkpoint, output, type=type_), checkpoint)
        logits = run(output).feed(ids)[:, : checkpoint.tokenizer.size]
        assert kl_divergence(wanted, logits).mean() <= bound, type_


def test_cache_goes_on_where_it_was(
    convert: Callable[..., Path], run: Callable[..., LlamaCpp]
) -> None:
    runtime, ids = run(convert("F32")), prompt()
    whole = runtime.feed(ids)
    runtime.reset()
    steps = np.concatenate([runtime.feed(ids[:40]), *(runtime.feed([t]) for t in ids[40:])])
    assert noise(whole, steps) <= 5e-4 * np.abs(whole).max()
    assert noise(whole, runtime.feed(ids)) > 0.1  # not reset: these are other positions
    runtime.reset()
    np.testing.assert_array_equal(runtime.feed(ids), whole)


def test_long_input_is_computed_in_batches(
    convert: Callable[..., Path], run: Callable[..., LlamaCpp], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt()
    whole = run(convert("F32")).feed(ids)
    monkeypatch.setattr(llamacpp, "BATCH", 16)
    assert noise(whole, run(convert("F32")).feed(ids)) <= 5e-4 * np.abs(whole).max()


def test_greedy_generation(convert: Callable[..., Path], run: Callable[..., LlamaCpp]) -> None:
    """Each token is the reference's best, or as good within the noise of the arithmetic."""
    runtime, start = run(convert("F32")), list(prompt()[:24])
    ids, waiting = list(start), start
    for _ in range(32):
        waiting = [int(runtime.feed(waiting)[-1, : tokenizer().size].argmax())]
        ids += waiting
    wanted = reference(64, tuple(ids))[len(start) - 1 : -1]
    lost = wanted.max(-1) - wanted[np.arange(len(wanted)), ids[len(start) :]]
    assert lost.max() <= 2e-3 * np.abs(wanted).max()
    assert (lost == 0).mean() > 0.9


# The tokenizer


@pytest.mark.parametrize("text", [CODE, *(t[:2000] for t in corpus.text("evaluation", 40_000))])
def test_ids_are_those_of_hugging_face(
    text: str, convert: Callable[..., Path], run: Callable[..., LlamaCpp]
) -> None:
    runtime, ids = run(convert()), tokenizer().encode(text)
    assert runtime.tokenize(text) == ids
    assert runtime.detokenize(ids) == text


@pytest.mark.parametrize("text", ["", " ", "  ", "\t", " " * 64, "\t" * 20, "a\x00b", "[PAD4150]"])
def test_ids_of_odd_texts(
    text: str, convert: Callable[..., Path], run: Callable[..., LlamaCpp]
) -> None:
    runtime, ids = run(convert()), tokenizer().encode(text)
    assert runtime.tokenize(text) == ids
    assert runtime.detokenize(ids) == text


def test_every_id_has_its_own_bytes(
    convert: Callable[..., Path], run: Callable[..., LlamaCpp]
) -> None:
    runtime = run(convert())
    for index in range(tokenizer().size):
        assert runtime.detokenize([index]) == tokenizer().decode([index])
    assert runtime.detokenize(range(tokenizer().size, ROWS)) == ""
    assert runtime.end_of_text == tokenizer().end_of_text
    assert runtime.tokens == tokenizer().size


def test_samplers_are_told_of_the_padding(
    convert: Callable[..., Path], run: Callable[..., LlamaCpp]
) -> None:
    runtime = run(convert())
    count = ctypes.c_int32()
    function = runtime._lib.llama_vocab_get_suppress_tokens
    ids = function(runtime._vocab, ctypes.byref(count))
    assert ids[: count.value] == list(range(tokenizer().size, ROWS))


# The runtime's manners


def test_llama_cpp_is_silent(convert: Callable[..., Path], capfd: pytest.CaptureFixture) -> None:
    LlamaCpp.open(convert(), threads=1).close()
    assert capfd.readouterr() == ("", "")


def test_close_twice(convert: Callable[..., Path]) -> None:
    runtime = LlamaCpp.open(convert(), threads=1)
    runtime.close()
    runtime.close()


def test_context_is_the_files_or_less(
    convert: Callable[..., Path], run: Callable[..., LlamaCpp]
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
    convert: Callable[..., Path], run: Callable[..., LlamaCpp]
) -> None:
    wanted = reference(64, prompt())
    for options in ({"cache": "F16"}, {"flash": True}, {"cache": "F16", "flash": True}):
        logits = run(convert("F32"), **options).feed(prompt())[:, : tokenizer().size]
        assert 0 < kl_divergence(wanted, logits).mean() <= 1e-5


def test_device_that_is_not_there(convert: Callable[..., Path]) -> None:
    """Either this build runs on CUDA, or it says that it does not: never the CPU instead."""
    if llamacpp._library().llama_supports_gpu_offload():
        runtime = LlamaCpp.open(convert(), "cuda")
        assert runtime.device == "cuda"
        runtime.close()
    else:
        with pytest.raises(UsageError, match="cuda"):
            LlamaCpp.open(convert(), "cuda")
    with pytest.raises(UsageError, match="tpu"):
        LlamaCpp.open(convert(), "tpu")


def test_file_llama_cpp_refuses(tmp_path: Path, convert: Callable[..., Path]) -> None:
    """A sound header, but a tensor llama.cpp needs goes by another name."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(convert().read_bytes().replace(b"output_norm.bias", b"output_norm.bios"))
    with pytest.raises(InputError, match=r"output_norm\.bias is missing"):
        LlamaCpp.open(broken)


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
def test_metadata_llama_cpp_would_choke_on(
    key: str, value: int, tmp_path: Path, convert: Callable[..., Path]
) -> None:
    """Some of these abort llama.cpp, and the process with it, or keep it busy for ever."""
    data, name = convert().read_bytes(), string(key.encode())
    place = data.index(name) + len(name) + 4
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data[:place] + struct.pack("<I", value) + data[place + 4 :])
    with pytest.raises(InputError, match=r"broken\.gguf: [^\n]+$"):
        LlamaCpp.open(broken)


def test_llama_quantize_takes_it(
    tmp_path: Path, convert: Callable[..., Path], run: Callable[..., LlamaCpp]
) -> None:
    """llama.cpp's own quantizer, which many tools call, F16 to Q4_K_M."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 1
    output = tmp_path / "Q4_K_M.gguf"
    status = llama_cpp.llama_model_quantize(
        str(convert()).encode(), str(output).encode(), ctypes.byref(parameters)
    )
    assert status == 0
    types = {tensor.name: tensor.type for tensor in read_header(output).tensors}
    assert types["output.weight"] == "Q6_K"
    assert types["blk.0.attn_q.weight"] == "Q4_K"  # a fused qkv would be Q6_K
    logits = run(output).feed(prompt())[:, : tokenizer().size]
    assert kl_divergence(reference(64, prompt()), logits).mean() < 1.0
    with pytest.raises(InputError, match=r"is Q\d_K"):
        reader.decoder(output)


# The bytes


def test_same_bytes_whatever_the_chunks(
    tmp_path: Path, convert: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = random_checkpoint(64)
    monkeypatch.setattr("cgconvert.stream.plan.CHUNK_BYTES", 5000)
    for type_ in ("F16", "Q4_0"):
        output = tmp_path / file_name(checkpoint, type_)
        execute(plan(checkpoint, output, type=type_), checkpoint)
        assert output.read_bytes() == convert(type_).read_bytes()


@pytest.mark.parametrize("type_", ["F16", "Q8_0"])
def test_gguf_py_writes_the_same_file(
    type_: str, tmp_path: Path, convert: Callable[..., Path]
) -> None:
    """What gguf-py makes of our metadata and tensors, tensor data and padding included."""
    ours = gguf.GGUFReader(convert(type_))
    output = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(output, "phi2")
    for field in ours.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kinds = [*field.types, None]
        writer.add_key_value(field.name, field.contents(), kinds[0], kinds[1])
    for tensor in ours.tensors:
        writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert output.read_bytes() == convert(type_).read_bytes()


def test_metadata(convert: Callable[..., Path]) -> None:
    metadata = dict(read_header(convert("Q8_0", 80)).metadata)
    tokens = metadata.pop("tokenizer.ggml.tokens")
    types = metadata.pop("tokenizer.ggml.token_type").tolist()
    assert metadata.pop("tokenizer.ggml.suppress_tokens").tolist() == list(
        range(tokenizer().size, ROWS)
    )
    assert metadata.pop("tokenizer.ggml.merges")[0] == " ".join(tokenizer().merges[0])
    end = tokenizer().end_of_text
    assert metadata == {
        "general.architecture": "phi2",
        "general.type": "model",
        "general.name": "codegen-9M-multi",
        "general.basename": "codegen",
        "general.size_label": "9M",
        "general.finetune": "multi",
        "general.license": "bsd-3-clause",
        "general.tags": ["text-generation", "code", "codegen"],
        "general.file_type": 7,
        "general.quantization_version": 2,
        "phi2.context_length": 256,
        "phi2.embedding_length": 320,
        "phi2.feed_forward_length": 1280,
        "phi2.block_count": 2,
        "phi2.attention.head_count": 4,
        "phi2.attention.head_count_kv": 4,
        "phi2.attention.layer_norm_epsilon": float(np.float32(1e-5)),
        "phi2.rope.dimension_count": 64,
        "phi2.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.eot_token_id": end,
        "tokenizer.ggml.unknown_token_id": end,
        "tokenizer.ggml.padding_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert len(tokens) == len(types) == len(set(tokens)) == ROWS
    assert (tokens[end], types[end]) == ("<|endoftext|>", 3)
    assert {types[index] for index in tokenizer().whitespace_ids} == {4}
    assert set(types[tokenizer().size :]) == {5}
    assert tokens[-1] == f"[PAD{ROWS - 1}]"


def test_only_matrices_are_narrow(convert: Callable[..., Path]) -> None:
    for tensor in read_header(convert("Q4_0")).tensors:
        assert tensor.type == ("Q4_0" if len(tensor.shape) == 2 else "F32"), tensor.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("codegen-350M-mono", "codegen-350M-mono-Q8_0.gguf"),
        ("my model", "my-model-Q8_0.gguf"),
    ],
)
def test_file_name(name: str, expected: str) -> None:
    assert file_name(replace(random_checkpoint(64), name=name), "Q8_0") == expected


def test_unknown_type() -> None:
    with pytest.raises(UsageError, match="Q9_9"):
        plan(random_checkpoint(64), Path("x.gguf"), type="Q9_9")


# Reading back


@pytest.mark.parametrize("type_", ["F32", "F16"])
def test_source_comes_back_bit_by_bit(
    type_: str, tmp_path: Path, convert: Callable[..., Path]
) -> None:
    path, original = convert(type_, 80), random_checkpoint(80)
    again = read_source(str(path))
    assert (again.name, again.layout, again.files) == (original.name, "gguf", (path,))
    assert again.geometry == replace(original.geometry, mp_num=0)
    assert again.tokenizer == original.tokenizer
    for part in GGUF.model:
        assert _same(getattr(again.decoder, part), getattr(original.decoder, part)), part
    for ours, theirs in zip(again.decoder.blocks, original.decoder.blocks, strict=True):
        for part in GGUF.block:
            assert _same(getattr(ours, part), getattr(theirs, part)), part
    output = tmp_path / "again.gguf"
    execute(plan(again, output, type=type_), again)
    assert output.read_bytes() == path.read_bytes()


def _same(ours: object, theirs: object) -> bool:
    return torch.equal(ours.read().half(), theirs.read())  # type: ignore[attr-defined]


@pytest.mark.parametrize("type_", ["Q8_0", "Q4_0", "BF16"])
def test_stored_weights_are_decoded(type_: str, convert: Callable[..., Path]) -> None:
    path = convert(type_)
    tensors = reader.tensors(path, read_header(path))
    for tensor in gguf.GGUFReader(path).tensors:
        ours = tensors[tensor.name]
        theirs = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(ours.read().float(), theirs), tensor.name
        assert torch.equal(ours.read(slice(3, 9)).float(), theirs[3:9])
    q = reader.decoder(path).blocks[1].q
    assert torch.equal(q.read(slice(5, 70), slice(7, 90)), q.read()[5:70, 7:90])


def test_quantized_is_no_source(convert: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"is quantized \(Q8_0\): convert from its source"):
        read_source(str(convert("Q8_0")))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"phi2.rope.freq_base", b"phi2.rope.freq_bass", "rope.freq_base is None"),
        (b"phi2.block_count", b"phi2.block_cuont", "block_count is None"),
        (b"tokenizer.ggml.pre", b"tokenizer.ggml.per", "tokenizer.ggml.pre is None"),
        (b"tokenizer.ggml.merges", b"tokenizer.ggml.margen", "merges is not a list"),
        (b"tokenizer.ggml.token_type", b"tokenizer.ggml.token_tipe", "token_type does not"),
        (b"token_embd.weight", b"token_embd.weighs", "token_embd.weight is missing"),
        (b"blk.1.attn_q.weight", b"blk.3.attn_q.weight", "blk.1.attn_q.weight is missing"),
        (b"\x04\0\0\0\0\0\0\0phi2", b"\x04\0\0\0\0\0\0\0phi3", "architecture is 'phi3'"),
    ],
)
def test_what_is_missing_is_named(
    old: bytes, new: bytes, said: str, tmp_path: Path, convert: Callable[..., Path]
) -> None:
    path = tmp_path / "changed.gguf"
    data = convert().read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        reader.read(path, "x")
    assert "\n" not in str(caught.value)


def test_biases_that_codegen_has_not(tmp_path: Path, convert: Callable[..., Path]) -> None:
    path = tmp_path / "phi.gguf"
    data = bytearray(convert().read_bytes())
    tensor = next(t for t in read_header(convert()).tensors if t.name == "blk.1.attn_k.bias")
    data[tensor.offset : tensor.offset + 4] = struct.pack("<f", 0.5)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"blk.1.attn_k.bias is not zero"):
        reader.read(path, "x")


# Headers that lie


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def start(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def info(name: bytes, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    size = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + size + struct.pack("<IQ", kind, offset)


def padded(header: bytes, data: int = 128) -> bytes:
    return header + bytes(-len(header) % 32 + data)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


UINT8 = pair(b"k", 0, b"\1")
HOSTILE = {
    "empty": b"",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "HTML page": b"<!DOCTYPE html><html></html>",
    "magic only": b"GGUF",
    "version 1": start(0, 0, 1),
    "version 4": start(0, 0, 4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "tensors beyond counting": start(1 << 62, 0),
    "pairs beyond counting": start(0, 1 << 62),
    "pairs that are not there": start(0, 3) + UINT8,
    "key length": start(0, 1) + struct.pack("<Q", 1 << 63) + b"k",
    "empty key": start(0, 1) + pair(b"", 0, b"\1"),
    "key not ASCII": start(0, 1) + pair("ключ".encode(), 0, b"\1"),
    "key twice": start(0, 2) + UINT8 * 2,
    "unknown value type": start(0, 1) + pair(b"k", 13, b"\1"),
    "string not UTF-8": start(0, 1) + pair(b"k", 8, string(b"\xff\xfe")),
    "string length": start(0, 1) + pair(b"k", 8, struct.pack("<Q", 1 << 40)),
    "array length": start(0, 1) + pair(b"k", 9, struct.pack("<IQ", 0, 1 << 60)),
    "array of strings length": start(0, 1) + pair(b"k", 9, struct.pack("<IQ", 8, 1 << 60)),
    "array of arrays": start(0, 1) + pair(b"k", 9, struct.pack("<IQ", 9, 1) * 2),
    "truth value": start(0, 1) + pair(b"k", 7, b"\2"),
    "array of truth values": start(0, 1) + pair(b"k", 9, struct.pack("<IQ", 7, 2) + b"\1\2"),
    "alignment 0": start(0, 1) + pair(b"general.alignment", 4, struct.pack("<I", 0)),
    "alignment 24": start(0, 1) + pair(b"general.alignment", 4, struct.pack("<I", 24)),
    "alignment 2^31": start(0, 1) + pair(b"general.alignment", 4, struct.pack("<I", 1 << 31)),
    "alignment text": start(0, 1) + pair(b"general.alignment", 8, string(b"32")),
    "tensors that are not there": start(2, 0) + info(b"a"),
    "long name": padded(start(1, 0) + info(b"a" * 64)),
    "name twice": padded(start(2, 0) + info(b"a") + info(b"a", offset=128), 256),
    "no dimensions": padded(start(1, 0) + info(b"a", ())),
    "five dimensions": padded(start(1, 0) + info(b"a", (1, 1, 1, 1, 32))),
    "dimension 0": padded(start(1, 0) + info(b"a", (32, 0))),
    "shape overflows": padded(start(1, 0) + info(b"a", (1 << 32, 1 << 32))),
    "dimension overflows": padded(start(1, 0) + info(b"a", ((1 << 64) - 1,))),
    "unknown tensor type": padded(start(1, 0) + info(b"a", kind=4)),
    "tensor type 2^31": padded(start(1, 0) + info(b"a", kind=1 << 31)),
    "row not of blocks": padded(start(1, 0) + info(b"a", (33,), kind=8)),
    "overlap": padded(start(2, 0) + info(b"a") + info(b"b", offset=64), 256),
    "hole": padded(start(2, 0) + info(b"a") + info(b"b", offset=160), 320),
    "offset not aligned": padded(start(2, 0) + info(b"a") + info(b"b", offset=129), 260),
    "first offset": padded(start(1, 0) + info(b"a", offset=32), 192),
    "offset beyond the file": padded(start(1, 0) + info(b"a", offset=1 << 60)),
    "data cut short": padded(start(1, 0) + info(b"a"), 127),
    "no data": start(1, 0) + info(b"a"),
    "bytes that follow": padded(start(1, 0) + info(b"a"), 129),
    "bytes that follow no tensor": start(0, 1) + UINT8 + b"\0",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_header(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[kind])
    before = time.perf_counter()
    with pytest.raises(InputError, match=r"hostile\.gguf: not a valid GGUF file: [^\n]+$"):
        read_header(path)
    with pytest.raises(InputError):
        LlamaCpp.open(path)
    assert time.perf_counter() - before < 5


def test_sound_headers_are_taken(tmp_path: Path) -> None:
    """The pieces the hostile ones are made of are right where they do not lie."""
    path = tmp_path / "sound.gguf"
    path.write_bytes(
        padded(start(2, 1) + UINT8 + info(b"a", (32, 2), 8) + info(b"b", (4,), offset=96), 112)
    )
    header = read_header(path)
    assert header.metadata == {"k": 1}
    first, second = header.tensors
    assert (first.shape, first.type, first.offset) == ((2, 32), "Q8_0", header.data_start)
    assert (second.shape, second.type, second.nbytes) == ((4,), "F32", 16)
    for data in (start(0, 0), padded(start(1, 0) + info(b"a", (3,)), 12)):
        path.write_bytes(data)  # no tensors; and nothing after the last one
        read_header(path)


def test_a_header_of_any_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    numbers = bytes(8 << 20)
    with path.open("wb") as file:
        file.write(start(0, 5))
        for n in range(5):
            file.write(pair(b"k%d" % n, 9, struct.pack("<IQ", 0, len(numbers)) + numbers))
    before = time.perf_counter()
    with pytest.raises(InputError, match="beyond the 32 MiB a header may have"):
        read_header(path)
    assert time.perf_counter() - before < 10


def test_damaged_headers_never_crash(tmp_path: Path, convert: Callable[..., Path]) -> None:
    data, path = bytearray(convert().read_bytes()), tmp_path / "damaged.gguf"
    header = read_header(convert())
    chance = random.Random(0)
    for _ in range(300):
        copy = bytearray(data[: header.data_start + 4096])
        names = range(header.data_start - 4000, header.data_start)
        for _ in range(chance.choice([1, 4])):
            place = chance.choice([chance.choice(names), chance.randrange(1500)])
            copy[place] = chance.randrange(256)
        path.write_bytes(copy[: chance.choice([None, chance.randrange(len(copy))])])
        with pytest.raises(InputError):
            reader.read(path, "x")


def test_types_are_those_of_gguf() -> None:
    for name, entry in TYPES.items():
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        (array,) = entry.encoding.arrays((2, 256))
        assert (array.dtype, array.row_bytes) == (name, 256 // block * nbytes)
