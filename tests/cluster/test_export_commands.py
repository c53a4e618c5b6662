"""`lexray export` and `lexray import` as a user calls them."""

import json

from export_cases import D, F, raw_rows, relative_difference, saved, trained

from lexray.training.checkpoint.saved import load_dictionary


def test_export_and_import_give_back_the_dictionary(lexray, tmp_path):
    url = saved(tmp_path / "dictionary", trained("topk"))
    code, out, err = lexray("export", url, "--to", "sae-lens", tmp_path / "sae")
    assert (code, err) == (0, "")
    assert out == f"file://{tmp_path}/sae: topk for sae-lens\n"
    code, out, _ = lexray("import", tmp_path / "sae", tmp_path / "back")
    assert (code, out) == (0, f"file://{tmp_path}/back: topk of {F} latents\n")
    loaded, back = load_dictionary(url), load_dictionary(str(tmp_path / "back"))
    assert relative_difference(back(raw_rows(D)), loaded(raw_rows(D))) < 1e-5


def test_json_is_one_document_and_notes_are_in_it(lexray, tmp_path):
    url = saved(tmp_path / "dictionary", trained("topk-free"))
    command = ("export", url, "--to", "dictionary-learning", tmp_path / "out", "--unit-atoms", "--json")
    code, out, err = lexray(*command)
    content = json.loads(out)
    assert (code, err) == (0, "")
    assert (content["format"], content["architecture"]) == ("dictionary-learning", "AutoEncoderTopK")
    assert content["files"] == ["ae.pt", "config.json"]
    assert len(content["notes"]) == 2
    lexray("export", url, "--to", "sae-lens", tmp_path / "sae")
    code, out, _ = lexray("import", tmp_path / "sae", tmp_path / "back", "--json")
    content = json.loads(out)
    assert (content["architecture"], content["width"]) == ("topk", F)


def test_notes_go_to_stderr(lexray, tmp_path):
    url = saved(tmp_path / "dictionary", trained("topk"))
    code, out, err = lexray("export", url, "--to", "dictionary-learning", tmp_path / "out")
    assert (code, out.count("\n")) == (0, 1)
    assert err == "note: ae.pt is written by torch.save, since that library reads nothing else\n"


def test_what_a_format_has_no_place_for_is_one_line_and_exit_code_2(lexray, tmp_path):
    url = saved(tmp_path / "dictionary", trained("group_max"))
    code, out, err = lexray("export", url, "--to", "sae-lens", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err == "error group_max: SAELens has no group_max activation; sparsify has\n"
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_and_a_missing_folder_are_exit_code_2(lexray, tmp_path):
    url = saved(tmp_path / "dictionary", trained("topk"))
    assert lexray("export", url, "--to", "saelens", tmp_path / "out")[0] == 2
    assert lexray("export", tmp_path / "nowhere", "--to", "sae-lens", tmp_path / "out")[0] == 2
    code, _, err = lexray("import", tmp_path / "nowhere", tmp_path / "out")
    assert code == 2
    assert "no SAELens folder" in err
