"""The family: the models with CodeGen's decoder, and their published checkpoints.

Sources: the CodeGen paper (arXiv 2203.13474), the CodeGen2 paper (arXiv 2305.02309), the model card
of EleutherAI/gpt-j-6b, OpenMOSS/MOSS, and the configurations on the Hub.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cgconvert import embedded
from cgconvert.model.geometry import Geometry

__all__ = [
    "CODEGEN2_SIZES",
    "LLAMA",
    "MP_NUM",
    "NAMES",
    "SIZES",
    "TPU_CORES",
    "VARIANTS",
    "Model",
    "Published",
    "canonical_id",
    "canonical_name",
    "did_you_mean",
    "geometry",
    "groups",
    "hub_id",
    "is_llama",
    "is_published_checkpoint",
    "license_of",
    "model_of",
    "nearest_names",
    "published",
]

VARIANTS = ("nl", "multi", "mono")
"""Names of CodeGen's training data: natural language, several programming languages, Python."""

MP_NUM = {"codegen": 4, "moss": 4}
"""Number of groups in a packed qkv_proj, by Hugging Face model_type.

There is one group for each logical TPU-v4 core that the family was trained on. MOSS was initialised
from CodeGen-16B (OpenMOSS/MOSS, models/modeling_moss.py: MossAttention.forward). The weights do not
show the number, so for any other model type the user has to give `mp_num`, or text tells it
(formats/qkv_groups.py).
"""

TPU_CORES = {3: 8, 4: 4}
"""Number of groups in a packed qkv_proj, by `tpu_version` of a Jaxformer training configuration
(jaxformer/run/trainer.py)."""

_COMMON = {"n_positions": 2048, "vocab_size": 51200, "mp_num": MP_NUM["codegen"]}

SIZES: dict[str, Geometry] = {
    "350M": Geometry(n_layer=20, n_embd=1024, n_head=16, rotary_dim=32, **_COMMON),
    "2B": Geometry(n_layer=32, n_embd=2560, n_head=32, rotary_dim=64, **_COMMON),
    "6B": Geometry(n_layer=33, n_embd=4096, n_head=16, rotary_dim=64, **_COMMON),
    "16B": Geometry(n_layer=34, n_embd=6144, n_head=24, rotary_dim=64, **_COMMON),
}
"""The geometries of CodeGen."""

_CODEGEN2 = {"rotary_dim": 64, "n_positions": 2048, "vocab_size": 51200}

CODEGEN2_SIZES: dict[str, Geometry] = {
    "1B": Geometry(n_layer=16, n_embd=2048, n_head=16, mp_num=8, **_CODEGEN2),
    "3_7B": Geometry(n_layer=16, n_embd=4096, n_head=16, mp_num=8, **_CODEGEN2),
    "7B": Geometry(n_layer=32, n_embd=4096, n_head=16, mp_num=4, **_CODEGEN2),
    "16B": Geometry(n_layer=34, n_embd=6144, n_head=24, mp_num=4, **_CODEGEN2),
}
"""The geometries of CodeGen2.

Its own modelling code sets mp_num: 8 for 1B (Salesforce/codegen2-1B, modeling_codegen.py:
CodeGenAttention.forward, "TPU-v3"). CTranslate2 has 8 for 1B and 3.7B, whose config.json has
head_dim, and 4 for the others (converters/transformers.py: CodeGenHFLoader.get_model_spec). In all
else the code computes what CodeGen's does.
"""

_GPTJ = Geometry(
    n_layer=28, n_embd=4096, n_head=16, rotary_dim=64, n_positions=2048, vocab_size=50400, mp_num=0
)
_MOSS = replace(SIZES["16B"], vocab_size=107008, mp_num=MP_NUM["moss"])


@dataclass(frozen=True)
class Model:
    """What artefacts say about a model.

    Attributes:
        title: What a checkpoint of it is called in a sentence.
        description: What kind of model it is, with a link; a noun phrase.
        tags: Words by which the Hub and GGUF files are searched.
        license: The licence of the published weights, by the Hub's name for it.
        languages: The natural languages of its training data.
    """

    title: str
    description: str
    tags: tuple[str, ...]
    license: str = ""
    languages: tuple[str, ...] = ("en",)


