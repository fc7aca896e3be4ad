from dataclasses import replace

import pytest

from workbench.config import AttentionConfig, load_file
from workbench.devices import DEVICES, device
from workbench.speed.predict import crossover, decode, predict, prompt

H100 = DEVICES["h100"]


@pytest.fixture
def paper(root):
    return load_file(root / "experiments" / "waleffe_8b.py").models()


def grouped(model):
    """The Transformer with eight heads of keys and values, as the hybrid has."""
    return replace(model, symbols=dict(model.symbols) | {"*": replace(model.symbols["*"], kv_heads=8)})


@pytest.mark.parametrize(
    "context, full, few",
    [(4, 3.3, 1.3), (16, 9.0, 2.7), (32, 13.8, 3.8), (128, 24, 6.1), (1024, 30.7, 7.7)],
)
def test_the_hybrids_speed_up_is_the_studys_arithmetic(paper, context, full, few):
    """At a batch of 32, by bytes moved: attention with every head's keys, and with eight heads'.

    Two digits are given, convolution windows are not in them, and the eight heads keep the weights of all.
    """
    full_step, few_step, hybrid = (
        decode(model, H100, batch=32, context=1024 * context)
        for model in (paper["transformer"], grouped(paper["transformer"]), paper["hybrid"])
    )
    assert full_step.bound == few_step.bound == hybrid.bound == "memory"
    moved = lambda step: full_step.weight_bytes + step.read_bytes + step.written_bytes  # noqa: E731
    bytes_of_hybrid = hybrid.seconds * H100.bandwidth
    assert moved(full_step) / bytes_of_hybrid == pytest.approx(full, abs=0.06)
    assert moved(few_step) / bytes_of_hybrid == pytest.approx(few, abs=0.06)


def test_the_speed_up_tends_to_the_ratio_of_attention_layers(paper):
    step = lambda model: decode(model, H100, batch=32, context=10**9).seconds  # noqa: E731
    assert step(grouped(paper["transformer"])) / step(paper["hybrid"]) == pytest.approx(32 / 4, rel=1e-3)


def test_at_batch_one_and_128k_the_weights_decide(paper):
    step = lambda model: decode(model, H100, batch=1, context=131_072).seconds  # noqa: E731
    assert step(grouped(paper["transformer"])) / step(paper["hybrid"]) == pytest.approx(1.7, abs=0.2)


def test_a_recurrent_models_step_costs_the_same_at_any_context(paper):
    costs = {decode(paper["mamba2"], H100, batch=8, context=context) for context in (1, 4096, 10**6)}
    assert len(costs) == 1


def test_a_window_bounds_what_a_step_reads(paper):
    model = replace(paper["transformer"], symbols={"*": AttentionConfig(heads=32, window=1024)})
    near, far = (decode(model, H100, batch=8, context=context) for context in (1024, 10**6))
    assert near == far


def test_a_generation_is_its_prompt_and_its_steps(paper):
    for name, tokens in (("transformer", 130), ("mamba", 5), ("hybrid", 1)):
        found = predict(paper[name], H100, batch=4, prompt_tokens=3000, tokens=tokens)
        steps = [decode(paper[name], H100, batch=4, context=3000 + i).seconds for i in range(tokens)]
        whole = prompt(paper[name], H100, batch=4, tokens=3000) + sum(steps)
        assert found.seconds == pytest.approx(whole, rel=1e-9)
        assert (found.first, found.last) == (steps[0], steps[-1])
        assert found.tokens_per_second == pytest.approx(4 * tokens / whole)


def test_a_crossing_is_where_the_order_changes(paper):
    for of, less in (
        ("time", lambda model, context: decode(model, H100, batch=32, context=context).seconds),
        ("memory", lambda model, context: sum(decode(model, H100, batch=32, context=context)[1:3])),
    ):
        at = crossover(paper["hybrid"], paper["transformer"], H100, batch=32, of=of)
        assert at > 1
        assert less(paper["hybrid"], at) < less(paper["transformer"], at)
        assert less(paper["hybrid"], at - 1) >= less(paper["transformer"], at - 1)
    assert crossover(paper["transformer"], paper["hybrid"], H100, batch=32) is None


def test_devices_are_as_many_as_hold_weights_and_states(paper):
    few = predict(paper["transformer"], H100, batch=1, prompt_tokens=1000, tokens=10)
    many = predict(paper["transformer"], H100, batch=256, prompt_tokens=4000, tokens=10)
    assert few.devices == 1 and few.memory_bytes < 20e9
    assert many.devices == -(-many.memory_bytes // H100.memory_bytes) > 1


def test_what_has_no_meaning_is_refused(paper):
    with pytest.raises(ValueError, match="batch is at least 1; got 0"):
        predict(paper["mamba"], H100, batch=0, prompt_tokens=1, tokens=1)
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        device("h10")
