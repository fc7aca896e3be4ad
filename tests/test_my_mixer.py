import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from workbench.command import main
from workbench.config import ModelConfig, OptimizerConfig, PhonebookConfig, RunConfig, from_json, load_file, to_json
from workbench.count import count


@pytest.fixture(scope="module")
def path(request):
    return request.config.rootpath / "experiments" / "my_mixer.py"


@pytest.fixture(scope="module")
def mine(path):
    return load_file(path)


@pytest.fixture
def run(mine):
    """A few steps of a small model of the mixer."""
    data = PhonebookConfig(names=8, entries=(2,), length=36, batch=4)
    return RunConfig(
        study="my_mixer",
        arm="my_mixer",
        model=ModelConfig("XX", width=16, vocabulary=20, symbols={"X": mine.MyMixerConfig(inner=24)}),
        data=data,
        evaluation=None,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=0.1),
        steps=20,
    )


def test_a_mixer_of_ones_own_takes_fewer_than_60_lines(path):
    assert len(path.read_text().splitlines()) < 60


def test_the_example_mixer_holds_every_promise(path, capsys):
    assert main(["check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "MyMixerConfig"
    assert len(lines) > 8 and all(line.startswith("  holds ") for line in lines[1:])


def test_its_flops_are_those_of_its_matrices_and_its_recurrence(mine):
    flops = sum(operation.flops for operation in mine.MyMixerConfig(inner=24).operations(16, 100.0))
    assert flops == 2 * (16 * 72 + 24 * 16 + 2 * 24)


def test_a_run_of_it_comes_back_from_json_with_its_file(run, path):
    text = json.dumps(to_json(run))
    assert "my_mixer.py" in text and json.loads(text)["model"]["symbols"]["X"]["sha256"]
    back = from_json(json.loads(text))
    assert back == run and back.name == run.name


def test_it_learns_in_a_few_steps(run):
    from workbench.model.language_model import create
    from workbench.train.loss import loss
    from workbench.train.optimizer import optimizer

    update = optimizer(run.optimizer, run.steps)
    batch = jax.tree.map(jnp.asarray, run.data.stream("train").batch(0))

    @jax.jit
    def step(model, state):
        def mean(model):
            total, metrics = loss(model, batch)
            return total / metrics["weight"]

        value, gradient = jax.value_and_grad(mean)(model)
        change, state = update.update(gradient, state, model)
        return jax.tree.map(lambda p, c: p + c, model, change), state, value

    model = create(run.model, 0)
    state = update.init(model)
    losses = []
    for _ in range(run.steps):
        model, state, value = step(model, state)
        losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0]


def test_it_joins_the_phonebook_study_at_the_transformers_size(mine, path):
    others = load_file(path.with_name("phonebook.py")).runs("demo")
    joined = mine.runs("demo")
    transformers = {(type(r.data), r.seed, r.role): r for r in others if r.arm == "transformer"}
    own = {(type(r.data), r.seed, r.role): r for r in joined if r.arm == "my_mixer"}
    assert own.keys() == transformers.keys() and len(joined) == len(others) + len(own)
    for place, run in own.items():
        theirs = transformers[place]
        assert (run.data, run.evaluation, run.steps) == (theirs.data, theirs.evaluation, theirs.steps)
        assert replace(run.optimizer, learning_rate=1.0) == replace(theirs.optimizer, learning_rate=1.0)
        size, wanted = (count(r.model).parameters for r in (run, theirs))
        assert abs(size - wanted) <= 0.01 * wanted
    assert {r.arm for r in joined} == {r.arm for r in others} | {"my_mixer"}


def test_it_is_tuned_on_the_grid_of_the_others(mine, path):
    from workbench.study.tune import check_grid

    tuning = mine.tuning("demo")
    check_grid(tuning)
    assert {run.arm for run in tuning} == {run.arm for run in mine.runs("demo")}
    assert {run.role for run in tuning} == {"tuning"}


def test_an_arm_joins_with_its_own_rates_beside_one_that_is_there(mine, path):
    from workbench.study.join import join

    study, symbols = path.with_name("phonebook.py"), {"X": mine.MyMixerConfig()}
    rates = {
        (run.arm, type(run.data).__name__): run.optimizer.learning_rate
        for run in join(study, "mine", "XXXX", symbols, rates={"phonebook": 0.5}).runs("demo")
    }
    assert rates["mine", "PhonebookConfig"] == 0.5
    assert rates["mine", "TextConfig"] == rates["transformer", "TextConfig"]
    with pytest.raises(ValueError, match="no arm 'transfromer'; did you mean 'transformer'"):
        join(study, "mine", "XXXX", symbols, like="transfromer").runs()
    with pytest.raises(ValueError, match="no task 'phonebok' for a rate; did you mean 'phonebook'"):
        join(study, "mine", "XXXX", symbols, rates={"phonebok": 0.5}).runs()


def test_an_arm_whose_size_cannot_be_matched_does_not_join(path):
    from workbench.config import AttentionConfig
    from workbench.study.join import join

    wide = {"W": AttentionConfig(heads=64, head_dim=64)}
    with pytest.raises(ValueError, match=r"mine cannot stand beside transformer: parameters .* outside 1.0%"):
        join(path.with_name("phonebook.py"), "mine", "W", wide).runs()
