"""The model card of an ONNX folder: its README.md."""

from __future__ import annotations

from cgconvert.formats.model_card import compose_card
from cgconvert.formats.onnx.variant import Variant
from cgconvert.io.progress import format_bytes
from cgconvert.model.decoder import Checkpoint

__all__ = ["model_card"]

_GENAI = """\
With onnxruntime-genai (`pip install {package}`):

```python
import onnxruntime_genai as og

model = og.Model(".")  # this folder
tokenizer = og.Tokenizer(model)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length={length})
generator = og.Generator(model, parameters)
generator.append_tokens(tokenizer.encode("def hello_world():"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```
"""

_OPTIMUM = """\
With optimum (`pip install optimum-onnx[onnxruntime]`):

```python
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = ORTModelForCausalLM.from_pretrained(".", file_name="{graph}")
generated_ids = model.generate(**tokenizer("def hello_world():", return_tensors="pt"))
print(tokenizer.decode(generated_ids[0], skip_special_tokens=True))
```
"""

_TRANSFORMERS_JS = """\
With transformers.js (`npm install @huggingface/transformers`), from a web server or the Hub:

```js
import {{ pipeline }} from '@huggingface/transformers';

const generator = await pipeline('text-generation', 'MODEL', {{ dtype: '{dtype}' }});
console.log(await generator('def hello_world():', {{ max_new_tokens: 32 }}));
```
"""

_ONE_BY_ONE = """\
The graph is for onnxruntime's CUDA provider. It accepts no padding before a prompt: feed prompts
one by one.
"""


def model_card(checkpoint: Checkpoint, variant: Variant, nbytes: int) -> str:
    """Create the model card of a folder whose graph and weights take `nbytes`."""
    graph = f"{variant.stem}.onnx"
    clients = []
    if variant.client == "any":
        package = "onnxruntime-genai" + ("-cuda" if variant.target == "cuda" else "")
        length = min(64, checkpoint.geometry.n_positions)
        clients.append(_GENAI.format(package=package, length=length))
    if variant.target == "cuda":
        clients.append(_ONE_BY_ONE)
    else:
        if variant.client == "any":
            clients.append(_OPTIMUM.format(graph=graph))
        clients.append(_TRANSFORMERS_JS.format(dtype=variant.transformers_js))
    return compose_card(
        checkpoint.name,
        checkpoint.geometry,
        checkpoint.tokenizer,
        library="transformers.js" if variant.client == "transformers.js" else "onnx",
        weights=f"`onnx/{graph}` and its data file are the graph, for what is named here.",
        stored_type=variant.type,
        use="\n".join(clients),
        facts={"size": format_bytes(nbytes)},
        known_as=checkpoint.known_as,
    )
