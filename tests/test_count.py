import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    PhonebookConfig,
    PhonebookEvaluation,
    RunConfig,
    load_file,
)
from workbench.count import Operation, count, mean_context, operations
from workbench.match import match
from workbench.study import sizes

PAPER = load_file(Path(__file__).parent.parent / "experiments" / "waleffe_8b.py").models()
D, V = 4096, 256_000

# ---- the paper's four


def transformer_8b():
    """32 attention layers (q, k, v, o), 32 MLPs (in, out), 65 norms with scale and bias, embedding and head."""
    return 32 * 4 * D * D + 32 * 2 * D * 4 * D + 65 * 2 * D + 2 * V * D


def mamba2_layer():
    """in -> [z 8192 | x 8192 | B 1024 | C 1024 | dt 128]; conv of 4 and bias; A, D, dt bias; gated norm; out; norm."""
    return D * (8192 + 8192 + 1024 + 1024 + 128) + (8192 + 2048) * 5 + 3 * 128 + 8192 + 8192 * D + D


def mamba_8b():
    """in; conv and bias; x -> [dt 256 | B 128 | C 128]; dt and bias; A; D; out; norm."""
    layer = D * 16384 + 8192 * 5 + 8192 * 512 + 256 * 8192 + 8192 + 8192 * 128 + 8192 + 8192 * D + D
    return 56 * layer + D + 2 * V * D


def hybrid_8b():
    """24 Mamba-2, 4 attention with 8 key-value heads of 128, 28 MLPs."""
    attention = D * D + 2 * D * 1024 + D * D + D
    return 24 * mamba2_layer() + 4 * attention + 28 * (2 * D * 16384 + D) + D + 2 * V * D


@pytest.mark.parametrize(
    ("arm", "billions", "exact"),
    [
        ("transformer", "8.540", transformer_8b()),
        ("mamba", "8.149", mamba_8b()),
        ("mamba2", "8.237", 56 * mamba2_layer() + D + 2 * V * D),
        ("hybrid", "8.655", hybrid_8b()),
    ],
)
def test_the_papers_models_have_the_papers_parameters(arm, billions, exact):
    counted = count(PAPER[arm])
    assert counted.parameters == exact
    assert f"{counted.parameters / 1e9:.3f}" == billions
    assert counted.non_embedding_parameters == exact - 2 * V * D


def test_the_papers_hybrid_is_the_papers_string():
    assert PAPER["hybrid"].pattern == "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"


@pytest.mark.parametrize(("arm", "bytes_a_token"), [("transformer", 524_288), ("mamba", 0), ("hybrid", 16_384)])
def test_each_token_of_context_adds_the_papers_cache_bytes(arm, bytes_a_token):
    """Two bytes for each key and value: 32 layers of 4096, none, 4 layers of 1024."""
    assert count(PAPER[arm], 4097).state_bytes - count(PAPER[arm], 4096).state_bytes == bytes_a_token


def test_recurrent_state_is_float32_and_convolution_windows_are_in_the_compute_dtype():
    without_cache = count(PAPER["hybrid"], 4096).state_bytes - 4096 * 16_384
    assert without_cache == 96 * 2**20 + 24 * 3 * (8192 + 2 * 8 * 128) * 2


# ---- FLOPs


def test_flops_of_a_transformer_by_hand():
    """Width 8, 2 heads, hidden 32, vocabulary 10, context 5: 2 FLOPs a multiply-add, at a mean context of 3."""
    config = ModelConfig("*-", 8, 10, {"*": AttentionConfig(heads=2)})
    matrices = 8 * 24 + 8 * 8 + 2 * 8 * 32 + 8 * 10
    counted = count(config, context=5)
    assert counted.train_flops_per_token == 3 * 2 * (matrices + 2 * 8 * 3)
    assert counted.decode_flops_per_token == 2 * (matrices + 2 * 8 * 5)


def test_operations_sum_to_the_counted_flops():
    config = PAPER["hybrid"]
    assert sum(o.flops for o in operations(config, 1000)) == count(config, 1000).decode_flops_per_token
    assert 3 * sum(o.flops for o in operations(config, 1000, mean=True)) == count(config, 1000).train_flops_per_token
    assert operations(config)[-1] == Operation("head", 1, V, D, 1)


