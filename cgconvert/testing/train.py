"""Train a small CodeGen on the standard library's source and write it in the Hub's layout.

    python -m cgconvert.testing.train -o codegen-tiny-mono

The model is transformers' own CodeGenForCausalLM and the tokenizer is laid out as CodeGen's, so
everything that handles a published CodeGen handles the result.
"""

from __future__ import annotations

import math
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import tokenizers
import torch
import transformers
from transformers import CodeGenForCausalLM

from cgconvert.model.device import warm_up_mkl
from cgconvert.testing.train_model import (
    batch_loss,
    build_model,
    evaluate,
    fused_attention,
    write_model,
)
from cgconvert.testing.train_tokenizer import (
    base_size,
    encode,
    token_bytes,
    train_tokenizer,
    write_json,
    write_tokenizer,
)
from cgconvert.texts import corpus

TRAIN_SAMPLE = 2**18
"""Most tokens of the training text that the final loss is measured on."""


@dataclass(frozen=True)
class Settings:
    """The command's options; see `--help`."""

    output: Path
    n_layer: int
    n_embd: int
    n_head: int
    rotary_dim: int
    n_positions: int
    vocab_size: int
    steps: int
    minutes: float | None
    batch_size: int
    lr: float
    warmup: float
    weight_decay: float
    clip: float
    seed: int
    threads: int
    device: str
    bf16: bool | None
    compiled: bool
    log_every: int
    save_minutes: float
    eval_tokens: int

    @property
    def device_name(self) -> str:
        """cpu or cuda."""
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

    @property
    def autocast(self) -> bool:
        """Whether training computes in bfloat16.

        On a CPU that is often no faster, and torch's AMX kernels die on some virtual machines.
        """
        return self.device_name == "cuda" if self.bf16 is None else self.bf16


@dataclass(frozen=True)
class Texts:
    """The encoded corpus.

    Attributes:
        training: Token ids to train on, uint16 [tokens].
        evaluation: Token ids to evaluate on, uint16 [tokens].
        bytes_per_id: UTF-8 bytes that each id stands for, int64 [vocab_size].
    """

    training: np.ndarray
    evaluation: np.ndarray
    bytes_per_id: np.ndarray


def prepare(settings: Settings) -> Texts:
    """Train the tokenizer, write it to the output folder, and encode the corpus with it."""
    documents = corpus.text("training")
    tokenizer = train_tokenizer(documents, settings.vocab_size)
    write_tokenizer(tokenizer, settings.output, settings.n_positions)
    return Texts(
        training=encode(tokenizer, documents),
        evaluation=encode(tokenizer, corpus.text("evaluation")),
        bytes_per_id=token_bytes(tokenizer, settings.vocab_size),
    )


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


def learning_rate(progress: float, warmup: float, peak: float) -> float:
    """Return the rate at `progress` in [0, 1]: a linear rise over `warmup`, then a cosine to 2%."""
    if progress < warmup:
        return peak * progress / warmup
    wave = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))
    return peak * (0.02 + 0.98 * wave)


@dataclass
class Training:
    """A training run: its model, its loss of a batch, and what it has seen so far."""

    settings: Settings
    model: CodeGenForCausalLM
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.curve: list[dict[str, float]] = []

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """The mean loss in nats a token (scalar) of `batch`, int64 [windows, length + 1]."""
        settings = self.settings
        with torch.autocast(settings.device_name, dtype=torch.bfloat16, enabled=settings.autocast):
            return batch_loss(self.model, batch)

    def run(self, ids: np.ndarray) -> None:
        """Train on the text `ids` until all steps or minutes are over, printing the loss.

        Raises click.ClickException where the loss is not finite.
        """
        settings = self.settings
        optimizer = _optimizer(self.model, settings.weight_decay, settings.lr)
        loss_of = torch.compile(self.loss, dynamic=False) if settings.compiled else self.loss
        source = windows(ids, settings.n_positions, settings.seed)
        total = 0.0
        start = logged = saved = time.monotonic()
        while (progress := self._progress(start)) < 1:
            rows = np.stack([next(source) for _ in range(settings.batch_size)])
            batch = torch.from_numpy(rows).to(settings.device_name)
            middle = progress + 0.5 / settings.steps
            rate = learning_rate(middle, settings.warmup, settings.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.step += 1
            total += loss.item()
            if not math.isfinite(total):
                raise click.ClickException(f"the loss is not finite at step {self.step}")
            now = time.monotonic()
            if self.step % settings.log_every == 0:
                self._log(total / settings.log_every, rate, now - logged, now - start)
                logged, total = now, 0.0
            if settings.save_minutes and now - saved > 60 * settings.save_minutes:
                saved = now
                write_model(self.model, settings.output)
        self.seconds = time.monotonic() - start

    def _progress(self, start: float) -> float:
        """Return the finished part of the run, from 0: by steps or by time, whichever is larger.

        `start` is the value of time.monotonic() when training began, in seconds.
        """
        progress = self.step / self.settings.steps
        if self.settings.minutes is not None:
            minutes = (time.monotonic() - start) / 60
            progress = max(progress, minutes / self.settings.minutes)
        return progress

    def _log(self, mean: float, rate: float, since_last: float, seconds: float) -> None:
        settings = self.settings
        speed = settings.log_every * settings.batch_size * settings.n_positions / since_last
        self.curve.append({"step": self.step, "loss": round(mean, 4)})
        print(
            f"step {self.step} loss {mean:.4f} lr {rate:.2e} tokens/s {speed:.0f} s {seconds:.0f}",
            flush=True,
        )


def write_rounded(model: CodeGenForCausalLM, folder: Path) -> None:
    """Round the model's weights to float16 in place, and write it."""
    model.eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.half())
    write_model(model, folder)