CODEGEN = Model(
    "CodeGen",
    "a program synthesis model of the CodeGen family ([paper](https://arxiv.org/abs/2203.13474))",
    ("code", "codegen"),
    "bsd-3-clause",
)
CODEGEN2 = Model(
    "CodeGen2",
    "a program synthesis model of the CodeGen2 family ([paper](https://arxiv.org/abs/2305.02309))",
    ("code", "codegen2"),
    "apache-2.0",
)
NSQL = Model(
    "NSQL",
    "a CodeGen fine-tuned to write SQL ([code](https://github.com/NumbersStationAI/NSQL))",
    ("code", "sql", "codegen"),
    "bsd-3-clause",
)
GPTJ = Model(
    "GPT-J",
    "a language model ([code](https://github.com/kingoflolz/mesh-transformer-jax))",
    ("gptj",),
    "apache-2.0",
)
MOSS = Model(
    "MOSS",
    "a conversational language model ([code](https://github.com/OpenMOSS/MOSS))",
    ("moss",),
    "agpl-3.0",
    ("en", "zh"),
)
OTHER = Model("", "a language model with the decoder of CodeGen and GPT-J", ())
"""What is said about a checkpoint whose name shows no model."""


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    `organisation` and `repository` are the two parts of its Hub id.
    """

    model: Model
    organisation: str
    repository: str
    geometry: Geometry


def _published(
    model: Model, organisation: str, names: Iterable[str], geometry: Geometry
) -> dict[str, Published]:
    """Make the entries of checkpoints that have one geometry."""
    return {name: Published(model, organisation, name, geometry) for name in names}


def _table() -> Mapping[str, Published]:
    """Make the table of the published checkpoints by name."""
    table: dict[str, Published] = {}
    for size, g in SIZES.items():
        names = [f"codegen-{size}-{variant}" for variant in VARIANTS]
        table |= _published(CODEGEN, "Salesforce", names, g)
    for size, g in CODEGEN2_SIZES.items():  # _P: the weights published later under another name
        names = [f"codegen2-{size}", f"codegen2-{size}_P"]
        table |= _published(CODEGEN2, "Salesforce", names, g)
    for size, g in SIZES.items():
        names = [f"codegen-{size}-{variant}-gptj" for variant in VARIANTS[1:]]
        table |= _published(CODEGEN, "moyix", names, replace(g, mp_num=0))
    for size in ("350M", "2B", "6B"):
        table |= _published(NSQL, "NumbersStation", [f"nsql-{size}"], SIZES[size])
    names = [f"moss-moon-003-{kind}" for kind in ("base", "sft", "sft-plugin")]
    table |= _published(MOSS, "fnlp", names, _MOSS)
    gptj = Published(GPTJ, "EleutherAI", "gpt-j-6b", _GPTJ)
    return table | {"gpt-j-6b": gptj, "gpt-j-6B": gptj}


_PUBLISHED = _table()

NAMES = tuple(_PUBLISHED)
"""The names of the published checkpoints."""

_BY_LOWER_CASE = {name.lower(): name for name in (*reversed(NAMES), embedded.NAME)}
_IDS = {
    f"{entry.organisation}/{entry.repository}".lower(): f"{entry.organisation}/{entry.repository}"
    for entry in _PUBLISHED.values()
}

_NAME_PARTS = {
    "codegen2": CODEGEN2, "codegen": CODEGEN, "nsql": NSQL, "moss": MOSS, "gpt-j": GPTJ,
    "gptj": GPTJ,
}  # fmt: skip
"""Parts of a checkpoint's name that show what it was made from; the first that fits counts."""


LLAMA = (
    "a Llama, as CodeGen2.5 and nsql-llama-2-7B are, and no model of CodeGen's family; "
    "llama.cpp's convert_hf_to_gguf.py converts it"
)
"""What an error says of a Llama."""


def is_llama(name: str) -> bool:
    """Whether this is the name of one of the Llamas that are called like models of the family."""
    return re.match(r"codegen25-|nsql-llama-", name, re.IGNORECASE) is not None