def test_a_matrix_costs_two_flops_a_parameter():
    """Without attention, convolution and recurrence nothing else is left."""
    config = ModelConfig("--", 16, 24, {"-": MLPConfig(activation="swiglu")})
    counted = count(config)
    norms, embedding = 3 * 16, 16 * 24
    assert counted.decode_flops_per_token == 2 * (counted.parameters - norms - embedding)


@pytest.mark.parametrize(("window", "context"), [(None, 7), (3, 7), (7, 7), (9, 7), (1, 4), (3, 1)])
def test_mean_context_is_the_mean_over_positions(window, context):
    seen = [min(position, window or position) for position in range(1, context + 1)]
    assert mean_context(AttentionConfig(window=window), context) == pytest.approx(sum(seen) / context, abs=1e-12)


def test_a_window_bounds_decoding_flops_and_state():
    config = ModelConfig("*", 8, 10, {"*": AttentionConfig(window=4)})
    assert dataclasses.replace(count(config, 100), context=4) == dataclasses.replace(
        count(config, 4), train_flops_per_token=count(config, 100).train_flops_per_token
    )


def test_a_tied_head_has_no_parameters_of_its_own_and_costs_the_same_flops():
    apart = count(ModelConfig("M", 64, 100))
    tied = count(ModelConfig("M", 64, 100, tied=True))
    assert apart.parameters - tied.parameters == 6400
    assert apart.non_embedding_parameters == tied.non_embedding_parameters
    assert apart.train_flops_per_token == tied.train_flops_per_token


def test_a_repetition_counts_like_the_layers_written_out():
    assert count(ModelConfig("(M-)x3", 64, 100)) == count(ModelConfig("M-M-M-", 64, 100))


def test_a_context_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        count(ModelConfig("M", 64, 100), 0)