def evaluate_both(
    model: CodeGenForCausalLM, texts: Texts, settings: Settings
) -> dict[str, dict[str, float]]:
    """Evaluate the model in float32 on a part of the training text and on the evaluation text."""
    evaluation = texts.evaluation
    if settings.eval_tokens:
        evaluation = evaluation[: settings.eval_tokens + 1]
    sample = texts.training[: min(len(evaluation), TRAIN_SAMPLE)]
    results = {}
    for name, ids in (("train", sample), ("evaluation", evaluation)):
        results[name] = evaluate(
            lambda batch: batch_loss(model, batch),
            ids,
            texts.bytes_per_id,
            settings.n_positions,
            settings.batch_size,
            torch.device(settings.device_name),
        )
        print(name, *(f"{k} {v:.4f}" for k, v in results[name].items()), flush=True)
    return results


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
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--bf16/--no-bf16", default=None, help="Autocast; by default on cuda only.")
@click.option("--compile/--no-compile", "compiled", default=True, help="torch.compile; needs g++.")
@click.option("--log-every", default=50)
@click.option("--save-minutes", default=5.0, help="How often to write the state, 0 for never.")
@click.option("--eval-tokens", default=0, help="Limit of an evaluation in tokens, 0 for all.")
def main(**options: Any) -> None:
    """Train a CodeGen on Python source and write it to the folder OUTPUT."""
    train(Settings(**options))


def train(settings: Settings) -> None:
    """Train tokenizer and model, evaluate the model, write both and a record of the run."""
    began = time.monotonic()
    torch.set_num_threads(settings.threads)
    warm_up_mkl()
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    settings.output.mkdir(parents=True, exist_ok=True)

    texts = prepare(settings)
    count = len(texts.training)
    per_token = texts.bytes_per_id[texts.training].sum() / count
    print(
        f"tokens {count} training, {len(texts.evaluation)} evaluation, "
        f"{per_token:.3f} bytes a token"
    )
    print(f"prepared in {time.monotonic() - began:.1f} s", flush=True)

    model = build_model(
        settings.n_layer,
        settings.n_embd,
        settings.n_head,
        settings.rotary_dim,
        settings.n_positions,
        settings.vocab_size,
        base_size(settings.vocab_size) - 1,
    )
    parameters = sum(p.numel() for p in model.parameters())
    print(f"parameters {parameters}", flush=True)
    torch.nn.Module.to(model, torch.device(settings.device_name)).train()

    training = Training(settings, model)
    with fused_attention(model):
        training.run(texts.training)
    write_rounded(model, settings.output)
    results = evaluate_both(model, texts, settings)
    write_json(
        settings.output / "training.json",
        {
            "command": shlex.join(["python", "-m", "cgconvert.testing.train", *_arguments()]),
            "seed": settings.seed,
            "steps": training.step,
            "batch_size": settings.batch_size,
            "n_positions": settings.n_positions,
            "parameters": parameters,
            "tokens_seen": training.step * settings.batch_size * settings.n_positions,
            "training_tokens": count,
            "device": settings.device_name,
            "threads": settings.threads,
            "bf16": settings.autocast,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "corpus_sha256": {part: corpus.digest(part) for part in corpus.PARTS},
            "loss_unit": "nats a token",
            "curve": training.curve,
            "train": results["train"],
            "evaluation": results["evaluation"],
            "training_seconds": round(training.seconds, 1),
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
