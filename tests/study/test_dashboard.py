"""wandb's pages of a study: made from its folder, checked without a network; nothing here is sent."""

import json
import sys
from pathlib import Path

import pytest

from workbench.command import main
from workbench.config import load_file
from workbench.study import dashboard
from workbench.study.collect import collect
from workbench.study.panels import styles
from workbench.study.report import report

fake = load_file(Path(__file__).with_name("fake_study.py"))


@pytest.fixture
def study(tmp_path):
    folder = fake.write(tmp_path / "study", arms=("transformer", "hybrid"), seeds=(0, 1))
    report(folder)
    return folder


def found(value, name):
    """Everything that stands under a name, at any depth."""
    if isinstance(value, dict):
        return [v for key, item in value.items() for v in ([item] if key == name else found(item, name))]
    return [v for item in value for v in found(item, name)] if isinstance(value, list) else []


def test_what_would_be_sent_shows_the_studys_group_by_arm_in_its_colours(study, capsys):
    assert main(["dashboard", str(study)]) == 0
    path = study / "dashboard.json"
    assert capsys.readouterr().out == f"checked, not sent: {path}\n"
    sent = json.loads(path.read_text())
    text = json.dumps(sent["workspace"])
    assert '"phonebook"' in text and all(style.colour in text for style in styles(collect(study)).values())
    metrics = {name for names in found(sent["workspace"], "metrics") for name in names}
    assert {"loss", "select/phonebook/exact_match/8"} <= metrics
    pages = json.dumps(sent["report"])
    assert "Group" in pages and "figures/phonebook-recall" in pages
    assert "hybrid" in pages and "| arm |" in pages  # the sentences and the table to paste


def test_curves_are_means_of_an_arms_seeds_against_tokens(study):
    panels = [panel for section in dashboard.workspace(collect(study), "nobody").sections for panel in section.panels]
    assert len({panel.title for panel in panels}) == len(panels) == 3 + len(fake.ENTRIES)
    assert {(panel.x.name if hasattr(panel.x, "name") else panel.x, panel.groupby_aggfunc) for panel in panels} == {
        ("tokens", "mean")
    }


def test_pages_that_come_back_as_others_are_refused(study, monkeypatch):
    import wandb_workspaces.workspaces as ws

    real = ws.Workspace._from_model
    monkeypatch.setattr(ws.Workspace, "_from_model", classmethod(lambda cls, model: _renamed(real(model))))
    with pytest.raises(ValueError, match="reads the workspace back as another"):
        dashboard.check(study)


def _renamed(page):
    page.sections = page.sections[:1]
    return page


def test_a_folder_without_runs_is_refused(tmp_path):
    (tmp_path / "experiment.json").write_text('{"name": "small", "runs": [{"run": "a"}]}')
    with pytest.raises(ValueError, match="has no run to show"):
        dashboard.check(tmp_path)


def test_without_its_package_the_extra_is_named(study, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["dashboard", str(study)]) == 2
    assert "pip install 'architecture-workbench[dashboard]'" in capsys.readouterr().err
