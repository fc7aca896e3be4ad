"""Models in the form of the mamba authors' releases, against what torch computed (tests/exchange/state_spaces.py)."""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.exchange import pickled
from workbench.exchange.state_spaces import from_state_spaces
from workbench.model.names import named
from workbench.train.checkpoint import load_model
from workbench.train.exchange import import_run

GOLDENS = Path(__file__).parent / "golden_state_spaces"
PATTERNS = {"mamba": "SS", "mamba2": "MM", "mamba2attn": "M*M", "transformerpp": "*-*-"}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_release_of_the_authors_gives_their_logits(name):
    model, tokenizer, _ = from_state_spaces(GOLDENS / name)
    assert model.config.pattern == PATTERNS[name] and tokenizer is None
    expected = np.load(GOLDENS / name / "expected.npz")
    logits = jax.jit(lambda model, tokens: model.logits(model(tokens).hidden))(model, jnp.asarray(expected["tokens"]))
    assert expected["logits"].std() == pytest.approx(3, rel=0.1)
    # three times what float32 costs torch, or what the goldens' size makes of float32
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=max(2e-4, 3 * float(expected["rounding"])))


def test_a_release_is_imported_as_a_run_whose_parent_it_is(tmp_path):
    result = import_run(GOLDENS / "mamba2attn", tmp_path / "run")
    _, model = load_model(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, named(model), named(from_state_spaces(GOLDENS / "mamba2attn").model))
    assert (result["parents"][0]["run"], result["parents"][0]["architecture"]) == ("mamba2attn", "state-spaces")


@pytest.fixture
def copied(tmp_path):
    """A release whose config.json a test changes."""

    def change(name="mamba2attn", **settings):
        folder = tmp_path / name
        shutil.copytree(GOLDENS / name, folder, dirs_exist_ok=True)
        raw = json.loads((folder / "config.json").read_text())
        for key, value in settings.items():
            part, _, inner = key.rpartition("__")
            (raw[part] if part else raw)[inner] = value
        (folder / "config.json").write_text(json.dumps(raw))
        return folder

    return change


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rms_norm": False}, "rms_norm is False, which cannot be expressed; True can"),
        ({"ssm_cfg__layer": "Mamba3"}, r"ssm_cfg\.layer is 'Mamba3'; did you mean"),
        ({"ssm_cfg__rmsnorm": False}, r"ssm_cfg\.rmsnorm is False"),
        ({"ssm_cfg__ngrups": 2}, r"ssm_cfg\.ngrups is not known; did you mean 'ngroups'"),
        ({"attn_cfg__rotary_emb_interleaved": True}, r"attn_cfg\.rotary_emb_interleaved is True"),
        ({"d_state": 3}, "d_state is not known"),
        ({"n_layer": 4}, r"lacks 9 tensors; the first is backbone\.layers\.3\.mixer\.A_log"),
        ({"n_layer": 2}, r"has 9 tensors that its config\.json has no place for; the first is backbone\.layers\.2\."),
        ({"d_model": 24}, r"has shape \(48, 16\); its config\.json needs \(48, 24\)"),
    ],
    ids=["norm", "mixer", "mixers_norm", "misspelt", "rotary", "unknown", "too_few", "too_many", "misshapen"],
)
def test_what_cannot_be_expressed_or_does_not_fit_is_refused_by_name(copied, settings, message):
    with pytest.raises(ValueError, match=message):
        from_state_spaces(copied(**settings))


# ---- files of torch.save


class Planted:
    """What a pickle may hold: a call."""

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


def saved(path, value, storages=()):
    """A zip as torch.save writes it."""
    file = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, given):
            return given if isinstance(given, tuple) and given[:1] == ("storage",) else None

    Pickler(file, 2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for key, content in storages:
            archive.writestr(f"archive/data/{key}", content)
    return path


def test_a_file_that_asks_for_a_call_is_refused_and_nothing_is_called(tmp_path):
    sign = tmp_path / "called"
    path = saved(tmp_path / "model.bin", {"weight": Planted((os.mkdir, (str(sign),)))})
    with pytest.raises(ValueError, match=r"asks for \w+\.mkdir, which is not made of a checkpoint's bytes"):
        pickled.read(path)
    assert not sign.exists()
    for call in ((eval, ("1",)), (getattr, ({}, "keys")), (io.open, (str(sign), "w"))):
        with pytest.raises(ValueError, match="which is not made of a checkpoint's bytes"):
            pickled.read(saved(tmp_path / "model.bin", {"weight": Planted(call)}))
    assert not sign.exists()


def test_a_file_of_more_than_arrays_or_cut_short_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds more than arrays by name"):
        pickled.read(saved(tmp_path / "model.bin", {"step": 3}))
    whole = (GOLDENS / "mamba" / "pytorch_model.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.bin is no zip that torch\.save wrote"):
        pickled.read(tmp_path / "cut.bin")
