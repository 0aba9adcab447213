"""Train a small CodeGen on the standard library's source and write it in the Hub's layout.

The model is transformers' own CodeGenForCausalLM and the tokenizer is laid out as CodeGen's
(byte-level BPE, `<|endoftext|>` last of the base, then white-space runs, then rows without a
token), so everything that handles a real CodeGen handles the result.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from torch.nn import functional
from transformers import CodeGenConfig, CodeGenForCausalLM
from transformers.models.codegen.modeling_codegen import CodeGenAttention

from cgconvert.model.device import warm_up_mkl
from cgconvert.texts import corpus

END = "<|endoftext|>"
# CodeGen's own: longest first, spaces before tabs.
WHITE_SPACE = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]


def base_size(vocab_size: int) -> int:
    """Return the number of base tokens, END included, for a vocabulary of `vocab_size` rows.

    It is a multiple of 64 that leaves at least 64 rows without a token, as CodeGen has 905.
    Raises ValueError where no room is left for merges.
    """
    size = (vocab_size - len(WHITE_SPACE) - 64) // 64 * 64
    if size <= 257:
        raise ValueError(f"a vocabulary of {vocab_size} rows leaves no room for merges")
    return size


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """Return a tokenizer laid out as CodeGen's, with fewer ids than `vocab_size`.

    Raises ValueError where `vocab_size` is too small or the text too poor in pairs to fill it.
    """
    size = base_size(vocab_size)
    learner = Tokenizer(models.BPE())
    # The added tokens take the runs of white space before BPE sees them, so merges of such runs
    # would be rows that are never used: BPE learns from the text without them.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" {2,}|\t{2,}"), behavior="removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    learner.train_from_iterator(
        documents,
        BpeTrainer(
            vocab_size=size - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[],
            show_progress=False,
        ),
    )
    model = json.loads(learner.to_str())["model"]
    vocab = model["vocab"]
    if len(vocab) != size - 1:
        raise ValueError(f"the text gives {len(vocab)} tokens, {size - 1} were wanted")
    vocab[END] = size - 1
    merges = [tuple(m) for m in model["merges"]]
    result = Tokenizer(
        models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    result.post_processor = processors.ByteLevel(trim_offsets=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(END, normalized=True, special=True)])
    result.add_tokens([AddedToken(t, normalized=True, special=False) for t in WHITE_SPACE])
    return result


def write_tokenizer(tokenizer: Tokenizer, folder: Path, n_positions: int) -> None:
    """Write the six files of a CodeGen tokenizer into `folder`, which must exist."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    ends = {"bos_token": END, "eos_token": END, "unk_token": END}
    _write_json(folder / "special_tokens_map.json", ends)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CodeGenTokenizer",
            "model_max_length": n_positions,
            **ends,
            "add_prefix_space": False,
        },
    )
    added = {token: tokenizer.token_to_id(token) for token in WHITE_SPACE}
    _write_json(folder / "added_tokens.json", added)


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Return the UTF-8 bytes that each id stands for: int64 [vocab_size], 0 for END and padding."""
    sizes = np.zeros(vocab_size, dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        # In the byte-level alphabet every character is one byte.
        sizes[number] = 0 if token == END else len(token)
    return sizes


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Return the ids of END, document, END, document, …, END: uint16 [tokens]."""
    end = tokenizer.token_to_id(END)
    pieces = [np.array([end], dtype=np.uint16)]
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        pieces.append(np.array([*encoding.ids, end], dtype=np.uint16))
    return np.concatenate(pieces)


def windows(ids: np.ndarray, length: int, seed: int) -> Iterator[np.ndarray]:
    """Yield windows of `length` + 1 ids for ever, [length + 1] int64 each.

    Each round cuts the text at a random offset and shuffles the pieces, so every token is seen
    once a round and the cuts differ between rounds. Raises ValueError where the text is too short.
    """
    generator = np.random.default_rng(seed)
    if len(ids) < 2 * length + 1:
        raise ValueError(f"{len(ids)} tokens are too few for windows of {length}")
    while True:
        offset = int(generator.integers(length))
        count = (len(ids) - offset - 1) // length
        for index in generator.permutation(count):
            start = offset + int(index) * length
            yield ids[start : start + length + 1].astype(np.int64)


