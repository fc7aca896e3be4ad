"""Steps planned for eight devices, which are simulated. Run as a program, it prints their plans."""

import json
import os
import subprocess
import sys

import pytest

from workbench.config import AttentionConfig, Layout, MLPConfig, ModelConfig, OptimizerConfig, RunConfig, TextConfig
from workbench.count import count

LAYOUTS = {
    "data": Layout(data=8),
    "parts": Layout(fsdp=8, micro=2, remat="all"),
    "2 x 2 x 2": Layout(data=2, fsdp=2, tensor=2),
    "sequence": Layout(sequence=8, remat="all"),
}
PLANNED = [  # length, layout
    *[(32, "data"), (32, "parts"), (64, "parts"), (32, "2 x 2 x 2")],
    *[(2048, "sequence"), (4096, "sequence"), (64, "2 x 2 x 2")],
]
CHUNK = 44  # of the last one's logits: two devices have 132 each


def config(length, layer="-"):
    symbols = {"-": MLPConfig(hidden=32), "*": AttentionConfig(heads=2)}
    model = ModelConfig(layer * 18, 16, 264, symbols)  # more layers than a CPU runs one by one
    return RunConfig("study", "arm", model, TextConfig(length=length, batch=16), None, OptimizerConfig(), steps=10)


@pytest.fixture(scope="module")
def plans():
    done = subprocess.run(
        [sys.executable, __file__], env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {(length, name): plan for length, name, plan in json.loads(done.stdout.splitlines()[-1])}


def test_the_arguments_are_what_a_device_holds_of_weights_optimizer_state_and_batch(plans):
    weights, norms = count(config(32).model).parameters, 19 * 16
    batch = 3 * 16 * 32 * 4 // 8  # no MLP reads the segments
    counters = 2 * 4
    assert plans[32, "data"]["argument_bytes"] == 3 * 4 * weights + batch + counters
    assert plans[32, "parts"]["argument_bytes"] == 3 * 4 * ((weights - norms) // 8 + norms) + batch + counters


@pytest.mark.parametrize("name", ["data", "2 x 2 x 2"])
def test_the_products_in_the_program_are_those_that_are_counted(plans, name):
    plan = plans[32, name]
    assert plan["compiled_flops"] == plan["flops"]


def test_logits_in_chunks_are_divided_over_the_devices_that_divide_the_head_and_made_once_more(plans):
    plan, model = plans[64, "2 x 2 x 2"], config(64).model
    assert plan["compiled_flops"] == plan["flops"] + plan["tokens"] * 2 * model.width * model.vocabulary


def test_layers_made_again_run_the_product_whose_result_the_gradient_needs_once_more(plans):
    """The first of an MLP's two: its last one's result is the next layer's to make."""
    plan, model = plans[32, "parts"], config(32).model
    again = 18 * 2 * model.width * model.symbols["-"].hidden
    assert plan["compiled_flops"] == plan["flops"] + plan["tokens"] * again


def test_copies_of_the_weights_send_their_gradient_once(plans):
    sent = plans[32, "data"]["sent"]
    gradient = 4 * count(config(32).model).parameters
    assert list(sent) == ["all-reduce"]
    assert 0 <= sent["all-reduce"]["within_bytes"] - 2 * 7 / 8 * gradient < 100  # and a few scalars


def test_rows_stay_on_their_devices(plans):
    """Of the tokens, their numbers go to the parts of the embedding, and its rows come back; no layer's go anywhere."""
    once, twice = (plans[length, "parts"]["sent"] for length in (32, 64))
    grown = {kind: twice[kind]["within_bytes"] - once[kind]["within_bytes"] for kind in once}
    tokens = 2 * 32  # of a device, that are more
    rows_and_gradients = 2 * 4 * tokens * 16
    expected = {"all-gather": 7 * 4 * tokens, "all-to-all": 7 / 8 * rows_and_gradients}
    assert grown == {kind: expected.get(kind, 0) for kind in once}


def test_attention_in_a_ring_holds_no_score_or_mask_of_all_visits(plans):
    """They would grow with the square of the length."""
    once, twice = (plans[length, "sequence"]["temporary_bytes"] for length in (2048, 4096))
    assert twice < 2 * once


if __name__ == "__main__":
    from workbench.study.plans import make, row
    from workbench.train import loss

    made = []
    for length, name in PLANNED:
        loss.CHUNK = CHUNK if (length, name) == PLANNED[-1] else loss.CHUNK
        run = config(length, "*" if name == "sequence" else "-")
        made.append((length, name, row(make([run], LAYOUTS[name], "cpu", 8)[0], 0.4)))
    print(json.dumps(made))