def test_counting_needs_no_jax():
    code = (
        "import sys, workbench.match, workbench.study.sizes; from workbench.config import ModelConfig;"
        "workbench.match.match(ModelConfig('*-', 64, 10), parameters=40000);"
        "print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


# ---- against the model built

BUILT = {
    "mamba2": ModelConfig("MM", 32, 11, {"M": Mamba2Config(state=16, head_dim=16)}),
    "mamba2, groups, inner, conv": ModelConfig(
        "M", 32, 11, {"M": Mamba2Config(state=8, head_dim=8, groups=2, inner=48, conv=3)}
    ),
    "mamba": ModelConfig("SS", 24, 11, {"S": MambaConfig(state=8)}),
    "mamba, rank, inner, conv": ModelConfig("S", 24, 11, {"S": MambaConfig(state=4, inner=40, conv=2, dt_rank=5)}),
    "attention and gelu": ModelConfig("*-", 32, 11),
    "attention, kv_heads, head_dim, conv": ModelConfig(
        "*", 32, 11, {"*": AttentionConfig(heads=4, kv_heads=2, head_dim=6, rotary=0.0, conv=3, window=5)}
    ),
    "swiglu": ModelConfig("-", 32, 11, {"-": MLPConfig(hidden=24, activation="swiglu")}),
    "squared_relu": ModelConfig("-", 32, 11, {"-": MLPConfig(activation="squared_relu")}),
    "tied": ModelConfig("*", 32, 11, tied=True),
    "layernorm1p": ModelConfig("*-*-", 32, 11, norm="layernorm1p"),
    "hybrid, all at once": ModelConfig(
        "M-S*W-",
        32,
        11,
        {
            "M": Mamba2Config(state=16, head_dim=16, groups=2),
            "W": AttentionConfig(kv_heads=1, window=3),
            "-": MLPConfig(activation="swiglu"),
        },
        norm="layernorm1p",
        tied=True,
        dtype="bfloat16",
    ),
}


@pytest.mark.parametrize("name", BUILT)
def test_parameters_agree_with_the_model_built(name):
    import jax

    from workbench.model.language_model import create

    shapes = jax.eval_shape(lambda: create(BUILT[name], 0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count(BUILT[name]).parameters


@pytest.mark.parametrize("name", BUILT)
def test_state_bytes_agree_with_the_state_built(name):
    """No longer than any window here: a built cache keeps every key, a count only those still seen.

    The model's state holds row lengths and segment ids besides, which are integers and not counted.
    """
    import jax
    import jax.numpy as jnp

    from workbench.model.language_model import create

    capacity = 3
    state = jax.eval_shape(lambda: create(BUILT[name], 0).initial_state(1, capacity))
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) == count(BUILT[name], capacity).state_bytes


# ---- matching


@pytest.mark.parametrize("arm", PAPER)
@pytest.mark.parametrize("measure", ["parameters", "non_embedding_parameters", "flops"])
def test_the_papers_models_are_matched_within_a_percent(arm, measure):
    target = {"parameters": 8.4e9, "non_embedding_parameters": 6.3e9, "flops": 4.6e10}[measure]
    found = match(PAPER[arm], **{measure: target})
    assert found.within
    assert found.config.width == 4096
    counted = count(found.config)
    achieved = counted.train_flops_per_token if measure == "flops" else getattr(counted, measure)
    assert achieved == found.achieved
    assert abs(achieved - target) <= 0.01 * target


def test_the_mlp_changes_first_and_alone_where_it_is_enough():
    found = match(PAPER["hybrid"], parameters=8.2e9)
    hidden = found.config.symbols["-"].hidden
    assert hidden % 8 == 0
    assert found.changed == (f"symbols.-.hidden: 16384 -> {hidden}",)


def test_depth_changes_in_whole_periods_with_the_mlp_making_up_the_rest():
    found = match(ModelConfig("*-*-", 64, 10), non_embedding_parameters=300_000)
    assert found.within
    assert found.config.pattern == "*-" * 6
    assert found.config.width == 64


def test_inner_width_keeps_heads_and_groups_whole():
    def arm(inner):
        return ModelConfig("MMM*MM", 64, 10, {"M": Mamba2Config(state=16, head_dim=16, groups=2, inner=inner)})

    found = match(arm(None), non_embedding_parameters=count(arm(192)).non_embedding_parameters * 0.995)
    assert found.config == arm(192)
    assert found.changed == ("symbols.M.inner: None -> 192",)
    missed = match(arm(None), non_embedding_parameters=count(arm(224)).non_embedding_parameters * 1.07)
    assert missed.config.symbols["M"].inner % 32 == 0


def test_width_changes_only_if_asked_and_keeps_heads_whole():
    arm = ModelConfig("**", 48, 10, {"*": AttentionConfig(heads=6)})
    fixed = match(arm, parameters=400_000)
    assert fixed.config.width == 48
    assert not match(arm, parameters=10).within
    free = match(dataclasses.replace(arm, pattern="*-"), parameters=8e6, width=True, tolerance=0.05)
    assert free.within
    assert free.config.width % 24 == 0


def test_a_miss_says_how_close_it_came_and_what_it_changed():
    found = match(ModelConfig("*-*-", 64, 10), parameters=10)
    assert not found.within
    assert found.achieved == count(found.config).parameters > 10
    assert "outside 1.0%" in str(found)
    assert "pattern: '*-*-' -> '*-'" in str(found)


def test_a_target_already_met_changes_nothing():
    arm = PAPER["mamba"]
    found = match(arm, parameters=8.15e9)
    assert found.config == arm
    assert found.changed == ()


@pytest.mark.parametrize(("arm", "factor"), [("hybrid", 4), ("mamba", 4), ("transformer", 1 / 8)])
def test_state_is_matched_by_state_size_or_key_value_heads(arm, factor):
    before = count(PAPER[arm]).state_bytes
    found = match(PAPER[arm], state_bytes=before * factor)
    assert found.within
    assert count(found.config).state_bytes == found.achieved
    assert found.config.pattern == PAPER[arm].pattern
    assert all("state" in change or "kv_heads" in change for change in found.changed)


def test_state_then_parameters_are_matched_one_after_the_other():
    """The MLP holds no state, so the second match keeps the first."""
    found = match(match(PAPER["hybrid"], state_bytes=3e8).config, parameters=8.4e9)
    assert found.within
    assert count(found.config).state_bytes == pytest.approx(3e8, rel=0.01)


def test_a_window_that_is_there_is_resized_and_none_is_put_in():
    arm = ModelConfig("*-", 64, 10, {"*": AttentionConfig(heads=1, window=100)})
    assert match(arm, state_bytes=count(arm).state_bytes * 0.77).config.symbols["*"].window == 77
    full = ModelConfig("*-", 64, 10, {"*": AttentionConfig(heads=1)})
    assert not match(full, state_bytes=1000).within


def test_a_model_without_state_cannot_be_matched_by_state():
    with pytest.raises(ValueError, match="no layer whose state_bytes"):
        match(ModelConfig("--", 64, 10), state_bytes=1000)


@pytest.mark.parametrize("targets", [{}, {"parameters": 1e6, "flops": 1e6}, {"parameters": 0}])
def test_match_needs_one_target_above_zero(targets):
    with pytest.raises(ValueError, match=r"one target|above 0"):
        match(ModelConfig("*-", 64, 10), **targets)


@dataclass(frozen=True)
class Gate:
    """A user's own layer: width * hidden twice, and no state."""

    hidden: int = 32

    def build(self, width, make):
        raise NotImplementedError

    def parameters(self, width):
        return 2 * width * self.hidden

    def operations(self, width, context):
        return [Operation("gate", 1, width, self.hidden, 2)]

    def state_bytes(self, width, context, element_bytes):
        return 0


def test_a_users_own_layer_is_counted_and_matched_by_its_own_word():
    arm = ModelConfig("GG", 16, 10, {"G": Gate()})
    assert count(arm).non_embedding_parameters == 2 * 2 * 16 * 32 + 3 * 16
    found = match(arm, non_embedding_parameters=2 * 2 * 16 * 48 + 3 * 16)
    assert found.config.symbols["G"] == Gate(hidden=48)
    assert found.error == 0


# ---- sizes


def run_of(arm, data=None, **model):
    model = ModelConfig(**{"pattern": "*-", "width": 64, "vocabulary": 300} | model)
    return RunConfig("study", arm, model, data or PhonebookConfig(), PhonebookEvaluation())


def test_sizes_has_one_row_for_each_distinct_arm():
    from workbench.config import TextConfig

    arms = [run_of("a"), dataclasses.replace(run_of("a"), seed=1), run_of("b", pattern="M")]
    assert [row["name"] for row in sizes.rows(arms)] == ["a", "b"]
    both = [*arms, run_of("a", TextConfig(), vocabulary=257)]
    assert [row["name"] for row in sizes.rows(both)] == ["a (phonebook)", "a (text)", "b"]


def test_sizes_are_the_counts_at_the_context_asked_for():
    [row] = sizes.rows([run_of("a")], context=100)
    counted = count(run_of("a").model, 100)
    assert row == {
        "name": "a",
        "pattern": "*-",
        "context": 100,
        "parameters": counted.parameters,
        "non_embedding_parameters": counted.non_embedding_parameters,
        "train_flops_per_token": counted.train_flops_per_token,
        "decode_flops_per_token": counted.decode_flops_per_token,
        "state_bytes": counted.state_bytes,
    }


def test_the_table_of_the_papers_models_prints_the_papers_digits():
    study = load_file(Path(__file__).parent.parent / "experiments" / "waleffe_8b.py")
    lines = sizes.table(sizes.rows(study.runs())).splitlines()
    for arm, billions in (("transformer", "8.540"), ("mamba", "8.149"), ("mamba2", "8.237"), ("hybrid", "8.655")):
        [line] = [line for line in lines if line.split()[0] == arm]
        assert line.split()[1:3] == [billions, "B"]
    assert lines[2].index("(*-)x32") == lines[0].index("pattern")


@pytest.mark.parametrize(
    ("value", "decimal", "binary"),
    [(5, "5", "5 B"), (1000, "1.000 k", "1000 B"), (999_960, "1.000 M", "976.5 KiB"), (2**31, "2.147 B", "2.000 GiB")],
)
def test_amounts_have_four_digits(value, decimal, binary):
    assert sizes.decimal(value) == decimal
    assert sizes.binary(value) == binary