def _attention(
    self: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    # The same function of the same inputs as transformers' own, without the [T, T] matrices.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True), None


def build_model(
    n_layer: int, n_embd: int, n_head: int, rotary_dim: int, n_positions: int, rows: int, end: int
) -> CodeGenForCausalLM:
    """Return a freshly initialised CodeGen with `rows` embedding rows, in float32.

    Raises ValueError where n_head is not a multiple of 4 (qkv_proj has four groups) or does not
    divide n_embd, or rotary_dim is odd or wider than a head.
    """
    if n_head % 4 or n_embd % n_head:
        raise ValueError(f"n_head {n_head} must be a multiple of 4 and divide n_embd {n_embd}")
    if rotary_dim % 2 or not 0 < rotary_dim <= n_embd // n_head:
        raise ValueError(f"rotary_dim {rotary_dim} must be even and at most {n_embd // n_head}")
    config = CodeGenConfig(
        vocab_size=rows,
        n_positions=n_positions,
        n_ctx=n_positions,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        rotary_dim=rotary_dim,
        bos_token_id=end,
        eos_token_id=end,
        tie_word_embeddings=False,
    )
    model = CodeGenForCausalLM(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            # GPT-2's scaling: the residual stream's variance does not grow with depth.
            if name.endswith(("out_proj.weight", "fc_out.weight")):
                value.div_(math.sqrt(2 * n_layer))
    return model


def batch_loss(model: CodeGenForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean loss in nats a token (scalar) of `batch`, int64 [windows, length + 1]."""
    hidden = model.transformer(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden).float()
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def evaluate(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    ids: np.ndarray,
    sizes: np.ndarray,
    length: int,
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    """Return loss (nats a token), bits_per_byte, tokens and bytes over consecutive windows.

    Every id of whole windows but the first is predicted once, with the context that its window
    of `length` has; bits are counted for END too, bytes are the text's.
    """
    count = (len(ids) - 1) // length
    nats, tokens, size = 0.0, 0, 0
    with torch.no_grad():
        for first in range(0, count, batch_size):
            rows = range(first, min(first + batch_size, count))
            part = np.stack([ids[i * length : (i + 1) * length + 1] for i in rows]).astype(np.int64)
            nats += loss_of(torch.from_numpy(part).to(device)).item() * part[:, 1:].size
            tokens += part[:, 1:].size
            size += int(sizes[part[:, 1:]].sum())
    if not tokens:
        raise ValueError(f"{len(ids)} tokens are too few to evaluate windows of {length}")
    return {
        "loss": nats / tokens,
        "bits_per_byte": nats / math.log(2) / size,
        "tokens": tokens,
        "bytes": size,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_model(model: CodeGenForCausalLM, folder: Path) -> None:
    """Write config.json, generation_config.json and float16 model.safetensors into `folder`.

    Raises ValueError where a weight is not finite in float16.
    """
    config = model.config
    state = {}
    # Buffers are not part of a checkpoint: they follow from the config.
    for name, value in model.named_parameters():
        half = value.detach().to("cpu", torch.float16).contiguous()
        if not torch.isfinite(half).all():
            raise ValueError(f"{name} is not finite in float16")
        state[name] = half
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    geometry = ("n_ctx", "n_embd", "n_head", "n_layer", "n_positions", "rotary_dim", "vocab_size")
    _write_json(
        folder / "config.json",
        {
            "activation_function": "gelu_new",
            "architectures": ["CodeGenForCausalLM"],
            "attn_pdrop": 0.0,
            **ends,
            "embd_pdrop": 0.0,
            "initializer_range": config.initializer_range,
            "layer_norm_epsilon": config.layer_norm_epsilon,
            "model_type": "codegen",
            **{name: getattr(config, name) for name in geometry},
            "n_inner": None,
            "resid_pdrop": 0.0,
            "tie_word_embeddings": False,
            "tokenizer_class": "CodeGenTokenizer",
            "torch_dtype": "float16",
            "use_cache": True,
        },
    )
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})


def _optimizer(model: torch.nn.Module, weight_decay: float, lr: float) -> torch.optim.AdamW:
    # Norms and biases are not decayed, as usual; nor the rows of rare tokens.
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for name, value in model.named_parameters():
        (decayed if value.ndim == 2 and "wte" not in name else plain).append(value)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)


def learning_rate(done: float, warmup: float, peak: float) -> float:
    """Return the rate at `done` in [0, 1]: a linear rise over `warmup`, then a cosine to 2%."""
    if done < warmup:
        return peak * done / warmup
    wave = 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))
    return peak * (0.02 + 0.98 * wave)


@click.command(context_settings={"show_default": True})
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--n-layer", default=6)
@click.option("--n-embd", default=256)
@click.option("--n-head", default=4)
@click.option("--rotary-dim", default=32)
@click.option("--n-positions", default=512, help="Context, and the length of training windows.")
@click.option("--vocab-size", default=4096, help="Rows, those without a token included.")
@click.option("--steps", default=2000)
@click.option("--minutes", type=float, help="Also stop after this time, with the schedule fitted.")
@click.option("--batch-size", default=8, help="Windows a step.")
@click.option("--lr", default=2e-3, help="Peak learning rate.")
@click.option("--warmup", default=0.03, help="Part of the run that warms up.")
@click.option("--weight-decay", default=0.1)
@click.option("--clip", default=1.0, help="Largest gradient norm.")
@click.option("--seed", default=0)
@click.option("--threads", default=2, help="CPU threads.")
@click.option("--device", "device_name", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--bf16/--no-bf16", default=None, help="Autocast; by default on cuda only.")
@click.option("--compile/--no-compile", "compiled", default=True, help="torch.compile; needs g++.")
@click.option("--log-every", default=50)
@click.option("--save-minutes", default=5.0, help="How often to write the state, 0 for never.")
@click.option("--eval-tokens", default=0, help="Limit of an evaluation in tokens, 0 for all.")
def main(
    output: Path,
    n_layer: int,
    n_embd: int,
    n_head: int,
    rotary_dim: int,
    n_positions: int,
    vocab_size: int,
    steps: int,
    minutes: float | None,
    batch_size: int,
    lr: float,
    warmup: float,
    weight_decay: float,
    clip: float,
    seed: int,
    threads: int,
    device_name: str,
    bf16: bool | None,
    compiled: bool,
    log_every: int,
    save_minutes: float,
    eval_tokens: int,
) -> None:
    """Train a CodeGen on Python source and write it to the folder OUTPUT."""
    began = time.monotonic()
    torch.set_num_threads(threads)
    warm_up_mkl()
    torch.manual_seed(seed)
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_name)
    # On a CPU bf16 is often no faster, and torch's AMX kernels die on some virtual machines.
    use_bf16 = device_name == "cuda" if bf16 is None else bf16
    torch.set_float32_matmul_precision("high")
    output.mkdir(parents=True, exist_ok=True)

    documents = corpus.text("training")
    tokenizer = train_tokenizer(documents, vocab_size)
    write_tokenizer(tokenizer, output, n_positions)
    ids = encode(tokenizer, documents)
    held_out = encode(tokenizer, corpus.text("evaluation"))
    sizes = token_bytes(tokenizer, vocab_size)
    per_token = sizes[ids].sum() / len(ids)
    print(f"tokens {len(ids)} training, {len(held_out)} evaluation, {per_token:.3f} bytes a token")
    print(f"prepared in {time.monotonic() - began:.1f} s", flush=True)

    end = base_size(vocab_size) - 1
    model = build_model(n_layer, n_embd, n_head, rotary_dim, n_positions, vocab_size, end)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"parameters {parameters}", flush=True)
    torch.nn.Module.to(model, device).train()
    attentions = [module for module in model.modules() if isinstance(module, CodeGenAttention)]
    for module in attentions:
        module._attn = types.MethodType(_attention, module)  # type: ignore[method-assign]
    optimizer = _optimizer(model, weight_decay, lr)

    def plain_loss(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_name, dtype=torch.bfloat16, enabled=use_bf16):
            return batch_loss(model, batch)

    loss_of = torch.compile(plain_loss, dynamic=False) if compiled else plain_loss
    source = windows(ids, n_positions, seed)
    curve: list[dict[str, float]] = []
    seen, step, total, saved = 0, 0, 0.0, time.monotonic()
    start = mark = time.monotonic()
    while True:
        done = step / steps
        if minutes is not None:
            done = max(done, (time.monotonic() - start) / (60 * minutes))
        if done >= 1:
            break
        batch = torch.from_numpy(np.stack([next(source) for _ in range(batch_size)])).to(device)
        rate = learning_rate(done + 0.5 / steps, warmup, lr)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += batch_size * n_positions
        total += loss.item()
        if not math.isfinite(total):
            raise click.ClickException(f"the loss is not finite at step {step}")
        if step % log_every == 0:
            now = time.monotonic()
            speed = log_every * batch_size * n_positions / (now - mark)
            mark, mean, total = now, total / log_every, 0.0
            curve.append({"step": step, "loss": round(mean, 4)})
            seconds = now - start
            print(
                f"step {step} loss {mean:.4f} lr {rate:.2e} tokens/s {speed:.0f} s {seconds:.0f}",
                flush=True,
            )
        if save_minutes and time.monotonic() - saved > 60 * save_minutes:
            saved = time.monotonic()
            write_model(model, output)
    trained = time.monotonic() - start

    # What is evaluated is what is written: the weights rounded to float16, in float32, and
    # transformers' own attention.
    model.eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.half())
    write_model(model, output)
    for module in attentions:
        del module._attn
    use_bf16 = False
    if eval_tokens:
        held_out = held_out[: eval_tokens + 1]
    sample = ids[: min(len(held_out), 2**18)]
    results = {}
    for name, part in (("train", sample), ("evaluation", held_out)):
        results[name] = evaluate(plain_loss, part, sizes, n_positions, batch_size, device)
        print(name, *(f"{k} {v:.4f}" for k, v in results[name].items()), flush=True)

    _write_json(
        output / "training.json",
        {
            "command": shlex.join(["python", "-m", "cgconvert.testing.train", *_arguments()]),
            "seed": seed,
            "steps": step,
            "batch_size": batch_size,
            "n_positions": n_positions,
            "parameters": parameters,
            "tokens_seen": seen,
            "training_tokens": len(ids),
            "device": device_name,
            "threads": threads,
            "bf16": device_name == "cuda" if bf16 is None else bf16,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "corpus_sha256": {part: corpus.digest(part) for part in corpus.PARTS},
            "loss_unit": "nats a token",
            "curve": curve,
            "train": results["train"],
            "evaluation": results["evaluation"],
            "training_seconds": round(trained, 1),
            "wall_seconds": round(time.monotonic() - began, 1),
        },
    )


def _arguments() -> list[str]:
    """Return the command line with the output folder's own path left out."""
    words, result = iter(sys.argv[1:]), []
    for word in words:
        if word in ("-o", "--output"):
            result += ["-o", Path(next(words)).name]
        elif word.startswith("--output="):
            result += ["-o", Path(word.partition("=")[2]).name]
        else:
            result.append(word)
    return result


if __name__ == "__main__":
    main()
