"""A study on wandb's own pages, as code: a saved workspace and a report (wandb-workspaces, the extra dashboard).

Both are made from the study's folder alone and show the runs of its group, arms in the colours of its figures. What is
not pushed is still checked: both are turned into what would be sent, and read back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.record import write_json
from workbench.study import answer, panels, tables, wording
from workbench.study.collect import Study, collect
from workbench.train.track import PROJECT

CURVES = ("loss", "gradient_norm", "learning_rate")
SHOWN = ("result", "control")  # roles of the runs that are drawn


def group(study: Study) -> str:
    """wandb's group of the study's runs. Raises ValueError for a study without runs to show."""
    shown = study.select(*SHOWN)
    if not shown:
        raise ValueError(f"{study.folder} has no run to show; run the experiment first")
    return shown[0].config["study"]


def measured(study: Study) -> list[str]:
    """What the runs logged on the select split, in the order in which it comes."""
    names = (name for run in study.select(*SHOWN) for row in run.metrics for name in row)
    return [name for name in dict.fromkeys(names) if name.startswith("select/")]


def workspace(study: Study, entity: str) -> Any:
    """A saved view of the project: this study's runs grouped by arm, what was measured and how training went."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    colours = {arm: style.colour for arm, style in panels.styles(study).items() if arm in study.arms(*SHOWN)}
    return ws.Workspace(
        entity=entity,
        project=PROJECT,
        name=f"study {group(study)}",
        sections=[
            ws.Section(name="Select split", panels=_curves(measured(study)), is_open=True, pinned=True),
            ws.Section(name="Training", panels=_curves(CURVES), is_open=True),
        ],
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=max(10, len(study.select(*SHOWN)))),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == group(study), expr.Metric("JobType").isin(list(SHOWN))),
            groupby=[expr.Config("arm")],
            group_colors=colours,
            pinned_columns=["config:arm", "config:seed", "summary:final_loss", "summary:digest"],
        ),
    )


def written(study: Study, entity: str) -> Any:
    """A report: question, answer, tables, curves and the study's own figures."""
    import wandb_workspaces.reports.v2 as wr

    found = group(study)
    drawn = [f"figures/{path.stem}" for path in sorted((study.folder / "figures").glob("*.png"))]
    runs = f"Group = '{found}' and JobType in ['result', 'control']"
    blocks = [
        wr.P(wording.question(study)),
        wr.H2("Answer"),
        wr.P(answer.first_line(study)),
        wr.UnorderedList(items=answer.headline(study)),
        wr.MarkdownBlock(text=tables.pasted(study, "markdown")),
        wr.H2("Curves"),
        wr.PanelGrid(
            runsets=[wr.Runset(entity=entity, project=PROJECT, name=found, filters=runs, groupby=["config.arm"])],
            panels=_curves([*measured(study), *CURVES]),
        ),
    ]
    if drawn:
        page = f"Group = '{found}' and JobType = 'report'"
        blocks += [
            wr.H2("Figures"),
            wr.PanelGrid(
                runsets=[wr.Runset(entity=entity, project=PROJECT, name="report", filters=page)],
                panels=[wr.MediaBrowser(title=Path(key).name, media_keys=[key], num_columns=1) for key in drawn],
            ),
        ]
    return wr.Report(
        project=PROJECT, entity=entity, title=wording.title(study)[:128], description=f"Study {found}", blocks=blocks
    )


def _curves(names: Any) -> list[Any]:
    """A panel each: the mean of an arm's seeds against tokens, with the spread from the least to the greatest."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.LinePlot(
            title=name, x="tokens", y=[name], groupby=wr.Config("arm"), groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for name in names
    ]  # fmt: skip


def check(folder: str | Path) -> Path:
    """Writes dashboard.json into the study's folder: what would be sent, after it was read back unchanged.

    Needs no network. Raises ValueError if it would come back as something else.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    study = collect(folder)
    made = {"workspace": (ws.Workspace, workspace(study, "nobody")), "report": (wr.Report, written(study, ""))}
    sent = {}
    for name, (cls, page) in made.items():
        model = page._to_model()
        sent[name] = _plain(model)
        again = cls._from_model(type(model).model_validate(model.model_dump()))._to_model()
        if _without_ids(_plain(again)) != _without_ids(sent[name]):
            raise ValueError(f"wandb-workspaces reads the {name} back as another; another version of it may not")
    path = study.folder / "dashboard.json"
    write_json(path, sent)
    return path


def _plain(model: Any) -> Any:
    return json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))


def _without_ids(value: Any) -> Any:
    """Names that are drawn at random each time are left out."""
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key not in ("id", "__id__", "ref", "viewId")}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value


def push(folder: str | Path, entity: str = "") -> list[str]:
    """Saves the workspace and the report on wandb's server, and returns their addresses. Needs a login."""
    import wandb

    study = collect(folder)
    entity = entity or wandb.Api().default_entity
    pages = [workspace(study, entity), written(study, entity)]
    for page in pages:
        page.save()
    return [page.url for page in pages]
