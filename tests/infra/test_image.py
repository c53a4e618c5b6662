"""The Dockerfile: pinned as the tests are, whole, layered, without root, and with a compiler where one is needed."""

import re
import tomllib

import image_build
import pytest
from image_build import FOLDER
from kubernetes_kinds import ROOT

BUILD_TOOLS = r"build-essential|g\+\+|\bcmake\b|nvcc|-devel\b|cuda-toolkit|clang"


@pytest.fixture(scope="module")
def all_stages():
    return image_build.stages()


@pytest.fixture(scope="module")
def stages(all_stages):
    """Those that make the plain image."""
    return all_stages[: [stage[0][1].endswith(" AS lexray") for stage in all_stages].index(True) + 1]


@pytest.fixture(scope="module")
def instructions(stages):
    return [instruction for stage in stages for instruction in stage]


@pytest.fixture(scope="module")
def copied(instructions):
    return image_build.copied(instructions)


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_every_install_is_under_the_constraints_and_no_version_is_another(instructions, pins):
    installs = [rest for word, rest in instructions if word == "RUN" and "pip install" in rest]
    assert installs
    for line in installs:
        assert "-c constraints.txt" in line or "--no-index --no-deps" in line
        assert "--upgrade" not in line
    named = re.findall(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.+]+)", "\n".join(rest for _, rest in instructions))
    for package, version in named:
        assert pins[_name(package)] == version


def test_what_lexray_needs_is_pinned(pins):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in project["dependencies"] + extras["harvest"] + extras["node"]:
        package = _name(re.match(r"[\w.-]+", requirement)[0])
        assert package in pins or package == "lexray", requirement


def test_everything_copied_exists_and_is_let_in_and_nothing_else_is(copied):
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert sorted(let_in) == sorted(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
    assert rules[-1] == "**/__pycache__"  # the last rule that fits decides


def test_all_that_the_wheel_is_made_of_is_copied(copied):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {*packages, project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"} <= {
        *copied
    }


def test_an_edit_of_lexray_changes_no_layer_of_libraries(stages):
    """Layers of the image are those of its last stage, and what that copies from another one."""
    libraries, wheel, image = stages
    assert image_build.copied(libraries) == ["constraints.txt", "pyproject.toml"]
    assert (libraries[0][1].split()[-1], wheel[0][1].split()[0]) == ("libraries", "libraries")
    assert image_build.copied(image) == []
    layers = [rest for word, rest in image if word in ("COPY", "RUN", "ADD")]
    of_code = [index for index, rest in enumerate(layers) if "=wheel" in rest]
    assert of_code == [len(layers) - 1], "lexray is the last layer, and the only one made of the wheel"
    assert "--no-index --no-deps /wheels/*.whl" in layers[-1]
    assert layers[-2] == "--from=libraries /opt/lexray /opt/lexray"


def test_every_stage_starts_from_one_version_of_a_python_that_lexray_supports(stages):
    bases = {stage[0][1].split()[0] for stage in stages} - {"libraries"}
    assert len(bases) == 1
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", bases.pop())[1]
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tuple(map(int, version.split("."))) >= tuple(map(int, requires.removeprefix(">=").split(".")))


def test_it_runs_as_a_user_that_is_not_root_and_is_that_of_the_pods(stages):
    users = [rest for word, rest in stages[-1] if word == "USER"]
    assert users == ["1000:1000"]
    after = [word for word, _ in stages[-1]][[word for word, _ in stages[-1]].index("USER") :]
    assert "RUN" not in after


def test_the_image_has_the_c_compiler_of_kernels_and_no_other_build_tool(stages, instructions):
    """Triton compiles the launcher of each kernel when it is first used: it needs `gcc` and the C library's headers."""
    (installed,) = [rest for word, rest in stages[-1] if word == "RUN" and "apt-get install" in rest]
    assert {"gcc", "libc6-dev"} <= set(installed.split())
    for _, rest in instructions:
        assert not re.search(BUILD_TOOLS, rest), rest
    for stage in (stages[0], stages[-1]):
        assert any(word == "ENV" and "DS_BUILD_OPS=0" in rest for word, rest in stage)


def test_efa_is_a_target_of_its_own_and_the_default_is_the_plain_image(all_stages, stages):
    assert stages[-1][0][1].endswith(" AS lexray")
    efa, default = all_stages[len(stages) :]
    assert (efa[0][1], default) == ("lexray AS efa", [("FROM", "lexray")])
    (version,) = [rest.removeprefix("EFA_INSTALLER=") for word, rest in efa if word == "ARG"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    (script,) = [rest for word, rest in efa if word == "RUN"]
    assert "--skip-kmod" in script  # a container has no kernel of its own
    assert 'test -n "$plugin"' in script  # an image without NCCL's plugin would use TCP without a word
    assert [rest for word, rest in efa if word == "USER"] == ["root", "1000:1000"]


def test_no_secret_is_baked_in(instructions):
    for word, rest in instructions:
        if word in ("ENV", "ARG"):
            assert not re.search(r"(?i)token|secret|password|api_key|access_key", rest), rest
