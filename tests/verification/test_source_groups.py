"""The check of the number of groups that the source was read with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cgconvert
from cgconvert import embedded
from cgconvert.formats.qkv_groups import measure_groups
from cgconvert.formats.read import ReadOptions, read
from cgconvert.io.cache import cache_folder, write_entry
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.verification.source_groups import check_source_groups
from cgconvert.verification.thresholds import Check, Verdict
from tests.support.trained_models import (
    OWN_CODE,
    change_config,
    trained,
    with_twice_the_heads,
    write_trained,
)

Convert = Callable[..., cgconvert.Result]

SHA256 = "0" * 64


@pytest.fixture(scope="module")
def two_groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    return write_trained(folder, 2, model=trained(layers=3), config=OWN_CODE)


def failed(result: cgconvert.Result) -> set[str]:
    """The failed checks of an artefact that is verified as its manifest says."""
    verification = cgconvert.verify(result, device="cpu")
    return {check.name for check in verification.checks if check.verdict == Verdict.FAIL}


@pytest.mark.parametrize(
    ("convert", "options"),
    [
        (cgconvert.to_hf, {"layout": "phi"}),
        (cgconvert.to_onnx, {"bits": 8}),
        (cgconvert.to_gguf, {"type": "Q8_0"}),
    ],
)
def test_a_wrong_number_fails_in_every_format(
    convert: Convert, options: dict[str, Any], two_groups: Path, tmp_path: Path
) -> None:
    output = tmp_path / ("model.gguf" if convert is cgconvert.to_gguf else "model")
    result = convert(two_groups, output, mp_num=4, **options)
    assert "looks wrong" in result.notes[0]
    assert failed(result) == {"source.groups"}


def test_the_number_that_was_measured_passes(two_groups: Path, tmp_path: Path) -> None:
    assert not failed(cgconvert.to_gguf(two_groups, tmp_path / "model.gguf", mp_num="auto"))


def test_a_configuration_that_promises_another_number_fails(tmp_path: Path) -> None:
    source = write_trained(tmp_path, 1, model=trained(layers=3))  # plain "codegen": 4
    result = cgconvert.to_hf(source, tmp_path / "hf")
    assert not result.notes
    assert failed(result) == {"source.groups"}


def test_a_training_run_on_another_machine_fails(tmp_path: Path) -> None:
    model = with_twice_the_heads(*trained(layers=3))
    source = write_trained(tmp_path, 4, model=model, layout="jaxformer")
    change_config(source, {"tpu_version": 3})
    assert failed(cgconvert.to_gguf(source, tmp_path / "model.gguf")) == {"source.groups"}


def check(source: Checkpoint) -> Check:
    (only,) = check_source_groups(source, SHA256)
    return only


def test_the_detail_has_the_figures(two_groups: Path, tmp_path: Path) -> None:
    right = check(read(str(two_groups), ReadOptions(mp_num=2)))
    assert (right.name, right.verdict, right.value) == ("source.groups", Verdict.PASS, 1.0)
    wrong = check(read(str(two_groups), ReadOptions(mp_num=1)))
    assert (wrong.verdict, wrong.threshold, wrong.comparison) == (Verdict.FAIL, 2.5, "<=")
    assert wrong.value is not None
    assert wrong.value > 4
    assert wrong.detail.startswith("read with 1; perplexity of a page of text: 121 with 2 groups, ")


def test_random_weights_are_reported_without_a_verdict(source: Checkpoint, tmp_path: Path) -> None:
    for number in (1, 2, 4):
        read_so = replace(source, decoder=source.decoder.with_groups(number))
        outcome = check(read_so)
        assert (outcome.verdict, outcome.threshold) == (Verdict.INFO, None)
        assert "the model does not know such text, so nothing follows" in outcome.detail


def test_where_q_k_and_v_are_apart_there_is_no_check(tmp_path: Path) -> None:
    result = cgconvert.to_gguf(embedded.NAME, tmp_path / "model.gguf")
    assert check_source_groups(read(str(result.path)), SHA256) == []


def test_a_measurement_is_kept_whatever_the_number(
    two_groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = check(read(str(two_groups), ReadOptions(mp_num=2)))
    (path,) = (cache_folder() / "groups").iterdir()
    measurements = []

    def counted(checkpoint: Checkpoint, progress: object) -> object:
        measurements.append(checkpoint)
        return measure_groups(checkpoint)

    monkeypatch.setattr(f"{check_source_groups.__module__}.measure_groups", counted)
    again = check(read(str(two_groups), ReadOptions(mp_num=4)))
    assert not measurements
    assert again.detail.removeprefix("read with 4") == first.detail.removeprefix("read with 2")
    path.write_bytes(path.read_bytes()[:-1])
    assert check(read(str(two_groups), ReadOptions(mp_num=2))) == first
    assert len(measurements) == 1
    other_source = read(str(two_groups), ReadOptions(mp_num=2))
    check_source_groups(other_source, "1" * 64)
    assert len(measurements) == 2


def test_the_decoder_of_another_number_has_the_same_packed_rows(source: Checkpoint) -> None:
    decoder: Decoder = source.decoder
    for number in (1, 2):
        regrouped = decoder.with_groups(number)
        assert regrouped.geometry.mp_num == number
        packed = regrouped.layers[0].packed(number).read()
        assert packed.equal(decoder.layers[0].packed(4).read())
        assert not regrouped.layers[0].q.read().equal(decoder.layers[0].q.read())


@pytest.mark.parametrize("content", [b"not JSON", b"[1, 2]", b'{"1": null}', b'{"1": 5.0}'])
def test_a_measurement_of_another_form_is_made_again(
    content: bytes, source: Checkpoint, tmp_path: Path
) -> None:
    first = check(source)
    (path,) = (cache_folder() / "groups").iterdir()
    write_entry("groups", path.name, content)
    assert check(source) == first
