"""The model that is trained: transformers' CodeGen, built, evaluated and written."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import CodeGenConfig, CodeGenForCausalLM
from transformers.models.codegen.modeling_codegen import CodeGenAttention

from cgconvert.testing.train_tokenizer import write_json

__all__ = ["batch_loss", "build_model", "evaluate", "fused_attention", "write_model"]


@contextmanager
def fused_attention(model: CodeGenForCausalLM) -> Iterator[None]:
    """Let every layer compute its attention without the [T, T] matrices.

    It is the same function of the same inputs as transformers' own.
    """

    def attention(
        self: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        query, key = query.to(value.dtype), key.to(value.dtype)
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True), None

    modules = [module for module in model.modules() if isinstance(module, CodeGenAttention)]
    for module in modules:
        module._attn = types.MethodType(attention, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            del module._attn


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
    write_json(
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
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
