"""The model card of a Hugging Face folder: its README.md."""

from __future__ import annotations

from cgconvert.formats.huggingface.layouts import LAYOUTS
from cgconvert.formats.model_card import compose_card
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
    name: str,
    geometry: Geometry,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    layout: str,
    known_as: str = "",
) -> str:
    """Create the model card of a folder whose weights have this type and layout."""
    stored_as = LAYOUTS[layout]
    is_own = family.model_of(known_as or name).title == stored_as.own_model
    return compose_card(
        name,
        geometry,
        tokenizer,
        library="transformers",
        weights=stored_as.own_card if is_own else stored_as.card,
        stored_type=dtype,
        use=_SNIPPET + (f"\n{_MLX}" if layout == "phi" else ""),
        known_as=known_as,
    )
