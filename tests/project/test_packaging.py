"""One version, complete package data, exact pins, and settings of other services that fit the project."""

import re
import shutil
import subprocess
import sys
import tomllib
from email.parser import Parser

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import sdpersonal
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
URL = "https://github.com/sdpersonal/sdpersonal"
TARGET = re.compile(
    r"(?:^|`|: |exec |cpu )make ([a-z-]+)", re.M
)  # where a command stands, not where prose makes something
SETTINGS = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"])


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """The metadata of a wheel, as setuptools writes it from a copy of the tree without the models' weights."""
    tree = tmp_path_factory.mktemp("tree")
    for part in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / part, tree)
    shutil.copytree(
        ROOT / "sdpersonal", tree / "sdpersonal", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
    )
    build = "from setuptools.build_meta import prepare_metadata_for_build_wheel as p; print(p('out'))"
    ran = subprocess.run([sys.executable, "-c", f"import os; os.mkdir('out'); {build}"], cwd=tree, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    [file] = tree.glob("out/*.dist-info/METADATA")
    return Parser().parsestr(file.read_text())


def test_the_version_has_one_source(metadata):
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert metadata["Version"] == sdpersonal.__version__ == read_yaml("CITATION.cff")["version"]


def test_the_version_is_available_without_dependencies():
    """-S leaves out site-packages: neither torch nor anything else can be imported."""
    report = [sys.executable, "-S", "-c", "import sdpersonal; print(sdpersonal.__version__)"]
    ran = subprocess.run(report, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == sdpersonal.__version__, ran.stderr


def test_every_data_file_of_the_package_is_in_the_wheel():
    package = ROOT / "sdpersonal"
    packed = {
        path for glob in PROJECT["tool"]["setuptools"]["package-data"]["sdpersonal"] for path in package.glob(glob)
    }
    data = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data <= packed and package / "py.typed" in data


def test_constraints_pin_versions_that_the_project_accepts():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *extras["app"], *extras["dev"], *extras["tools"]]
    needed = [Requirement(text) for text in texts]
    wrong = [str(need) for need in needed if pins.get(canonicalize_name(need.name), "0") not in need.specifier]
    assert wrong == [] and lines == sorted(lines, key=str.lower)


HOLES = {  # the last version with a known hole; uvicorn: that read X-Forwarded-For otherwise
    "filelock": "3.20.2",
    "fonttools": "4.60.1",
    "h11": "0.14.0",
    "idna": "3.6",
    "jinja2": "3.1.5",
    "pillow": "12.2.0",
    "pillow-heif": "1.2.1",
    "requests": "2.32.5",
    "urllib3": "2.6.2",
    "brotli": "1.1.0",
    "orjson": "3.11.4",
    "python-multipart": "0.0.26",
    "starlette": "1.0.0",
    "uvicorn": "0.30.0",
    "protobuf": "6.33.4",
    "werkzeug": "3.1.5",
    "setuptools": "78.1.0",
}


def test_versions_with_known_vulnerabilities_are_excluded():
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *extras["app"], *extras["tensorboard"]]
    needed = {canonicalize_name(Requirement(text).name): Requirement(text).specifier for text in texts}
    needed |= {Requirement(text).name: Requirement(text).specifier for text in PROJECT["build-system"]["requires"]}
    assert [name for name, version in HOLES.items() if version in needed[name]] == []


def test_the_audit_workflow_checks_the_pinned_versions():
    workflow = read_yaml(".github/workflows/audit.yml")
    [command] = [step["run"] for step in workflow["jobs"]["pip-audit"]["steps"] if "run" in step]
    assert "pip-audit --strict" in command and command.endswith(" -r constraints.txt")
    assert "schedule" in workflow[True]  # YAML 1.1 reads the key `on` as a yes


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_files_are_valid_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_issue_forms_have_unique_fields():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            fields = [part["id"] for part in form["body"]]
            assert form["name"] and form["description"] and len(fields) == len(set(fields)) > 0, path.name
            assert {part["type"] for part in form["body"]} <= {"textarea", "input", "dropdown", "checkboxes"}


def _make_targets():
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / ".github").rglob("*.[my]*"),
        ROOT / ".ci" / "run",
    ]
    texts = {str(page.relative_to(ROOT)): page.read_text() for page in pages}
    return sorted({(name, target) for name, text in texts.items() for target in TARGET.findall(text)})


@pytest.mark.parametrize(("place", "target"), _make_targets())
def test_documented_make_targets_exist(place, target):
    ran = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout, f"{place}: {ran.stderr}"


def test_the_workflow_calls_make_on_every_supported_python():
    workflow = read_yaml(".github/workflows/tests.yml")
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert versions == classifiers == ["3.11", "3.12", "3.13", "3.14"]
    assert all(version in SpecifierSet(PROJECT["project"]["requires-python"]) for version in versions)
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == ["make lint", "make types", "make test"]
    assert "\nexec make test\n" in (ROOT / ".ci" / "run").read_text()


def test_pre_commit_runs_the_pinned_ruff():
    repositories = {entry["repo"]: entry["rev"] for entry in read_yaml(".pre-commit-config.yaml")["repos"]}
    [pin] = re.findall(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert repositories["https://github.com/astral-sh/ruff-pre-commit"] == f"v{pin}"


def test_all_files_name_the_same_repository(metadata):
    assert all(url.startswith(URL) for url in PROJECT["project"]["urls"].values())
    assert f"Source, {URL}" in metadata.get_all("Project-URL")
    assert read_yaml("CITATION.cff")["repository-code"] == URL
    names = ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", ".github/ISSUE_TEMPLATE/config.yml"]
    own = [
        url for name in names for url in re.findall(r"https://github\.com/[\w-]+/sdpersonal", (ROOT / name).read_text())
    ]
    assert set(own) == {URL}


def test_names_of_test_files_are_unique():
    """Their folders are no packages: pytest imports each file by its name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_files_that_notice_names_exist():
    paths = re.findall(r"(?<![\w./])(?:sdpersonal|tests|docs|examples)/[\w./-]*\w", (ROOT / "NOTICE").read_text())
    assert len(paths) >= 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
