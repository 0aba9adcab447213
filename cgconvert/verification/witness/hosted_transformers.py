"""transformers on a private folder; this runs in a separate process that does nothing else.

`witness.model` and `witness.tokenizer` call it through `SeparateTransformers`. It knows nothing of
the source but the files in the folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cgconvert.lazy import torch
from cgconvert.model.device import warm_up_mkl
from cgconvert.verification.witness.adapters import merge_adapters
from cgconvert.verification.witness.opening import NoWitnessError, witnessing

__all__ = ["HostedTransformers"]

END = "<|endoftext|>"
ROLES = ("bos", "eos", "unk", "pad")

RUNS = (*(" " * n for n in range(31, 1, -1)), *("\t" * n for n in range(9, 1, -1)))
"""What a release adds to GPT-2's tokens (salesforce/CodeGen, jaxformer/hf/sample.py:
include_whitespace, include_tabs). Repeated here: a witness shares no constant with a reader."""


def _answering(method: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Return what a method answers as an object, or why transformers is no witness."""

    @functools.wraps(method)
    def call(*arguments: Any) -> dict[str, Any]:
        try:
            return {"answer": method(*arguments), "reason": None}
        except NoWitnessError as error:
            return {"answer": None, "reason": str(error)}

    return call


class HostedTransformers:
    """transformers on one private folder, in its own process; `load` loads the model once.

    Args:
        folder: The folder.
        threads: CPU threads.
    """

    def __init__(self, folder: str, threads: int) -> None:
        self.folder = Path(folder)
        torch.set_num_threads(threads)
        warm_up_mkl()
        self._config: Any = None
        self._model: Any = None

    @_answering
    def tokenizer(self, texts: Sequence[str], may_lack_runs: bool) -> Mapping[str, Any]:
        """Open the tokenizer, and encode and decode texts.

        `may_lack_runs` is whether CodeGen's runs of white space are added to a tokenizer that is
        GPT-2's as it stands. Returns what `TokenReading.of` takes, and the texts and special ids.
        """
        with witnessing("tokenizer"):
            from transformers import AddedToken, AutoTokenizer

            opened: Any = AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
            added = [str(token) for token in opened.added_tokens_decoder.values()]
            if may_lack_runs and added in ([], [END]):
                opened.add_tokens([AddedToken(run, normalized=False) for run in RUNS])
            readings = []
            for text in texts:
                encoded = opened(text, add_special_tokens=False, verbose=False)["input_ids"]
                ids = list(map(int, encoded))
                # True, once the default, takes out spaces before punctuation.
                decoded = opened.decode(
                    ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
                readings.append([text, ids, str(decoded)])
        templates = getattr(opened, "chat_template", None) or {}
        if isinstance(templates, str):
            templates = {"default": templates}
        return {
            "texts": readings,
            "tokens": {role: str(getattr(opened, f"{role}_token", None)) for role in ROLES},
            "ids": {role: _id(getattr(opened, f"{role}_token_id", None)) for role in ROLES},
            "special": list(map(str, opened.all_special_tokens)),
            "special_ids": list(map(int, opened.all_special_ids)),
            "templates": dict(templates),
        }

    @_answering
    def sizes(self) -> Mapping[str, Any]:
        """Read the configuration, and return the sizes on which the model depends."""
        with witnessing("model"):
            from transformers import AutoConfig

            config: Any = AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
            self._config = config
            inner = getattr(config, "n_inner", getattr(config, "intermediate_size", None))
            return {
                "layers": config.num_hidden_layers,
                "heads": config.num_attention_heads,
                "width": config.hidden_size,
                "inner width": 4 * config.hidden_size if inner is None else inner,
                "rows": config.vocab_size,
            }

    @_answering
    def load(self, rows: int, layers: int, is_safetensors: bool, adapters: Sequence[str]) -> None:
        """Load the first `layers` layers in float32, and merge adapters, after `sizes`.

        `rows` is the number of rows of the vocabulary.
        """
        self._config.vocab_size, self._config.num_hidden_layers = rows, layers
        with witnessing("model"):
            from transformers import AutoModelForCausalLM

            # Any: with output_loading_info it returns a pair, which its signature leaves out.
            factory: Any = AutoModelForCausalLM
            model, loading_info = factory.from_pretrained(
                self.folder,
                config=self._config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=is_safetensors,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
        for kind in ("missing_keys", "mismatched_keys"):
            names = sorted(map(str, loading_info.get(kind) or ()))
            # A bias that is missing is zero in transformers too.
            names = [name for name in names if not name.endswith("lm_head.bias")]
            if names:
                raise NoWitnessError(f"transformers finds no {names[0]} in its files")
        self._model = merge_adapters(model.eval(), [self.folder / name for name in adapters])

    @_answering
    def logits(self, sequences: Sequence[Sequence[int]]) -> list[Any]:
        """Compute the logits after every token of each sequence, float32 [length, rows]."""
        with torch.inference_mode(), witnessing("model"):
            return [
                self._model(torch.tensor([list(sequence)])).logits[0].float().numpy()
                for sequence in sequences
            ]

    @_answering
    def round_weights(self, dtype: str) -> None:
        """Round all weights to a type of torch, such as float16; they stay float32."""
        for parameter in self._model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype)).to(torch.float32)

    @_answering
    def generate(
        self, opening: Sequence[int], new_tokens: int, stop_ids: Sequence[int], size: int
    ) -> list[Any]:
        """Continue an opening greedily, without penalties, to a stop.

        Only ids below `size` are picked. Returns the new ids and their logits, float32 [ids, size].
        """
        from transformers import GenerationConfig

        rows = int(self._config.vocab_size)
        settings = GenerationConfig(
            max_new_tokens=max(1, new_tokens),
            do_sample=False,
            num_beams=1,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
            suppress_tokens=list(range(size, rows)) or None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        inputs = torch.tensor([list(opening)])
        with torch.inference_mode(), witnessing("model"):
            output = self._model.generate(
                inputs, attention_mask=torch.ones_like(inputs), generation_config=settings
            )
            logits = torch.cat(output.logits)[:, :size].float().numpy()
        return [output.sequences[0, len(opening) :].tolist(), logits]


def _id(value: object) -> int | None:
    """An id, or None for what is none."""
    return value if isinstance(value, int) else None
