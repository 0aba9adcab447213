"""What the model cards of all formats have in common: what it is, its source, and its geometry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from cgconvert.escaping import printable
from cgconvert.model import family
from cgconvert.model.decoder import Geometry
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["code_span", "compose_card"]

_MARKUP = re.compile(r"([\\`*<>\[\]&!|#~])")


def code_span(text: str) -> str:
    """Quote a text as code within a line of Markdown, whatever it holds (CommonMark, 6.1)."""
    line = printable(text)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _text(text: str) -> str:
    """Escape a name for one line of Markdown, so that it is shown as it is."""
    return _MARKUP.sub(r"\\\1", printable(text))


def compose_card(
    name: str,
    geometry: Geometry,
    tokenizer: Tokenizer,
    *,
    library: str,
    weights: str,
    stored_type: str,
    use: str,
    facts: Mapping[str, Any] | None = None,
    known_as: str = "",
) -> str:
    """Create a model card: Markdown after YAML front matter, the Hub's metadata.

    A licence and a base stand in it only where they are known: those of a published checkpoint.

    Args:
        name: The name of the model.
        geometry: The model's geometry.
        tokenizer: The model's tokenizer.
        library: What runs the model, by the Hub's name.
        weights: A sentence on how the weights are stored.
        stored_type: The type of the weights.
        use: How the model is run, in Markdown.
        facts: More rows of the table, by their names.
        known_as: The name that tells which published model it is, if `name` does not.
    """
    original = known_as or name
    model = family.model_of(original)
    is_published = family.is_published_checkpoint(original)
    license_name = family.license_of(original)
    front: dict[str, Any] = {
        **({"license": license_name} if license_name else {}),
        "library_name": library,
        "pipeline_tag": "text-generation",
        **({"tags": list(model.tags)} if model.tags else {}),
        **({"base_model": family.hub_id(original)} if is_published else {}),
    }
    source = (
        f"the {model.title} checkpoint {code_span(original)}"
        if model.title
        else code_span(original)
    )
    if is_published:
        source = f"[{family.hub_id(original)}](https://huggingface.co/{family.hub_id(original)})"
    rows = {
        "parameters": f"{geometry.parameters:,}",
        "type of the weights": stored_type,
        **(facts or {}),
        "layers": geometry.n_layer,
        "width": geometry.n_embd,
        "inner width of the MLP": geometry.n_inner,
        "attention heads": f"{geometry.n_head} of {geometry.head_dim}",
        "rotary dimensions of a head": geometry.rotary_dim,
        "context (tokens)": geometry.n_positions,
        "rows of the embedding": geometry.vocab_size,
        "tokens of the tokenizer": tokenizer.size,
        "end of text": f"{code_span(tokenizer.eos_token)}, id {tokenizer.eos_token_id}",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            f"# {_text(name)}\n",
            f"Converted by cgconvert from {source}, {model.description}. Nothing was trained or "
            f"fine-tuned. {weights}\n",
            f"## Use\n\n{use}",
            f"## Geometry\n\n| | |\n|---|---|\n{table}",
            "Rows of the embedding beyond the tokenizer's have no token: a sampler should not "
            "pick them.\n",
        ]
    )