def canonical_name(name: str) -> str:
    """The name of a published checkpoint as it is written on the Hub, whatever the case here.

    Any other name stays as it is.
    """
    if name in _PUBLISHED or name == embedded.NAME:
        return name
    return _BY_LOWER_CASE.get(name.lower(), name)


def canonical_id(repository: str) -> str:
    """The Hub id of a published checkpoint as the Hub writes it, whatever the case here."""
    return _IDS.get(repository.lower(), repository)


def nearest_names(name: str) -> list[str]:
    """Return the names of the family that a mistyped name may stand for, the nearest first.

    Signs between letters and digits count as the same: codegen_350M_mono. The beginning of names
    stands for all of them: codegen-350M.
    """
    plain = _plain(name)
    plains = {_plain(known): known for known in (embedded.NAME, *reversed(NAMES))}
    if plain in plains:
        return [plains[plain]]
    begun = [known for start, known in plains.items() if len(plain) > 3 and start.startswith(plain)]
    if begun:
        return begun[::-1]
    return [plains[near] for near in difflib.get_close_matches(plain, plains, n=1, cutoff=0.8)]


def did_you_mean(name: str) -> str:
    """A clause that asks for the names that are nearest to a mistyped one, "" if none is near."""
    names = nearest_names(name)
    if not names:
        return ""
    return (
        f"did you mean {', '.join(names[:2])} or {names[2]}?"
        if len(names) > 2
        else (f"did you mean {' or '.join(names)}?")
    )


def _plain(name: str) -> str:
    """A name in lower case, with one sign between its words."""
    return re.sub(r"[\W_]+", "-", name.lower())


def is_published_checkpoint(name: str) -> bool:
    """Whether this is the name of one of the published checkpoints."""
    return name in _PUBLISHED


def published(name: str) -> Published:
    """The published checkpoint of this name."""
    return _PUBLISHED[name]


def geometry(name: str) -> Geometry:
    """The geometry of a published checkpoint, by its name."""
    return _PUBLISHED[name].geometry


def hub_id(name: str) -> str:
    """The Hub id, organisation/name, of a published checkpoint."""
    return f"{_PUBLISHED[name].organisation}/{_PUBLISHED[name].repository}"


def model_of(name: str) -> Model:
    """What may be said about a checkpoint by its name alone, with or without its model's name."""
    if name in _PUBLISHED:
        return _PUBLISHED[name].model
    parts = (model for part, model in _NAME_PARTS.items() if part in name.lower())
    return next(parts, OTHER)


def license_of(name: str) -> str:
    """The licence of a published checkpoint or of the built-in model; "" for any other name.

    A fine-tune may have another licence than its base.
    """
    if name in _PUBLISHED:
        return _PUBLISHED[name].model.license
    return CODEGEN.license if name == embedded.NAME else ""


def groups(config: Mapping[str, Any]) -> int | None:
    """The number of groups in qkv_proj that a config.json shows, or None if it does not.

    A configuration with modelling code of its own (`auto_map`) may mean any number, unless it is
    MOSS's, which always has code, or that of a CodeGen2.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None
    if model_type == "codegen" and config.keys() & {"auto_map", "head_dim"}:
        codegen2 = _codegen2_groups(config)
        if codegen2 or "auto_map" in config:
            return codegen2
    has_own_code = "auto_map" in config and model_type != "moss"
    return None if has_own_code else MP_NUM.get(model_type)


def _codegen2_groups(config: Mapping[str, Any]) -> int | None:
    """The number of groups if a config.json is that of a CodeGen2, otherwise None.

    It is one by the name that it was loaded by, or by its number of layers, where the width and
    the heads agree. An entry head_dim has to agree with CTranslate2's rule, see `CODEGEN2_SIZES`.
    """
    named = re.search(r"codegen2-(\w+?B)(?![a-z0-9])", str(config.get("_name_or_path", "")))
    for size, g in CODEGEN2_SIZES.items():
        has_width = (config.get("n_embd"), config.get("n_head")) == (g.n_embd, g.n_head)
        is_size = named[1] == size if named else config.get("n_layer") == g.n_layer
        contradicts = "head_dim" in config and g.mp_num != 8
        if has_width and is_size and not contradicts:
            return g.mp_num
    return None
