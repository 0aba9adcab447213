"""The model card of a Hugging Face folder: its README.md."""

from __future__ import annotations

from typing import Any

import yaml

from cgconvert.formats.huggingface.layouts import LAYOUTS
from cgconvert.model import family
from cgconvert.model.decoder import Geometry
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["model_card"]

_SNIPPET = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)

text = "def hello_world():"
input_ids = tokenizer(text, return_tensors="pt").input_ids

generated_ids = model.generate(input_ids, max_length=128)
print(tokenizer.decode(generated_ids[0], skip_special_tokens=True))
```
"""

_MLX = """\
With MLX: `mlx_lm.generate --model . --prompt 'def hello_world():'`
"""


def model_card(
    name: str, geometry: Geometry, tokenizer: Tokenizer, *, dtype: str, layout: str
) -> str:
    """Create the model card: Markdown after YAML front matter, the Hub's metadata."""
    model = family.model_of(name)
    is_published = family.is_published_checkpoint(name)
    license_name = family.license_of(name)
    front: dict[str, Any] = {
        **({"license": license_name} if license_name else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"tags": list(model.tags)} if model.tags else {}),
        **({"base_model": family.hub_id(name)} if is_published else {}),
    }
    source = f"the {model.title} checkpoint `{name}`" if model.title else f"`{name}`"
    if is_published:
        source = f"[{family.hub_id(name)}](https://huggingface.co/{family.hub_id(name)})"
    stored_as = LAYOUTS[layout]
    weights = stored_as.own_card if model.title == stored_as.own_model else stored_as.card
    rows = {
        "parameters": f"{geometry.parameters:,}",
        "type of the weights": dtype,
        "layers": geometry.n_layer,
        "width": geometry.n_embd,
        "inner width of the MLP": geometry.n_inner,
        "attention heads": f"{geometry.n_head} of {geometry.head_dim}",
        "rotary dimensions of a head": geometry.rotary_dim,
        "context (tokens)": geometry.n_positions,
        "rows of the embedding": geometry.vocab_size,
        "tokens of the tokenizer": tokenizer.size,
        "end of text": f"`{tokenizer.eos_token}`, id {tokenizer.eos_token_id}",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            f"# {name}\n",
            f"Converted by cgconvert from {source}, {model.description}. Nothing was trained or "
            f"fine-tuned. {weights}\n",
            f"## Use\n\n{_SNIPPET}" + (f"\n{_MLX}" if layout == "phi" else ""),
            f"## Geometry\n\n| | |\n|---|---|\n{table}",
            "Rows of the embedding beyond the tokenizer's have no token: a sampler should not "
            "pick them.\n",
        ]
    )
