import dataclasses
import json
import re
import subprocess
import sys

import pytest

from workbench.config import (
    AttentionConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    Packages,
    Parent,
    PhonebookConfig,
    PhonebookEvaluation,
    RunConfig,
    TextConfig,
    TextEvaluation,
    differences,
    from_json,
    load_file,
    nearest,
    override,
    short_hash,
    to_json,
)
from workbench.count import count

MIXER = '''
"""A user's own layer."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.count import Operation


@dataclass(frozen=True)
class GateConfig:
    hidden: int = 32
    gain: float = 1.0

    def build(self, width, make):
        raise NotImplementedError

    def parameters(self, width):
        return 2 * width * self.hidden

    def operations(self, width, context):
        return [Operation("gate", 1, width, self.hidden, 2)]

    def state_bytes(self, width, context, element_bytes):
        return 0
'''


def a_run(**changes):
    run = RunConfig(
        study="study",
        arm="hybrid",
        model=ModelConfig("M-S*", 64, 100, {"*": AttentionConfig(heads=4, kv_heads=2)}),
        data=PhonebookConfig(),
        evaluation=PhonebookEvaluation(),
    )
    return dataclasses.replace(run, **changes)


def a_text_run():
    return RunConfig(
        "study",
        "mamba",
        ModelConfig("(S-)x2", 32, 257),
        TextConfig((Packages(("pip",)),), tokenizer="bytes"),
        TextEvaluation(),
        role="tuning",
    )


def through_json(value):
    return from_json(json.loads(json.dumps(to_json(value))))


@pytest.fixture
def mixer(tmp_path, monkeypatch):
    """A user's file in the folder that commands are run from; what was loaded is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_gate.py"
    path.write_text(MIXER)
    yield path
    forget()


def forget():
    """As in a new process: the user's file is not loaded."""
    for name in [name for name in sys.modules if "my_gate" in name]:
        del sys.modules[name]


# ---- JSON


@pytest.mark.parametrize("run", [a_run(), a_text_run()], ids=["phonebook", "text"])
def test_a_run_survives_json(run):
    again = through_json(run)
    assert again == run
    assert short_hash(again) == short_hash(run)
    assert again.name == run.name


def test_json_names_the_class_of_everything():
    written = to_json(a_run())
    assert written["class"] == "workbench.config:RunConfig"
    assert written["model"]["symbols"]["*"]["class"] == "workbench.config:AttentionConfig"
    assert "file" not in written["model"]


def test_an_unknown_field_in_json_is_refused_with_the_nearest():
    written = to_json(a_run())
    written["optimizer"]["learning_rte"] = written["optimizer"].pop("learning_rate")
    with pytest.raises(ValueError, match=r"optimizer: .*'learning_rte'; did you mean 'learning_rate'"):
        from_json(written)


def test_a_class_that_is_no_config_is_refused():
    with pytest.raises(ValueError, match="not a config class"):
        from_json({"class": "json:JSONDecoder"})


# ---- a user's own class


def test_a_users_class_survives_json_and_counts(mixer):
    gate = load_file("my_gate.py").GateConfig(hidden=16)
    assert isinstance(gate, LayerConfig)
    model = ModelConfig("GM", 64, 76, {"G": gate})
    again = through_json(a_run(model=model))
    assert again.model == model
    assert count(again.model).parameters - count(ModelConfig("M", 64, 76)).parameters == 2 * 64 * 16 + 64


def test_a_users_class_is_found_in_a_new_process(mixer):
    run = a_run(model=ModelConfig("GM", 64, 76, {"G": load_file("my_gate.py").GateConfig(hidden=16)}))
    code = "import json, sys; from workbench.config import from_json; print(from_json(json.load(sys.stdin)).name)"
    out = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(to_json(run)), capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == run.name


def test_a_changed_users_file_is_refused_by_name(mixer):
    written = to_json(load_file("my_gate.py").GateConfig())
    mixer.write_text(MIXER.replace("32", "64"))
    with pytest.raises(ValueError, match=r"GateConfig from my_gate\.py as it was .* has changed"):
        from_json(written)


