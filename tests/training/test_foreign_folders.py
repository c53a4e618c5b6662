"""SAELens folders and saved dictionaries of strangers: read exactly, or refused in one line that names the part.

Every folder here is one good folder with one thing changed.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.training.checkpoint.saved import CONFIG as OUR_CONFIG
from lexray.training.checkpoint.saved import TENSORS as OUR_TENSORS
from lexray.training.checkpoint.saved import load_dictionary, save_dictionary
from lexray.training.checkpoint.tensor_file import MAX_HEADER_BYTES, TensorFileError, read_header
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.export.import_sae_lens import import_sae_lens
from lexray.training.export.sae_lens import CONFIG, TENSORS
from lexray.training.export.sae_lens_source import SHAPES

D, D_OUT, F = 6, 4, 10
WIDTHS = {"d_in": D, "d_out": D_OUT, "d_sae": F}
OWN: dict[str, dict[str, Any]] = {
    "topk": {"k": 3},
    "abstopk": {"k": 3, "rescale_acts_by_decoder_norm": False},
    "matching_pursuit": {"residual_threshold": 0.0, "max_iterations": 4, "stop_on_duplicate_support": True},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These matrices are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors_of(architecture: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = WIDTHS if "transcoder" in architecture else WIDTHS | {"d_out": D}
    return {
        name: torch.rand([widths[width] for width in shape], generator=generator) / 3
        for name, shape in SHAPES[architecture].items()
    }


def config_of(architecture: str) -> dict[str, Any]:
    return {
        "architecture": architecture,
        **{name: width for name, width in WIDTHS.items() if name != "d_out" or "transcoder" in architecture},
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0"},
        **OWN.get(architecture, {}),
    }


def folder(path: Path, architecture: str, config: dict[str, Any] | None = None, **tensors: Tensor | None) -> Path:
    """A folder of this architecture with options and tensors changed; None removes one."""
    path.mkdir()
    content = {k: v for k, v in (config_of(architecture) | (config or {})).items() if v != "REMOVED"}
    (path / CONFIG).write_text(json.dumps(content))
    held = {name: tensor for name, tensor in (tensors_of(architecture) | tensors).items() if tensor is not None}
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, path / TENSORS)
    return path


def refusal(path: Path) -> str:
    """The one line; nothing is written."""
    out = path.parent / "out"
    with pytest.raises(UserError) as error:
        import_sae_lens(str(path), str(out))
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 700
    assert str(path) in text
    assert not out.exists()
    return text


@pytest.mark.parametrize("architecture", SHAPES)
def test_the_good_folder_of_every_architecture_is_read(architecture, tmp_path):
    imported = import_sae_lens(str(folder(tmp_path / "sae", architecture)), str(tmp_path / "out"))
    x_BD = torch.rand(5, D)
    assert load_dictionary(imported.url)(x_BD).shape == (5, D_OUT if "transcoder" in architecture else D)


# Tensors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["threshold", "scaling_factor", "W_skip", "r_mag", "log_threshold", "anything at all"])
@pytest.mark.parametrize("architecture", ["standard", "topk", "matching_pursuit", "transcoder"])
def test_a_tensor_that_is_not_read_is_refused_by_name(architecture, name, tmp_path):
    text = refusal(folder(tmp_path / "sae", architecture, **{name: torch.full((F,), 0.5)}))
    assert f"it holds {name!r}, which {CONFIG} ({architecture}" in text


@pytest.mark.parametrize(("architecture", "name"), [(a, name) for a in SHAPES for name in SHAPES[a]])
def test_a_missing_tensor_is_refused_by_name(architecture, name, tmp_path):
    assert f"it has no {name}, which {CONFIG} ({architecture}" in refusal(
        folder(tmp_path / "sae", architecture, **{name: None})
    )


@pytest.mark.parametrize(("architecture", "name"), [(a, name) for a in SHAPES for name in SHAPES[a]])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_is_refused_by_its_tensor(architecture, name, value, tmp_path):
    tensor = tensors_of(architecture)[name]
    tensor.view(-1)[2] = value
    text = refusal(folder(tmp_path / "sae", architecture, **{name: tensor}))
    assert f"{name} holds 1 of {tensor.numel()} values that are not finite" in text


@pytest.mark.parametrize(
    ("name", "shape", "shown"),
    [
        ("threshold", (1, F), f"threshold has the shape 1 x {F}, "),
        ("threshold", (7,), "threshold has the shape 7, "),
        ("threshold", (), "threshold has the shape of a single number, "),
        ("W_dec", (F,), f"W_dec has the shape {F}, "),
        ("W_dec", (D, F), f"W_dec has the shape {D} x {F}, "),
        ("W_enc", (F, D), f"W_enc has the shape {F} x {D}, "),
        ("W_enc", (D, F, 1), f"W_enc has the shape {D} x {F} x 1, "),
        ("b_dec", (0,), "b_dec has the shape 0, "),
        ("b_enc", (F + 1,), f"b_enc has the shape {F + 1}, "),
    ],
)
def test_a_tensor_of_another_shape_is_refused_with_both(name, shape, shown, tmp_path):
    text = refusal(folder(tmp_path / "sae", "jumprelu", **{name: torch.rand(shape)}))
    assert shown in text
    assert f"{CONFIG} (jumprelu, d_in {D}, d_sae {F}) implies " in text


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_tensors_of_whole_numbers_are_refused(dtype, tmp_path):
    text = refusal(folder(tmp_path / "sae", "standard", W_enc=torch.ones(D, F, dtype=dtype)))
    assert "'W_enc' holds" in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_size_are_read(dtype, tmp_path):
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of("standard").items()}
    imported = import_sae_lens(str(folder(tmp_path / "sae", "standard", **tensors)), str(tmp_path / "out"))
    torch.testing.assert_close(load_dictionary(imported.url).W_dec, tensors["W_dec"].float())


def test_a_double_beyond_float32_is_refused(tmp_path):
    tensor = torch.full((F,), 1e300, dtype=torch.float64)
    assert "b_enc holds 10 of 10" in refusal(folder(tmp_path / "sae", "standard", b_enc=tensor))


def test_an_atom_of_length_zero_is_no_nan_under_rescaling(tmp_path):
    atoms = tensors_of("topk")["W_dec"]
    atoms[3] = 0
    path = folder(tmp_path / "sae", "topk", {"rescale_acts_by_decoder_norm": True}, W_dec=atoms)
    loaded = load_dictionary(import_sae_lens(str(path), str(tmp_path / "out")).url)
    code = loaded.encode(torch.rand(20, D)).dense()
    assert code.isfinite().all()
    assert not code[:, 3].any()


# Options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "config", "reason"),
    [
        ("topk", {"k": None}, "has no k, which topk needs"),
        ("topk", {"k": "REMOVED"}, "has no k, which topk needs"),
        ("topk", {"k": "3"}, "k: '3' is not a whole number from 1 to 10"),
        ("topk", {"k": 3.0}, "k: 3.0 is not a whole number"),
        ("topk", {"k": True}, "k: True is not a whole number"),
        ("topk", {"k": 0}, "k: 0 is not a whole number"),
        ("topk", {"k": -1}, "k: -1 is not a whole number"),
        ("topk", {"k": F + 1}, f"k: {F + 1} is not a whole number from 1 to {F}"),
        ("topk", {"k": [3]}, "k: [3] is not a whole number"),
        ("topk", {"rescale_acts_by_decoder_norm": "false"}, "rescale_acts_by_decoder_norm: false is not true or false"),
        ("standard", {"apply_b_dec_to_input": "REMOVED"}, "has no apply_b_dec_to_input, which standard needs"),
        ("standard", {"apply_b_dec_to_input": 1}, "apply_b_dec_to_input: 1 is not true or false"),
        ("standard", {"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input: no is not true or false"),
        ("standard", {"d_in": 99, "d_sae": 7}, "W_enc has the shape 6 x 10, cfg.json (standard, d_in 99, d_sae 7)"),
        ("standard", {"d_in": "REMOVED"}, "has no d_in, which standard needs"),
        ("standard", {"d_sae": None}, "has no d_sae, which standard needs"),
        ("standard", {"d_sae": 10**12}, "implies 6 x 1000000000000"),
        ("standard", {"d_sae": "10"}, "d_sae: '10' is not a whole number from 1"),
        ("standard", {"d_sae": 10.0}, "d_sae: 10.0 is not a whole number from 1"),
        ("standard", {"d_in": -6}, "d_in: -6 is not a whole number from 1"),
        ("transcoder", {"d_out": "REMOVED"}, "has no d_out, which transcoder needs"),
        ("transcoder", {"d_out": 9}, "W_dec has the shape 10 x 4"),
        ("transcoder", {"apply_b_dec_to_input": True}, "apply_b_dec_to_input is true, but b_dec of a transcoder"),
        ("standard", {"metadata": "x"}, "metadata: x is not an object of names and values"),
        ("standard", {"metadata": []}, "metadata: [] is not an object"),
        ("standard", {"metadata": {"sae_lens_version": "6.1", "l0": "32"}}, "metadata.l0: '32' is not a number"),
        ("standard", {"metadata": {"sae_lens_version": "6.1", "l0": True}}, "metadata.l0: True is not a number"),
        ("standard", {"metadata": {"sae_lens_version": "6.1", "l0": 10**400}}, "has more than 64 bits"),
        ("standard", {"metadata": {"sae_lens_version": ["6"]}}, "written before SAELens 6"),
        ("standard", {"metadata": {"sae_lens_version": "²"}}, "written before SAELens 6"),
        ("standard", {"dtype": "float7"}, "dtype: float7 is not one of float64, float32, float16, bfloat16"),
        ("standard", {"dtype": 32}, "dtype: 32 is not one of"),
        ("standard", {"reshape_activations": "flip"}, "reshape_activations: flip is not one of none, hook_z"),
        ("standard", {"normalize_activations": True}, "normalize_activations is True"),
        ("standard", {"architecture": 3}, "names no architecture"),
        ("standard", {"architecture": "a" * 10**5}, "has no place; known: standard"),
        ("matching_pursuit", {"max_iterations": 0}, "max_iterations: 0 is not a whole number from 1"),
        ("matching_pursuit", {"residual_threshold": "0"}, "residual_threshold: '0' is not a number"),
        ("matching_pursuit", {"residual_threshold": "REMOVED"}, "has no residual_threshold, which matching_pursuit"),
        ("matching_pursuit", {"stop_on_duplicate_support": 0}, "stop_on_duplicate_support: 0 is not true or false"),
    ],
)
def test_an_odd_option_is_refused_by_name(architecture, config, reason, tmp_path):
    assert reason in refusal(folder(tmp_path / "sae", architecture, config))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_fn", "tanh-relu"), ("activation_fn", True), ("activation_fn_str", "topk"),
        ("activation_fn_kwargs", {"k": 3}), ("finetuning_scaling_factor", True), ("finetuning_scaling_factor", 0),
        ("rescale_acts_by_decoder_norm", True), ("k", 3), ("threshold", 0.5), ("noise", 0.1), ("Activation_fn", "relu"),
        ("bad\nname", 1), ("x" * 10**4, 1),
    ],
)  # fmt: skip
def test_an_option_that_is_not_known_to_change_nothing_is_refused_by_name(name, value, tmp_path):
    text = refusal(folder(tmp_path / "sae", "standard", {name: value}))
    assert f"{CONFIG} has {name}: " in text or repr(name)[:50] in text or name[:60] in text
    assert "which standard has no place for" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_fn", "relu"), ("activation_fn_kwargs", {}), ("finetuning_scaling_factor", False),
        ("l1_coefficient", 5.0), ("hook_name", "blocks.3.hook_resid_post"), ("whatever", None), ("device", "cuda:3"),
        ("dtype", "torch.float32"), ("dtype", None), ("reshape_activations", "hook_z"),
    ],
)  # fmt: skip
def test_an_option_that_changes_nothing_is_no_reason_to_refuse(name, value, tmp_path):
    imported = import_sae_lens(str(folder(tmp_path / "sae", "standard", {name: value})), str(tmp_path / "out"))
    x_BD, tensors = torch.rand(8, D), tensors_of("standard")
    expected_BF = torch.relu(x_BD @ tensors["W_enc"] + tensors["b_enc"])
    torch.testing.assert_close(load_dictionary(imported.url).encode(x_BD).dense(), expected_BF, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "holds no settings"),
        ("3", "holds no settings"),
        ("null", "holds no settings"),
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"architecture": "standard"', "not valid JSON"),
        ("\x00", "not valid JSON"),
        ("[" * 10**5, "not valid JSON"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested more than 64 deep"),
        ('{"k": 3, "k": 4}', "has 'k' twice"),
        ('{"k": 1' + "0" * 5000 + "}", "not valid JSON"),
        (" " * (2**24 + 1), "at most 16,777,216 are read"),
    ],
    ids=range(12),
)
def test_a_config_that_is_no_plain_object_is_refused(text, reason, tmp_path):
    path = folder(tmp_path / "sae", "standard")
    (path / CONFIG).write_text(text)
    assert reason in refusal(path)


@pytest.mark.parametrize("bad", [b"\xff\xfe{}", b'{"a": "\xed\xa0\x80"}'])
def test_a_config_that_is_no_text_is_refused(bad, tmp_path):
    path = folder(tmp_path / "sae", "standard")
    (path / CONFIG).write_bytes(bad)
    assert CONFIG in refusal(path)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_folder_in_the_place_of_a_file_is_refused(name, tmp_path):
    path = folder(tmp_path / "sae", "standard")
    (path / name).unlink()
    (path / name).mkdir()
    refusal(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8), part, max_size=3),
    max_leaves=5,
)


OPTIONS = sorted({name for a in SHAPES for name in config_of(a)} | {"metadata.l0", "metadata.sae_lens_version"})


@given(name=st.sampled_from(OPTIONS), value=JSON, architecture=st.sampled_from(sorted(SHAPES)))
@settings(max_examples=150)
def test_whatever_an_option_holds_the_answer_is_a_dictionary_or_one_line(name, value, architecture, tmp_path_factory):
    base = tmp_path_factory.mktemp("fuzz")
    config = config_of(architecture)
    if name.startswith("metadata."):
        config["metadata"] = {**config["metadata"], name.removeprefix("metadata."): value}
    else:
        config[name] = value
    path = folder(base / "sae", architecture, config)
    line = ""
    try:
        import_sae_lens(str(path), str(base / "out"))
    except UserError as error:
        line = str(error)
    assert "\n" not in line


# Headers of safetensors ---------------------------------------------------------------------------------------------


def with_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


ENTRY = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
DAMAGED = {
    "empty": b"",
    "short": b"\x01\x00",
    "length beyond the file": struct.pack("<Q", 100) + b"{}",
    "huge length": b"\xff" * 8 + b"{}",
}
WRONG_HEADERS = {
    "a name twice": f'{{"a": {ENTRY}, "a": {ENTRY}}}',
    "no object": "[]",
    "no JSON": "{",
    "deep": '{"a": ' + "[" * 10**5,
    "NaN": '{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}',
    "an entry that is a list": '{"a": [1]}',
    "an unknown dtype": ENTRY.replace("F32", "F7").join(('{"a": ', "}")),
    "a dtype that is a list": ENTRY.replace('"F32"', '["F32"]').join(('{"a": ', "}")),
    "a negative length": ENTRY.replace("[2]", "[-2]").join(('{"a": ', "}")),
    "a length that is true": ENTRY.replace("[2]", "[2, true]").join(('{"a": ', "}")),
    "a shape beyond its bytes": ENTRY.replace("[2]", "[2000000, 100000]").join(('{"a": ', "}")),
    "a gap": ENTRY.replace("[0, 8]", "[8, 16]").join(('{"a": ', "}")),
    "an overlap": f'{{"a": {ENTRY}, "b": {ENTRY}}}',
    "bytes that nothing describes": "{}",
    "offsets beyond the file": f'{{"a": {ENTRY.replace("[2]", "[4]").replace("[0, 8]", "[0, 16]")}}}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_without_a_header_is_refused(name, tmp_path):
    (tmp_path / TENSORS).write_bytes(DAMAGED[name])
    with pytest.raises(TensorFileError):
        read_header(Store.at(str(tmp_path)), TENSORS)


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_a_header_that_does_not_describe_its_file_is_refused(name, tmp_path):
    with_header(tmp_path / TENSORS, WRONG_HEADERS[name].encode(), bytes(8))
    with pytest.raises(TensorFileError):
        read_header(Store.at(str(tmp_path)), TENSORS)
    path = folder(tmp_path / "sae", "standard")
    with_header(path / TENSORS, WRONG_HEADERS[name].encode(), bytes(8))
    assert TENSORS in refusal(path)


def test_a_header_of_many_megabytes_is_not_read(tmp_path):
    with_header(tmp_path / TENSORS, b" " * (MAX_HEADER_BYTES + 1))
    with pytest.raises(TensorFileError, match="are read at most"):
        read_header(Store.at(str(tmp_path)), TENSORS)


NAMES = st.text(max_size=5).filter(lambda name: name != "__metadata__")


@given(shapes=st.dictionaries(NAMES, st.lists(st.integers(0, 3), max_size=3), max_size=4))
@settings(max_examples=25)
def test_the_header_gives_names_and_shapes_of_what_was_saved(shapes, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / TENSORS
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    header = read_header(Store.at(str(path.parent)), TENSORS)
    assert {name: list(stored.shape) for name, stored in header.items()} == shapes


# Our own saved dictionaries -----------------------------------------------------------------------------------------


def ours(path: Path, architecture: str = "topk", **options: Any) -> Path:
    site = SiteStatistics(mean=(0.5,) * D, mean_squared_norm=4.0)
    config = dictionary_config({"architecture": architecture, "width": F, "target_l0": 3, **options})
    save_dictionary(Store.at(str(path)), make_dictionary(config, Sites.same(site)))
    return path


def load_refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_dictionary(str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


def edit(path: Path, **changes: Any) -> Path:
    """The same folder with options of the dictionary changed."""
    content = json.loads((path / OUR_CONFIG).read_text())
    widths = changes.pop("site_widths", content["site_widths"])
    content["dictionary"] |= changes
    (path / OUR_CONFIG).write_text(json.dumps(content | {"site_widths": widths}))
    return path


@pytest.mark.parametrize(
    ("architecture", "changes", "numbers"),
    [
        ("topk", {"width": 2_000_000}, ("10", "2000000")),
        ("topk", {"width": 10**15}, (str(10**15), str(2**31))),
        ("topk", {"site_widths": {"inputs": [10**12], "outputs": [10**12]}}, ("6", str(10**12))),
        ("kmeans", {"width": 60_000}, ("10", "60000")),
        ("snmf", {"width": 60_000}, ("10", "60000")),
        ("archetypal", {"width": 60_000}, ("10", "60000")),
        ("matryoshka_batch_topk", {"width": 2_000_000}, ("10", "2000000")),
    ],
)
def test_widths_that_the_tensors_do_not_have_cost_no_memory(architecture, changes, numbers, tmp_path):
    options = {"target_l0": 1} if architecture == "kmeans" else {}
    path = edit(ours(tmp_path / "d", architecture, **options), **changes)
    tracemalloc.start()
    try:
        text = load_refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert all(number in text for number in numbers)


def test_loading_draws_no_random_number(tmp_path, monkeypatch):
    path = ours(tmp_path / "d")

    def no_memory(*sizes: Any, **kwargs: Any) -> Tensor:
        drawn = randn(*sizes, **kwargs)
        assert drawn.is_meta
        return drawn

    randn = torch.randn
    monkeypatch.setattr(torch, "randn", no_memory)
    assert load_dictionary(str(path)).W_dec.shape == (F, D)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "input.mean_D", "input.scale_D"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_saved_dictionary_with_a_value_that_is_not_finite_is_refused_by_its_tensor(name, value, tmp_path):
    path = ours(tmp_path / "d")
    tensors = load_file(path / OUR_TENSORS)
    tensors[name].view(-1)[1] = value
    save_file(tensors, path / OUR_TENSORS)
    assert f"{name} holds 1 of {tensors[name].numel()} values that are not finite" in load_refusal(path)


def test_a_threshold_of_zero_is_a_logarithm_of_minus_infinity_and_loads(tmp_path):
    path = ours(tmp_path / "d", "jumprelu")
    tensors = load_file(path / OUR_TENSORS)
    tensors["scaled_log_threshold"].fill_(-torch.inf)
    save_file(tensors, path / OUR_TENSORS)
    assert not load_dictionary(str(path)).code.threshold_F.any()
    tensors["scaled_log_threshold"].fill_(torch.nan)
    save_file(tensors, path / OUR_TENSORS)
    assert "scaled_log_threshold holds 10 of 10" in load_refusal(path)


@pytest.mark.parametrize("extra", ["threshold", "W_skip", "sum_zz_FF", "mixture_FC", "x"])
def test_a_tensor_that_the_architecture_does_not_have_is_refused_by_name(extra, tmp_path):
    path = ours(tmp_path / "d")
    save_file({**load_file(path / OUR_TENSORS), extra: torch.zeros(3)}, path / OUR_TENSORS)
    assert f"it holds '{extra}', which config.json has no place for" in load_refusal(path)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "rows_since_fired_F", "input.mean_D"])
def test_a_tensor_that_is_missing_or_of_another_shape_is_refused_with_both_shapes(name, tmp_path):
    path = ours(tmp_path / "d")
    tensors = load_file(path / OUR_TENSORS)
    save_file({**tensors, name: tensors[name][:3].clone()}, path / OUR_TENSORS)
    assert f"{name} has the shape 3" in load_refusal(path)
    del tensors[name]
    save_file(tensors, path / OUR_TENSORS)
    assert f"it has no {name}" in load_refusal(path)


def test_whole_numbers_in_the_place_of_floats_are_refused(tmp_path):
    path = ours(tmp_path / "d")
    tensors = load_file(path / OUR_TENSORS)
    save_file({**tensors, "b_enc": torch.zeros(F, dtype=torch.int64)}, path / OUR_TENSORS)
    assert "b_enc holds torch.int64, needed is torch.float32" in load_refusal(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": ["topk"]}, {"architecture": "x" * 10**5}, {"width": "ten"}, {"width": None}, {"width": -1},
        {"target_l0": 0}, {"k_aux": "many"}, {"nonsense\nline": 1}, {"normaliser": "bright"},
        {"site_widths": {"inputs": [], "outputs": []}}, {"site_widths": {"inputs": [6.0], "outputs": [6.0]}},
        {"site_widths": {"inputs": [True], "outputs": [True]}}, {"site_widths": {"inputs": ["6"], "outputs": ["6"]}},
        {"site_widths": {"inputs": [6], "outputs": [4]}}, {"site_widths": [6]}, {"site_widths": {"inputs": 6}},
    ],
    ids=range(16),
)  # fmt: skip
def test_a_configuration_that_describes_no_dictionary_is_refused(changes, tmp_path):
    assert "does not describe a dictionary" in load_refusal(edit(ours(tmp_path / "d"), **changes))
