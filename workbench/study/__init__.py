"""Studies: an experiment file is run by papermill notebooks, collected from its folders, tested, drawn and reported."""


def run(path, **options):
    """`workbench run` from a notebook cell: `study.run("experiments/phonebook.py", overrides=["steps=200"])`.

    Options are those of workbench.study.execute.run, which this imports when it is called.
    """
    from workbench.study.execute import run

    return run(path, **options)
