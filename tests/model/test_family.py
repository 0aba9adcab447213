"""The family's names, and what a configuration shows of the number of groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cgconvert import embedded
from cgconvert.model import family
from cgconvert.testing.configurations import codegen2_config, codegen_config, moss_config

OWN_CODE = {"auto_map": {"AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"}}


def codegen2(size: str, **entries: Any) -> dict[str, Any]:
    """Return the configuration of a CodeGen2 that was loaded from a folder of any name."""
    g = family.CODEGEN2_SIZES[size]
    return codegen2_config(g, torch.float16) | {"_name_or_path": "run/1", **entries}


@pytest.mark.parametrize(("size", "expected"), [("1B", 8), ("3_7B", 8), ("7B", 4), ("16B", 4)])
def test_a_codegen2_is_known_by_its_geometry(size: str, expected: int) -> None:
    assert family.groups(codegen2(size)) == expected
    without_code = codegen2(size)
    del without_code["auto_map"]
    assert family.groups(without_code) == expected


@pytest.mark.parametrize("name", ["Salesforce/codegen2-1B", "checkpoints/codegen2-1B_P/"])
def test_a_codegen2_of_fewer_layers_is_known_by_its_name(name: str) -> None:
    assert family.groups(codegen2("1B", n_layer=3)) is None
    assert family.groups(codegen2("1B", n_layer=3, _name_or_path=name)) == 8


@pytest.mark.parametrize(
    "entries",
    [
        {"n_embd": 1024},
        {"n_head": 32},
        {"_name_or_path": "Salesforce/codegen2-7B"},  # its name and its width are two models'
        {"_name_or_path": "Salesforce/codegen2-13B"},
    ],
)
def test_another_model_with_code_shows_no_groups(entries: dict[str, Any]) -> None:
    assert family.groups(codegen2("1B", **entries)) is None


def test_a_head_dim_contradicts_four_groups() -> None:
    assert family.groups(codegen2("7B", head_dim=256)) is None


def test_other_configurations() -> None:
    g = family.SIZES["350M"]
    assert family.groups(codegen_config(g, torch.float16)) == 4
    assert family.groups(codegen_config(g, torch.float16) | OWN_CODE) is None
    assert family.groups(moss_config(g, torch.float16)) == 4
    assert family.groups({"model_type": ["codegen"]}) is None
    assert family.groups({}) is None


@pytest.mark.parametrize(
    ("name", "hub_id", "license_name", "title"),
    [
        ("codegen-350M-mono", "Salesforce/codegen-350M-mono", "bsd-3-clause", "CodeGen"),
        ("codegen2-3_7B_P", "Salesforce/codegen2-3_7B_P", "apache-2.0", "CodeGen2"),
        ("gpt-j-6B", "EleutherAI/gpt-j-6b", "apache-2.0", "GPT-J"),
        ("moss-moon-003-sft", "fnlp/moss-moon-003-sft", "agpl-3.0", "MOSS"),
        ("nsql-2B", "NumbersStation/nsql-2B", "bsd-3-clause", "NSQL"),
        ("codegen-2B-mono-gptj", "moyix/codegen-2B-mono-gptj", "bsd-3-clause", "CodeGen"),
    ],
)
def test_published_checkpoints(name: str, hub_id: str, license_name: str, title: str) -> None:
    assert family.is_published_checkpoint(name)
    assert family.hub_id(name) == hub_id
    assert family.license_of(name) == license_name
    assert family.model_of(name).title == title


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("my-codegen-6B", "CodeGen"),
        ("codegen2-tuned", "CodeGen2"),
        ("gpt-j-tuned", "GPT-J"),
        ("gptj-title-teaser-10k", "GPT-J"),
        ("pygmalion-6b", ""),
    ],
)
def test_nothing_is_claimed_of_a_fine_tune(name: str, title: str) -> None:
    assert not family.is_published_checkpoint(name)
    assert family.license_of(name) == ""
    assert family.model_of(name).title == title


def test_the_built_in_model_has_codegens_license() -> None:
    assert family.license_of(embedded.NAME) == "bsd-3-clause"


@pytest.mark.parametrize(
    ("name", "billions"),
    [("codegen2-1B", 1.0), ("codegen2-3_7B", 3.6), ("codegen2-7B", 6.9), ("codegen2-16B", 16.0),
     ("gpt-j-6b", 6.05), ("moss-moon-003-base", 16.7), ("codegen-6B-multi-gptj", 7.07)],
)  # fmt: skip
def test_geometries_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    assert family.geometry(name).parameters / 1e9 == pytest.approx(billions, rel=0.02)
