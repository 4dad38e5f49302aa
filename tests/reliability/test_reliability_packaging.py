"""Wheel and sdist, built and installed into a clean environment, have what the commands need.

The libraries are those of the environment that runs the tests; the package is the one just built.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from lowest import lowest
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def test_the_lowest_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = dict(each.split(">=") for each in project["dependencies"])
    found = dict(each.split("==") for each in lowest(without={"torch"}))
    assert wanted.keys() - found.keys() == {"torch"}
    assert "pytest" not in found
    assert found["pydicom"] == "3.0.1"
    higher = {name for name in found.keys() & wanted.keys() if found[name] != wanted[name]}
    assert higher == {"torchvision"}, "what an extra bounds higher than the package"
    of_releases = dict(each.split(">=") for each in project["optional-dependencies"]["release"])
    assert found["torchvision"] == of_releases["torchvision"]
    assert Version(found["torchvision"]) > Version(wanted["torchvision"])


def done(*command: object, cwd: Path, **environment: str) -> str:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    kept |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    process = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the sdist of a copy of what git has."""
    folder = tmp_path_factory.mktemp("build")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", folder / "tools")
    try:
        done(*pip, "hatchling>=1.25", cwd=folder)
    except AssertionError:
        pytest.skip("hatchling cannot be fetched here")
    listed = done("git", "ls-files", cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = (sys.executable, "-m", "hatchling", "build", "-d", folder / "dist")
    done(*build, cwd=folder / "source", PYTHONPATH=str(folder / "tools"))
    with tarfile.open(next((folder / "dist").glob("*.tar.gz"))) as sdist:
        sdist.extractall(folder / "unpacked", filter="data")
    unpacked = next((folder / "unpacked").iterdir())
    again = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "again")
    done(*again, cwd=unpacked, PYTHONPATH=str(folder / "tools"))
    return folder


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if "dist-info" not in name}


@pytest.mark.slow
def test_the_wheel_has_the_package_whole_and_nothing_else(built: Path) -> None:
    found = names(next((built / "dist").glob("*.whl")))
    listed = done("git", "ls-files", "knowledge_recycling", cwd=ROOT).splitlines()
    assert found == set(listed)
    assert "knowledge_recycling/reporting/template.html" in found
    assert found == names(next((built / "again").glob("*.whl")))


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(built: Path, tmp_path: Path) -> None:
    done(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    wheel = next((built / "dist").glob("*.whl"))
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps")
    done(*install, wheel, cwd=tmp_path)
    own = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
                    cwd=tmp_path).strip())  # fmt: skip
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # theirs, after ours
    where = "import knowledge_recycling as kr; print(kr.__file__)"
    assert str(own) in done(python, "-c", where, cwd=tmp_path)
    kr = tmp_path / "env/bin/kr"
    assert done(kr, "--version", cwd=tmp_path).strip()
    done(kr, "new", "my.toml", "--kind", "digits", cwd=tmp_path)
    assert "8x8 pixels" in done(kr, "check", "my.toml", cwd=tmp_path)
    assert '"teacher"' in done(kr, "run", "my.toml", "--dry-run", cwd=tmp_path)
    requires = "from importlib.metadata import requires; print(requires('knowledge-recycling'))"
    declared = done(python, "-c", requires, cwd=tmp_path)
    for extra in ("table", "hub", "dicom", "medmnist", "release"):
        assert f"extra == '{extra}'" in declared.replace('"', "'")
