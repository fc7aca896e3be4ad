"""What the files around the code promise: the locks, the environments, set-up and continuous integration."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

LOCKS = ["requirements.lock", "requirements-minimum.lock", "requirements-cuda13.lock", "requirements-sm90a.lock"]


@pytest.fixture
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


def locked(path: Path) -> dict[str, str]:
    """The version of every distribution in a lock, in the newest Python's where it holds several."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE))


def requirement(listed: list[str], name: str) -> Requirement:
    return next(entry for entry in map(Requirement, listed) if entry.name == name)


# Locks and environments


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_requirement_has_hashes_and_no_address(root, name):
    text = (root / name).read_text()
    entries = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    assert len(entries) > 10
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( ; [^#\\]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", entry), entry
    assert not re.search(r"://|\s@\s|--index|--find-links|-e ", text)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-minimum.lock"])
def test_a_lock_holds_every_dependency_within_its_range(root, project, name):
    versions = locked(root / name)
    for entry in map(Requirement, project["project"]["dependencies"] + project["dependency-groups"]["dev"]):
        if entry.name != "workbench-kernels":
            assert versions[canonicalize_name(entry.name)] in entry.specifier, entry


def test_the_locks_hold_both_ends_of_the_jax_range(root, project):
    jax = requirement(project["project"]["dependencies"], "jax").specifier
    lowest = next(bound.version for bound in jax if bound.operator == ">=")
    newest, oldest = (locked(root / name)["jax"] for name in LOCKS[:2])
    assert oldest == lowest == re.search(r"^MINIMUM_JAX := (\S+)", (root / "Makefile").read_text(), re.MULTILINE)[1]
    assert newest in jax and newest in SpecifierSet(f">{oldest}")
    for name in LOCKS[2:]:
        assert locked(root / name)["jax-cuda13-plugin"] == newest
    assert locked(root / "requirements-sm90a.lock")["jax"] == newest


def test_the_minimum_lock_differs_in_jax_alone_but_for_what_it_adds(root):
    newest, oldest = (locked(root / name) for name in LOCKS[:2])
    assert {name for name in newest if newest[name] != oldest.get(name)} == {"jax", "jaxlib"}
    assert {"lm-eval", "ray", "jieba", "wonderwords"} <= oldest.keys() - newest.keys() and "torch" not in oldest


def test_environment_yml_is_in_step_with_pyproject(root, project):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    assert python == "python=" + (root / ".python-version").read_text().strip()
    assert python.removeprefix("python=") in SpecifierSet(project["project"]["requires-python"])
    assert pip == {"pip": ["-e ./kernels", "-e .", *project["dependency-groups"]["dev"]]}


def test_both_distributions_ask_for_the_same_python_and_jax(root, project):
    kernels = tomllib.loads((root / "kernels" / "pyproject.toml").read_text())["project"]
    assert kernels["requires-python"] == project["project"]["requires-python"]
    ours = requirement(project["project"]["dependencies"], "jax")
    assert requirement(kernels["dependencies"], "jax").specifier == ours.specifier


def test_the_package_and_the_distribution_have_one_version(project):
    import workbench

    assert workbench.__version__ == project["project"]["version"]


# setup.sh, with a `uv` that only notes what it is asked and fails at the step named by $FAIL

UV = """
echo "$@" >>asked
[ "$1 $2" != "pip ${FAIL:-}" ] || exit 1
[ "$1" != venv ] || { mkdir -p .venv/bin && : >.venv/bin/python && chmod +x .venv/bin/python; }
"""
STEPS = ["--version", "venv", "pip sync", "pip install"]


def command(path: Path, script: str):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def fresh(root, tmp_path):
    """A folder to set up, and a PATH of a few standard commands, this `uv`, and no Python."""
    folder, path = tmp_path / "folder", tmp_path / "path"
    (folder / "kernels").mkdir(parents=True)
    path.mkdir()
    for name in ["setup.sh", "pyproject.toml", "kernels/pyproject.toml", *LOCKS]:
        shutil.copy(root / name, folder / name)
    for name in ["cat", "chmod", "cksum", "dirname", "mkdir", "rm", "sed", "uname"]:
        (path / name).symlink_to(shutil.which(name))
    command(path / "uv", UV)
    return folder, path


def set_up(fresh, *arguments: str, **variables: str) -> tuple[int, str, list[str]]:
    """The exit status, what was said, and the steps that uv was asked for."""
    folder, path = fresh
    environment = {"PATH": str(path), "HOME": str(path)} | variables
    log = folder / "asked"
    log.unlink(missing_ok=True)
    done = subprocess.run(["/bin/sh", folder / "setup.sh", *arguments], env=environment, capture_output=True, text=True)
    steps = log.read_text().splitlines() if log.exists() else []
    return done.returncode, done.stderr, steps


def begins(steps: list[str], expected: list[str]) -> bool:
    return len(steps) == len(expected) and all(map(str.startswith, steps, expected))


def test_without_a_fitting_python_set_up_says_what_to_install(fresh):
    command(fresh[1] / "python3.12", "exit 127")  # a shim of pyenv's
    command(fresh[1] / "python3", "echo /usr/bin/python3; exit 1")  # one that is too old
    status, said, steps = set_up(fresh)
    assert status == 1 and not steps and not (fresh[0] / ".venv").exists()
    assert "found no Python >= 3.12" in said and "Install one" in said and "PYTHON=/path/to/python" in said


def test_a_python_named_explicitly_is_used_or_refused(fresh):
    command(fresh[1] / "python3", f'exec "{sys.executable}" "$@"')
    status, said, steps = set_up(fresh, PYTHON="/no/such/python")
    assert status == 1 and not steps and "/no/such/python" in said
    status, _, steps = set_up(fresh, PYTHON=sys.executable)
    assert status == 0 and sys._base_executable in steps[1]


def test_another_python_named_later_makes_the_environment_anew(fresh):
    assert set_up(fresh, PYTHON=sys.executable)[0] == 0
    assert set_up(fresh, PYTHON=sys.executable) == (0, "", [])
    command(fresh[1] / "other", "echo /another/python")
    status, _, steps = set_up(fresh, PYTHON=str(fresh[1] / "other"))
    assert status == 0 and "/another/python" in steps[1]


def test_set_up_in_its_own_activated_environment_uses_nothing_of_it_and_keeps_its_python(fresh):
    assert set_up(fresh, PYTHON=sys.executable)[0] == 0
    own = fresh[0] / ".venv" / "bin"
    command(own / "uv", "exit 1")
    command(own / "python3.12", "exit 1")
    (fresh[0] / ".venv" / "stamp").unlink()
    status, _, steps = set_up(fresh, PATH=f"{own}{os.pathsep}{fresh[1]}")
    assert status == 0 and begins(steps, STEPS) and sys._base_executable in steps[1]


def test_set_up_passes_over_shims_that_do_not_run(fresh):
    command(fresh[1] / "python3.12", "exit 127")
    command(fresh[1] / "python3", f'exec "{sys.executable}" "$@"')
    status, _, steps = set_up(fresh)
    assert status == 0 and begins(steps, STEPS)
    assert "--require-hashes requirements.lock" in steps[2] and steps[3].endswith("-e ./kernels -e .")


def test_set_up_does_nothing_until_a_lock_changes(fresh):
    assert set_up(fresh, PYTHON=sys.executable)[0] == 0
    assert set_up(fresh) == (0, "", [])
    with (fresh[0] / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert begins(set_up(fresh, PYTHON=sys.executable)[2], STEPS)


@pytest.mark.parametrize("step", ["sync", "install"])
def test_an_interrupted_set_up_starts_clean_when_run_again(fresh, step):
    status, said, _ = set_up(fresh, PYTHON=sys.executable, FAIL=step)
    assert status == 1 and "not finished" in said
    left = fresh[0] / ".venv" / "left over"
    left.touch()
    status, _, steps = set_up(fresh, PYTHON=sys.executable)
    assert status == 0 and begins(steps, STEPS) and not left.exists()


def test_cuda_is_asked_for_once_and_dropped_on_request(fresh):
    command(fresh[1] / "uname", "echo Linux")
    for variables, present in [({"CUDA": "13"}, True), ({}, True), ({"CUDA": ""}, False), ({}, False)]:
        shutil.rmtree(fresh[0] / ".venv", ignore_errors=True)
        status, _, steps = set_up(fresh, PYTHON=sys.executable, **variables)
        assert status == 0 and ("requirements-cuda13.lock" in steps[2]) == present
    status, said, steps = set_up(fresh, PYTHON=sys.executable, CUDA="12")
    assert status == 1 and not steps and "CUDA=12 is not offered" in said


# Continuous integration, imports, annotations


def test_continuous_integration_runs_lint_and_then_the_tests(root, tmp_path):
    command(tmp_path / "make", f'echo "$@" >>{tmp_path}/asked; [ "$1" != "$FAIL" ]')
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    for failing, asked in [("", ["lint", "test"]), ("test", ["lint", "test"]), ("lint", ["lint"])]:
        status = subprocess.run(["bash", root / ".ci" / "run"], env=environment | {"FAIL": failing}).returncode
        assert (status != 0) == bool(failing)
        assert (tmp_path / "asked").read_text().split() == asked
        (tmp_path / "asked").unlink()


@pytest.mark.parametrize("module", ["workbench", "workbench.config", "workbench.pattern", "workbench.count"])
def test_questions_about_sizes_never_wait_for_jax(module):
    script = f"import sys, {module}; sys.exit(str(sorted({{'jax', 'flax', 'optax'}} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_annotations_are_checked_under_test():
    from jaxtyping import TypeCheckError

    from workbench import pattern

    with pytest.raises(TypeCheckError):
        pattern.parse(3)


def test_commit_hooks_need_no_network(root):
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    assert [source["repo"] for source in hooks] == ["local"]
    assert all(hook["language"] == "system" for hook in hooks[0]["hooks"])
