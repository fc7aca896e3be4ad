"""The model card of an exported model: a README.md that says what is known of it, and nothing that is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench import __version__
from workbench.config import ModelConfig
from workbench.count import count

HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- {kind}
- architecture-workbench
---

# {title}

A language model of architecture `{kind}`, written by architecture-workbench {version}: one symbol of the pattern is one
residual layer (`M` Mamba-2, `S` Mamba, `*` attention, `-` MLP).

| | |
|---|---|
"""


def card(config: ModelConfig, kind: str, about: Mapping[str, Any]) -> str:
    """The card's text. about: a title as "title", then further rows by their names; None is left out."""
    counts = count(config)
    rows = {
        "pattern": f"`{config.pattern}`",
        "width": f"{config.width:,}",
        "vocabulary": f"{config.vocabulary:,}",
        "parameters": f"{counts.parameters:,}",
        "parameters without embeddings": f"{counts.non_embedding_parameters:,}",
        **{name: f"{value:,}" if isinstance(value, int) else value for name, value in about.items() if name != "title"},
    }
    head = HEAD.format(kind=kind, title=about.get("title", kind), version=__version__)
    return head + "".join(f"| {name} | {value} |\n" for name, value in rows.items() if value is not None)
