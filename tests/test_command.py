import json
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import __version__
from workbench.command import main

COMMANDS = (
    "run", "report", "status", "seeds", "diff", "verify", "sizes", "plan", "evaluate", "speed", "generate", "serve",
    "extend", "branch", "estimate", "check",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text and f"  workbench {command} " in text


def test_help_answers_without_jax_or_notebook_machinery():
    code = (
        "import sys\nfrom workbench.command import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('jax', 'numpy', 'papermill', 'nbformat', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"workbench {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "experiments/nothing.py"], "nothing.py is not there"),
        (["report", "runs/nothing"], "holds no runs"),
        (["evaluate", "entries=3"], "no run folder given"),
        (["evaluate", "runs/nothing"], "has no checkpoints"),
        (["check", "nothing.py"], "nothing.py is not there"),
    ],
    ids=["file", "study", "no run", "run", "layer"],
)
def test_bad_input_is_one_clean_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"workbench {arguments[0]}: ") and message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("rate", ["nan", "inf", "0", "-0.001"])
def test_a_learning_rate_that_cannot_be_is_refused(capsys, root, rate):
    assert main(["run", str(root / "experiments" / "waleffe_8b.py"), f"optimizer.learning_rate={rate}"]) == 2
    assert "it must be a positive number" in capsys.readouterr().err


def test_an_unknown_override_is_refused_with_the_nearest(capsys, root):
    assert main(["run", str(root / "experiments" / "waleffe_8b.py"), "optimizer.learning_rat=3e-3"]) == 2
    assert "did you mean 'learning_rate'" in capsys.readouterr().err


def test_overrides_may_stand_before_and_after_options(capsys, root):
    tables = []
    for words in (
        ["model.width=32", "--scale", "tiny"],
        ["--scale", "tiny", "model.width=32"],
        ["--tiny", "model.width=32"],
    ):
        assert main(["sizes", str(root / "experiments" / "text.py"), *words]) == 0
        tables.append(capsys.readouterr().out)
    assert len(set(tables)) == 1 and "20.58 k" in tables[0]
    with pytest.raises(SystemExit):
        main(["sizes", str(root / "experiments" / "text.py"), "--scales", "tiny", "model.width=32"])
    assert "unrecognized arguments: --scales tiny model.width=32" in capsys.readouterr().err


def test_sizes_prints_a_table_and_with_json_a_list_of_objects(capsys, root):
    path = str(root / "experiments" / "waleffe_8b.py")
    assert main(["sizes", path, "--json", "--context", "1024"]) == 0
    rows = json.loads(capsys.readouterr().out)
    fields = {"name", "pattern", "parameters", "non_embedding_parameters", "train_flops_per_token", "state_bytes"}
    assert all(fields <= row.keys() and row["context"] == 1024 for row in rows)
    assert main(["sizes", path]) == 0
    table = capsys.readouterr().out
    assert all(row["name"] in table for row in rows)


MIXER = """
from dataclasses import dataclass
from workbench.config import MLPConfig

@dataclass(frozen=True)
class Mine(MLPConfig):
    hidden: int | None = 8

@dataclass(frozen=True)
class NoLayer:
    size: int = 1
"""


@pytest.mark.slow
def test_check_says_of_each_promise_whether_it_holds(tmp_path, capsys):
    (tmp_path / "mixer.py").write_text(MIXER)
    assert main(["check", str(tmp_path / "mixer.py")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Mine" and len(lines) > 3
    assert all(line.startswith("  holds") for line in lines[1:])


def test_a_layer_without_defaults_is_refused_naming_the_fields(tmp_path, capsys):
    (tmp_path / "mixer.py").write_text(
        MIXER.replace("hidden: int | None = 8", "scale: float = field(kw_only=True)").replace(
            "import dataclass", "import dataclass, field"
        )
    )
    assert main(["check", str(tmp_path / "mixer.py")]) == 2
    assert "Mine cannot be made without scale; give every field a default" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_one_clean_line(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").mkdir()
    assert main(["report", str(tmp_path / "study")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_file_without_a_layer_is_refused(tmp_path, capsys):
    (tmp_path / "nolayer.py").write_text("x = 1\n")
    assert main(["check", str(tmp_path / "nolayer.py")]) == 2
    assert "defines no layer config" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m workbench.command sizes experiments/phonebook.py --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.startswith("[") and done.stderr == ""
