"""What the engine gets to build the images of; no Docker engine is needed."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

_ROOT = Path(__file__).parents[2]


@pytest.mark.unit
@pytest.mark.parametrize("image", ["teacher", "student"])
def test_the_build_has_all_packages_and_gets_all_that_it_copies(image: str) -> None:
    dockerfile = (_ROOT / f"docker/{image}.Dockerfile").read_text(encoding="utf-8")
    copied = [
        path
        for line in re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.MULTILINE)
        for path in line.split()
    ]
    ignored = (_ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert {f"!{path}" for path in copied} <= set(ignored)
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(copied)


@pytest.mark.unit
def test_the_cluster_for_kubernetes_has_the_version_of_ray_that_is_tested() -> None:
    pins = (_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    cluster = yaml.safe_load((_ROOT / "docker/kuberay.yml").read_text(encoding="utf-8"))["spec"]
    assert f"ray=={cluster['rayVersion']}" in pins
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(group["rayStartParams"]["disable-usage-stats"] == "true" for group in groups)


@pytest.mark.unit
def test_the_example_has_every_variable_of_the_compose_files() -> None:
    files = [_ROOT / "docker-compose.yml", *(_ROOT / "docker").glob("compose.*.yml")]
    used = {name for file in files for name in re.findall(r"\$\{([A-Z_]+)", file.read_text(encoding="utf-8"))}
    example = (_ROOT / ".env.example").read_text(encoding="utf-8")
    assert used - {"ENV_FILE"} == used & set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
