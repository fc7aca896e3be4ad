import json

import pytest

from workbench.explore.folders import run_folders


@pytest.fixture
def study(tmp_path, monkeypatch):
    for name, arm in (
        ("text-one-s1-a", "one"),
        ("text-one-s2-b", "one"),
        ("text-two-s1-c", "two"),
        ("raw-s1-d", "raw"),
    ):
        folder = tmp_path / "runs" / "study" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"arm": arm}))
        if arm != "raw":
            (folder / "checkpoints").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_are_found_by_wildcards_from_the_root_and_from_notebooks(study, monkeypatch):
    one = run_folders("runs/study/text-*-s1-*")
    assert {name: folder.name for name, folder in one.items()} == {"one": "text-one-s1-a", "two": "text-two-s1-c"}
    monkeypatch.chdir(study / "notebooks")
    assert [each.resolve() for each in run_folders("runs/study/text-*-s1-*").values()] == [
        study / each for each in one.values()
    ]
    assert list(run_folders(str(study / "runs/study/text-two-*"))) == ["two"]


def test_runs_of_one_arm_are_told_apart_and_none_is_given_twice(study):
    found = run_folders(["runs/study/text-*", "runs/study/text-two*"])
    assert list(found) == ["text-one-s1-a", "text-one-s2-b", "two"]


def test_a_path_without_a_trained_run_says_how_to_make_one(study):
    with pytest.raises(ValueError, match=r"no trained run at runs/study/raw-\*; `make demo` makes"):
        run_folders("runs/study/raw-*")
