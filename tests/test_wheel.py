"""The wheel alone, in an environment without the checkout and from an empty directory."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = (
    "--gin.train/problems.BuiltIn.n=8",
    "--gin.harvest.run.samples=1",
    "--gin.harvest/ports.Sampling.max_tokens=96",
)


def call(*command, cwd, **environment):
    """Run a command without what points at the checkout."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the commands' folder of an environment in which the wheel is installed.

    The packages that the wheel needs come from the environment of the tests, by a path file; a path
    file of an editable install is not followed from there.
    """
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    build = (*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", ROOT)
    built = call(*build, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("distill-*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    commands = folder / "env" / "bin"
    target = (*pip, f"--python={commands / 'python'}", "install", "--no-deps", "--no-index", wheel)
    done = call(*target, cwd=folder)
    assert done.returncode == 0, done.stderr
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "environment.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return commands


def test_the_wheel_holds_its_packages_and_what_ships_and_nothing_of_the_checkout(
    installed, tmp_path
):
    code = "import distill, tokalign; print(distill.__file__); print(tokalign.__file__)"
    found = call(installed / "python", "-c", code, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    for line in found.stdout.split():
        assert Path(line).is_relative_to(installed.parent)
    package = Path(found.stdout.split()[0]).parent
    assert (package / "gin_configs" / "runs" / "quickstart.gin").is_file()
    assert (package / "data" / "models" / "teacher").is_dir()
    templates = ROOT / "distill" / "reports" / "templates"
    shipped = {path.name for path in (package / "reports" / "templates").iterdir()}
    assert shipped == {path.name for path in templates.iterdir()}
    assert not list(package.rglob("test_*.py"))


def test_the_wheel_runs_the_first_stages_from_an_empty_directory(installed, tmp_path):
    for stage in ("problems", "harvest", "check", "align"):
        done = call(
            installed / "distill",
            stage,
            "--gin_file=runs/quickstart.gin",
            "--run_dir=run",
            *SMALL,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    manifest = json.loads((tmp_path / "run" / "manifests" / "align.json").read_text())
    assert manifest["complete"] is True