def test_a_missing_users_file_is_refused_by_name(mixer):
    written = to_json(load_file("my_gate.py").GateConfig())
    mixer.unlink()
    with pytest.raises(ValueError, match=r"my_gate\.py, which is not there"):
        from_json(written)


def test_a_file_is_loaded_once_and_again_after_a_change(mixer):
    first = load_file("my_gate.py")
    assert load_file(mixer) is first
    mixer.write_text(MIXER.replace("hidden: int = 32", "hidden: int = 48"))
    assert load_file(mixer).GateConfig().hidden == 48


def test_two_files_of_one_name_are_told_apart(mixer, tmp_path):
    other = tmp_path / "elsewhere" / "my_gate.py"
    other.parent.mkdir()
    other.write_text(MIXER.replace("hidden: int = 32", "hidden: int = 48"))
    here, there = load_file(mixer).GateConfig(), load_file(other).GateConfig()
    assert to_json(here)["sha256"] != to_json(there)["sha256"]
    assert (to_json(here)["file"], to_json(there)["file"]) == ("my_gate.py", "elsewhere/my_gate.py")
    assert (through_json(here).hidden, through_json(there).hidden) == (32, 48)


def test_a_file_that_fails_is_not_half_loaded(tmp_path):
    path = tmp_path / "my_broken.py"
    path.write_text("good = 1\nraise RuntimeError('here')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="here"):
            load_file(path)


def test_a_file_that_is_absent_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.py is not there"):
        load_file(tmp_path / "nothing.py")


# ---- the hash


def leaves(value, path=""):
    """Every plain value of a config, with its path."""
    if dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from leaves(getattr(value, f.name), f"{path}.{f.name}" if path else f.name)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    else:
        yield path, value


OTHER = {  # another legal value for the fields where adding one is not
    "model.pattern": "MM",
    "model.width": 128,
    "model.norm": "layernorm1p",
    "model.dtype": "bfloat16",
    "model.symbols.M.head_dim": 32,
    "model.symbols.M.groups": 2,
    "model.symbols.M.inner": 256,
    "model.symbols.M.dt_limit": (0.001, 0.1),
    "model.symbols.S.inner": 256,
    "model.symbols.S.dt_rank": 8,
    "model.symbols.*.heads": 8,
    "model.symbols.*.kv_heads": 4,
    "model.symbols.*.head_dim": 32,
    "model.symbols.*.rotary": 0.5,
    "model.symbols.*.rotary_scaling": (8.0, 1.0, 4.0, 8192.0),
    "model.symbols.*.window": 16,
    "model.symbols.*.cache": "int8",
    "model.symbols.-.hidden": 64,
    "model.symbols.-.activation": "swiglu",
    "data.entries": (2, 3),
    "evaluation.entries": (2, 3),
    "optimizer.schedule": "wsd",
    "z_loss": 1e-4,
    "role": "long",
    "keep": (2, 3),
    "step_seconds": 0.02,
}


def changed(path, value):
    if path in OTHER:
        return OTHER[path]
    if isinstance(value, bool):
        return not value
    return value + "2" if isinstance(value, str) else value + 1 if isinstance(value, int) else value * 0.5


def test_every_field_can_be_overridden_and_changes_the_hash_and_the_differences():
    run = a_run()
    paths = dict(leaves(run))
    assert set(OTHER) <= set(paths)
    del paths["control_of"], paths["parent"]  # goes with role="control" alone; is a whole config or None
    seen = {short_hash(run)}
    for path, value in paths.items():
        new = changed(path, value)
        other = override(run, f"{path}={','.join(map(str, new)) if isinstance(new, tuple) else new}")
        assert dict(leaves(other)) == paths | {"control_of": "", "parent": None, path: new}
        assert len(differences(run, other)) == 1
        assert differences(run, other)[0].startswith(f"{path}: ")
        seen.add(short_hash(other))
    assert len(seen) == len(paths) + 1


def test_what_holds_whole_configs_is_not_overridden_by_text():
    run = RunConfig("s", "a", ModelConfig("-", 32, 512), TextConfig((Packages(("pip",)),)), TextEvaluation())
    with pytest.raises(ValueError, match=r"'data\.sources' holds whole configs; change it in the experiment's file"):
        override(run, "data.sources=pip")
    assert override(run, "data.weights=1,2").data.weights == (1.0, 2.0)
    assert override(run, "data.tokenizer=bpe-512").data.tokenizer == "bpe-512"


def test_a_control_names_the_arm_that_it_differs_from():
    assert short_hash(a_run(role="control", control_of="a")) != short_hash(a_run(role="control", control_of="b"))
    for role, of in (("control", ""), ("result", "a")):
        with pytest.raises(ValueError, match="a control, and nothing else, names the arm"):
            a_run(role=role, control_of=of)


def test_equal_runs_have_equal_names_and_seeds_have_their_own():
    assert a_run().name == a_run().name
    assert a_run(seed=1).name != a_run().name
    assert re.fullmatch(r"phonebook-hybrid-s1-[0-9a-f]{8}", a_run(seed=1).name)


def test_equal_configs_have_equal_hashes_however_their_numbers_were_written():
    assert OptimizerConfig(clip=1) == OptimizerConfig(clip=1.0)
    assert short_hash(OptimizerConfig(clip=1)) == short_hash(OptimizerConfig(clip=1.0))


def test_the_hash_counts_a_users_file_by_content_and_not_by_place(mixer, tmp_path):
    here = short_hash(load_file(mixer).GateConfig())
    forget()
    other = tmp_path / "elsewhere" / "my_gate.py"
    other.parent.mkdir()
    other.write_text(MIXER)
    assert short_hash(load_file(other).GateConfig()) == here
    forget()
    other.write_text(MIXER + "\n# another\n")
    assert short_hash(load_file(other).GateConfig()) != here


def test_differences_of_equal_runs_are_none():
    assert differences(a_run(), a_run()) == []


def test_differences_name_a_changed_kind_of_layer():
    other = a_run(model=dataclasses.replace(a_run().model, symbols={"*": MLPConfig()}))
    assert differences(a_run(), other)[0] == (
        "model.symbols.*.class: 'workbench.config:AttentionConfig' -> 'workbench.config:MLPConfig'"
    )


# ---- overrides


@pytest.mark.parametrize(
    ("assignment", "read", "value"),
    [
        ("optimizer.learning_rate=3e-3", lambda run: run.optimizer.learning_rate, 0.003),
        ("optimizer.clip=1", lambda run: run.optimizer.clip, 1.0),
        ("steps=1e3", lambda run: run.steps, 1000),
        ("model.tied=true", lambda run: run.model.tied, True),
        ("model.symbols.M.state=16", lambda run: run.model.symbols["M"].state, 16),
        ("model.symbols.M.inner=256", lambda run: run.model.symbols["M"].inner, 256),
        ("model.symbols.*.kv_heads=none", lambda run: run.model.symbols["*"].kv_heads, None),
        ("model.pattern=(*-)x2", lambda run: run.model.pattern, "(*-)x2"),
        ("data.entries=2,3", lambda run: run.data.entries, (2, 3)),
        ("data.entries=(5)", lambda run: run.data.entries, (5,)),
        (" seed = 7 ", lambda run: run.seed, 7),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_override_is_read_by_the_fields_type(assignment, read, value):
    found = read(override(a_run(), assignment))
    assert found == value
    assert type(found) is type(value)


def test_a_field_that_came_later_changes_no_earlier_hash():
    run = a_run()
    assert "parent" not in to_json(run) and from_json(to_json(run)) == run
    longer = a_run(parent=Parent("before"), role="extended")
    assert to_json(longer)["parent"]["run"] == "before" and short_hash(longer) != short_hash(a_run(role="state"))


def test_an_extended_run_names_its_parent():
    with pytest.raises(ValueError, match="role='extended' and no parent"):
        a_run(role="extended")
    with pytest.raises(ValueError, match="'parent' holds whole configs"):
        override(a_run(), "parent=before")


def test_overrides_apply_in_order_and_leave_the_original_alone():
    run = a_run()
    assert override(run, "steps=5", "steps=6", "seed=3") == a_run(steps=6, seed=3)
    assert run == a_run()


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("optimizer.learning_rte=1", "did you mean 'learning_rate'"),
        ("optimiser.learning_rate=1", "did you mean 'optimizer'"),
        ("model.symbols.Q.state=1", "has no 'Q'"),
        ("model.symbols.M.stat=1", "did you mean 'state'"),
        ("data.entrys=1", "did you mean 'entries'"),
        ("steps", "name=value"),
        ("steps=many", "is a number"),
        ("steps=1.5", "is a number"),
        ("model.tied=yes", "true or false"),
        ("optimizer=1", "whole config"),
        ("model.symbols.M=1", "whole config"),
        ("model.symbols=1", "whole config"),
        ("data=1", "whole config"),
        ("evaluation=1", "whole config"),
        ("steps.more=1", "below a plain value"),
        ("=1", "has no field"),
        ("model.dtype=bf16", "did you mean 'bfloat16'"),
        ("model.norm=rmsnorm", "did you mean 'rms'"),
        ("model.pattern=M-Q", 'has "Q" at position 2'),
        ("steps=0", "at least 1"),
    ],
)
def test_a_wrong_override_says_what_is_right(assignment, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        override(a_run(), assignment)


def test_nearest_lists_the_choices_even_when_nothing_is_near():
    assert nearest("zzz", ("b", "a")) == "choices: a, b"
    assert nearest("bat", ("cat", "dog")) == "did you mean 'cat'? choices: cat, dog"


# ---- models that cannot be


def attention(**changes):
    return ModelConfig("*", 64, 10, {"*": AttentionConfig(**changes)})


def mamba2(**changes):
    return ModelConfig("M", 64, 10, {"M": Mamba2Config(**changes)})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ModelConfig("*", 66, 10), "66 is not divisible by 4 attention heads; change one, or give head_dim"),
        (lambda: attention(kv_heads=3), "heads must be a multiple"),
        (lambda: attention(rotary=1.5), "between 0 and 1"),
        (lambda: attention(rotary=0.2), "even number of dimensions"),
        (lambda: attention(heads=0), "heads must be at least 1"),
        (lambda: attention(kv_heads=0), "kv_heads must be at least 1"),
        (lambda: attention(window=0), "window must be at least 1"),
        (lambda: mamba2(head_dim=48), "inner width 128 is not divisible by head_dim 48"),
        (lambda: mamba2(groups=3), "2 heads and 3 groups"),
        (lambda: mamba2(state=0), "state must be at least 1"),
        (lambda: ModelConfig("S", 64, 10, {"S": MambaConfig(inner=-8)}), "inner must be at least 1"),
        (lambda: ModelConfig("-", 64, 10, {"-": MLPConfig(hidden=0)}), "hidden must be at least 1"),
        (lambda: ModelConfig("-", 64, 10, {"-": MLPConfig(activation="swigloo")}), "did you mean 'swiglu'"),
        (lambda: ModelConfig("M", 0, 10), "width must be at least 1"),
        (lambda: ModelConfig("M", 64, 0), "vocabulary must be at least 1"),
        (lambda: ModelConfig("M", 64, 10, dtype="bf16"), "did you mean 'bfloat16'"),
        (lambda: ModelConfig("MQ", 64, 10), 'has "Q" at position 1'),
        (lambda: ModelConfig("ME", 64, 10), "reserved for mixture of experts"),
        (lambda: ModelConfig("", 64, 10), "no layers"),
        (lambda: a_run(model=ModelConfig("M", 64, 75)), "set model.vocabulary=76"),
    ],
)
def test_a_model_that_cannot_be_is_refused_with_the_remedy(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


def test_a_layer_that_the_pattern_does_not_use_is_not_checked():
    assert ModelConfig("M", 64, 10, {"*": AttentionConfig(heads=5)}).width == 64


def test_letters_that_are_not_named_keep_their_default():
    model = ModelConfig("MW", 64, 10, {"W": AttentionConfig(window=8)})
    assert set(model.symbols) == {"M", "S", "*", "-", "W"}
    assert model.layers == [Mamba2Config(), AttentionConfig(window=8)]


def test_equal_models_hash_equal():
    one, two = ModelConfig("(*-)x2", 64, 10), ModelConfig("(*-)x2", 64, 10, {"-": MLPConfig()})
    assert one == two
    assert hash(one) == hash(two)
    assert one != dataclasses.replace(one, tied=True)
