import ast

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from workbench.study.notebook import check_parameters, parameters, run_notebook

NOTEBOOKS = ("train", "compare", "start", "inference", "inside_a_state", "phonebook", "long_context", "explore")


def written(path, *sources, tags=("parameters",)):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = list(tags)
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def declared(tmp_path):
    return written(tmp_path / "n.ipynb", 'name: str = "x"\nsteps: int = 1\nrate: float = 0.5\nshown: bool = True')


def test_parameters_are_read_with_their_types_and_defaults(declared):
    assert parameters(declared) == {
        "name": ("str", "x"),
        "steps": ("int", 1),
        "rate": ("float", 0.5),
        "shown": ("bool", True),
    }


def test_a_parameter_that_does_not_exist_is_refused_with_the_nearest(declared):
    with pytest.raises(ValueError, match="no parameter 'step'; did you mean 'steps'"):
        check_parameters(declared, {"step": 3})


@pytest.mark.parametrize(
    "given", [{"steps": "3"}, {"steps": True}, {"shown": "true"}, {"name": 3}, {"rate": "0.1"}, {"steps": 1.5}]
)
def test_a_parameter_of_another_type_is_refused(declared, given):
    (name,) = given
    with pytest.raises(ValueError, match=f"n.ipynb: {name} is "):
        check_parameters(declared, given)


def test_a_whole_number_will_do_for_a_float(declared):
    check_parameters(declared, {"rate": 1})


def test_wrong_parameters_are_refused_before_anything_starts(declared, tmp_path):
    with pytest.raises(ValueError, match="no parameter"):
        run_notebook(declared, tmp_path / "out.ipynb", {"seps": 3})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [("steps = 1", "write `name: type = default`"), ("steps: Path = 1", "has type Path; use one of")],
)
def test_a_parameter_without_a_known_type_is_refused(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        parameters(written(tmp_path / "n.ipynb", source))


def test_a_notebook_without_a_parameters_cell_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has 0 cells tagged `parameters`"):
        parameters(written(tmp_path / "n.ipynb", "steps: int = 1", tags=()))


def test_parameters_arrive_and_a_failing_cell_raises_with_the_notebook_kept(tmp_path):
    path = written(tmp_path / "n.ipynb", "steps: int = 1", "print(steps + 1)", "1 / 0")
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        run_notebook(path, tmp_path / "deep" / "out.ipynb", {"steps": 41})
    executed = nbformat.read(tmp_path / "deep" / "out.ipynb", as_version=4)
    assert any(out.get("text") == "42\n" for cell in executed.cells for out in cell.get("outputs", ()))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_thin_and_committed_without_outputs(root, name):
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    spec = notebook.metadata.kernelspec
    assert (spec.name, spec.display_name, spec.language) == ("python3", "Python 3 (ipykernel)", "python")
    assert parameters(root / "notebooks" / f"{name}.ipynb")
    assert notebook.cells[0].cell_type == "markdown"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            assert not [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_papermill_reads_every_parameter_too_and_warns_of_none(root, name):
    """It counts equals signs, so one in a comment costs two lines of warning a run."""
    path = root / "notebooks" / f"{name}.ipynb"
    assert list(papermill.inspect_notebook(str(path))) == list(parameters(path))
