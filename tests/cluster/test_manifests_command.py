"""`lexray manifests`: a description in, manifests out, or one line that says what is wrong with it."""

import json
from pathlib import Path

import yaml

EXAMPLE = Path(__file__).resolve().parents[2] / "infra" / "kubernetes" / "example-cluster.yaml"


def described(folder, **changes):
    """The example with changes, as JSON like Terraform's output."""
    file = folder / "cluster.json"
    file.write_text(json.dumps(yaml.safe_load(EXAMPLE.read_text()) | changes))
    return file


def test_what_is_printed_is_what_is_written(lexray, tmp_path):
    code, printed, _ = lexray("manifests", EXAMPLE)
    assert code == 0
    code, out, err = lexray("manifests", EXAMPLE, "--output", tmp_path / "made")
    assert (code, out) == (0, "")
    assert f"kubectl apply -k {tmp_path / 'made'}" in err
    listed = yaml.safe_load((tmp_path / "made" / "kustomization.yaml").read_text())["resources"]
    written = [each for name in listed for each in yaml.safe_load_all((tmp_path / "made" / name).read_text())]
    assert list(yaml.safe_load_all(printed)) == written
    code, as_json, _ = lexray("manifests", EXAMPLE, "--json")
    assert json.loads(as_json) == {"apiVersion": "v1", "kind": "List", "items": written}


def test_the_job_is_written_apart_and_applied_by_nobody_else(lexray, tmp_path):
    lexray("manifests", EXAMPLE, "--output", tmp_path)
    (job,) = yaml.safe_load_all((tmp_path / "job" / "rayjob.yaml").read_text())
    assert job["kind"] == "RayJob"
    assert "job" not in (tmp_path / "kustomization.yaml").read_text()
    _, printed, _ = lexray("manifests", EXAMPLE)
    assert "RayJob" not in printed


def test_without_a_version_the_cluster_gets_the_ray_that_is_here(lexray, tmp_path):
    import ray

    _, printed, _ = lexray("manifests", described(tmp_path, ray_version=None), "--json")
    (cluster,) = [each for each in json.loads(printed)["items"] if each["kind"] == "RayCluster"]
    assert cluster["spec"]["rayVersion"] == ray.__version__


def test_gpus_that_always_run_are_told(lexray, tmp_path):
    pools = [{"name": "warm", "cpus": 8, "memory_gib": 32, "gpus": 2, "min_nodes": 1, "max_nodes": 2}]
    code, _, err = lexray("manifests", described(tmp_path, pools=pools))
    assert code == 0
    assert "pool warm: 1 node(s) with 2 GPU(s) run, and cost, without any work" in err


def test_a_wrong_description_is_one_line_and_exit_code_2(lexray, tmp_path):
    for changes, words in [
        ({"provider": "aws-ec2"}, "provider: manifests are for 'kubernetes' and 'aws-eks'"),
        ({"imagee": "x"}, "imagee: unknown key; did you mean 'image'?"),
        ({"pools": [{"name": "gpu", "cpus": 8, "memory_gib": 32, "max_nodes": 0}]}, "pools.0.max_nodes"),
    ]:
        file = described(tmp_path, **changes)
        code, out, err = lexray("manifests", file)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert f"{file}: " in err
        assert words in err


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_2(lexray, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = lexray("manifests", EXAMPLE, "--output", tmp_path / "file")
    assert code == 2
    assert "--output" in err
    assert "name another folder" in err
