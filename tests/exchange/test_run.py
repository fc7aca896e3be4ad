import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from workbench.command import main
from workbench.config import Files, TextConfig
from workbench.count import count
from workbench.data.tokenizer import loaded
from workbench.evaluate.score import loglikelihood, subject
from workbench.exchange import safetensors
from workbench.exchange.huggingface import from_huggingface, tokenizer_in
from workbench.study import answer
from workbench.study.collect import collect
from workbench.study.extend import continued
from workbench.study.report import report
from workbench.study.verify import verify
from workbench.train.checkpoint import load_model
from workbench.train.exchange import export_run, import_run
from workbench.train.loop import train

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def source(lettered) -> Path:
    return lettered("mamba-tied")


def test_an_imported_model_is_a_run_that_says_where_it_is_from_and_is_exported_unchanged(source, tmp_path, capsys):
    run, out = tmp_path / "runs" / "mamba", tmp_path / "out"
    assert main(["import", str(source), str(run)]) == 0
    assert capsys.readouterr().out.startswith("mamba, ")

    config, model = load_model(run)
    assert model.config == config.model == from_huggingface(source).model.config
    result = json.loads((run / "result.json").read_text())
    parent = result["parents"][0]
    assert (result["status"], parent["run"], parent["relation"]) == ("finished", "mamba-tied", "imported")
    assert len(parent["weights_hash"]) == 64 and parent["weights_hash"] != result["weights_hash"]

    assert main(["evaluate", str(run)]) == 2
    assert "what it was trained on is unknown" in capsys.readouterr().err

    assert main(["export", str(run), str(out)]) == 0
    theirs, written = (safetensors.read(folder / "model.safetensors") for folder in (source, out))
    assert theirs.keys() == written.keys()
    assert all(np.array_equal(theirs[name], written[name]) for name in theirs)
    assert json.loads((out / "tokenizer.json").read_text()) == json.loads((source / "tokenizer.json").read_text())
    assert f"imported: mamba-tied (`{parent['weights_hash']}`)" in (out / "README.md").read_text()


@pytest.mark.slow
def test_an_imported_model_is_trained_further_from_its_weights_and_the_report_says_what_is_unknown(source, tmp_path):
    folder, study = tmp_path / "runs" / "mamba", tmp_path / "runs" / "mine"
    imported = import_run(source, folder)
    rng = np.random.default_rng(0)
    for index in range(80):  # groups of their own, so that every split has some
        path = tmp_path / "texts" / str(index) / "a.txt"
        path.parent.mkdir(parents=True)
        path.write_text("".join(map(chr, rng.integers(97, 123, 100))))
    data = TextConfig((Files((f"{tmp_path}/texts/*/*.txt",)),), length=16, batch=2)
    runs = [continued(folder, study, data, steps=2, arm=arm, seed=1) for arm in ("one", "two")]
    for run in runs:
        assert run.study == "mine" and run.parent.weights_hash == imported["weights_hash"]
        train(run, study / run.name, {"text": run.evaluation.build(run)}, progress=False, wandb="disabled")
    result = json.loads((study / runs[0].name / "result.json").read_text())
    assert [each["relation"] for each in result["parents"]] == ["imported", "extended"]
    start = json.loads((study / runs[0].name / "initial.json").read_text())
    assert start["weights_hash"] == imported["weights_hash"] != result["weights_hash"]
    assert result["evaluation"]["text"]["bits_per_byte"]["mean"] > 0 and result["digest"]
    assert subject(study / runs[0].name).tokenizer.saved() == subject(folder).tokenizer.saved()

    report(study)
    found = collect(study)
    assert "one goes on from mamba-tied: what that was trained on before is unknown." in answer.first_line(found)
    certificate = json.loads((study / "certificate.json").read_text())["claims"]["tasks"]["text"]["arms"]
    assert certificate["two"]["released"] == ["mamba-tied"]
    assert [str(each) for each in verify(study) if each.holds is False] == []


def test_only_a_finished_run_with_a_tokenizer_is_continued(source, tmp_path):
    data = TextConfig((Files((f"{tmp_path}/*.txt",)),))
    with pytest.raises(ValueError, match="holds no finished run"):
        continued(tmp_path / "nothing", tmp_path, data, steps=2)
    import_run(source, tmp_path / "mamba")
    (tmp_path / "mamba" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer.json"):
        continued(tmp_path / "mamba", tmp_path, data, steps=2)


def test_an_imported_model_has_bits_per_byte_on_files(source, tmp_path, capsys):
    """Every byte of pieces of 4 tokens is scored after what stands before it in its piece, as the model itself says."""
    run, texts = tmp_path / "mamba", {"a/one.txt": "abcdefg", "a/two.txt": "hello", "b/three.txt": "zyx"}
    for name, text in texts.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    assert main(["import", str(source), str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "length=4", "--text", f"{tmp_path}/texts/**/*.txt"]) == 0
    found = json.loads(capsys.readouterr().out)

    _, model = load_model(run)
    nats = {"a": 0.0, "b": 0.0}
    for name, text in texts.items():
        ids = [0, *(ord(letter) - 95 for letter in text)]
        for begin in range(0, len(text), 4):
            piece = np.pad(ids[begin : begin + 5], (0, 4))[:5]  # of one shape: one program
            logits = np.asarray(model.logits(model(jnp.array([piece[:-1]])).hidden), np.float64)[0]
            chosen = logits[range(4), piece[1:]] - np.log(np.exp(logits).sum(-1))
            nats[name[0]] -= chosen[: len(text) - begin].sum()
    for group, size in (("a", 12), ("b", 3)):
        assert found["by_group"][group]["bytes"] == size
        assert found["by_group"][group]["mean"] == pytest.approx(nats[group] / size / np.log(2), abs=1e-4)
    assert found["bits_per_byte"]["mean"] == pytest.approx(sum(nats.values()) / 15 / np.log(2), abs=1e-4)
    assert found["bits_per_byte"]["low"] < found["bits_per_byte"]["mean"] < found["bits_per_byte"]["high"]
    assert found["tokens"] == 15 and found["perplexity"] == pytest.approx(np.exp(sum(nats.values()) / 15), rel=1e-4)


def test_what_is_longer_than_an_imported_models_positions_is_neither_written_nor_read(lettered, tmp_path, capsys):
    run, text = str(tmp_path / "llama"), tmp_path / "text.txt"
    text.write_text("abcdefgh" * 100)
    assert main(["import", str(lettered("llama-scaled-rotary")), run]) == 0  # of 512 positions
    capsys.readouterr()
    assert main(["generate", run, "ab", "--tokens", "511"]) == 2
    out, said = capsys.readouterr()
    assert out == "" and "the prompt has 3 tokens and 511 are to be generated, 513 to be read" in said
    assert main(["evaluate", run, "length=513", "--text", str(text)]) == 2
    said = capsys.readouterr().err
    assert "a row of evaluation.length=513 has 514 tokens, 513 to be read; the model's positions allow 512" in said


def test_an_imported_model_has_loss_by_position_up_to_sixteen_times_its_positions(lettered, tmp_path, capsys):
    """Read stretch by stretch; the first bins are what the whole beginning read at once gives."""
    run, rng = str(tmp_path / "llama"), np.random.default_rng(0)
    source = lettered("llama-scaled-rotary")
    config = json.loads((source / "config.json").read_text()) | {"max_position_embeddings": 128}
    (source / "config.json").write_text(json.dumps(config))
    assert main(["import", str(source), run]) == 0
    ids = rng.integers(2, 28, (3, 16 * 128))
    for number, row in enumerate(ids):
        (tmp_path / f"{number}.txt").write_text("".join(chr(95 + letter) for letter in row))
    (tmp_path / "short.txt").write_text("abc")
    capsys.readouterr()
    words = ["evaluate", run, f"length={16 * 128}", "--by-position", "--text", f"{tmp_path}/*.txt"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)

    _, model = load_model(run)
    tokens = np.concatenate([np.zeros((3, 1), int), ids[:, :64]], axis=1)
    logits = np.asarray(model.logits(model(jnp.array(tokens[:, :-1])).hidden), np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    bins = found["by_position"]
    assert [each["end"] for each in bins] == [2**n for n in range(4, 12)]
    for each in bins[:3]:
        expected = nats[:, each["start"] : each["end"]].mean() / np.log(2)
        assert each["mean"] == pytest.approx(expected, abs=1e-4)
    assert [each["extrapolated"] for each in bins] == [False] * 4 + [True] * 4
    assert found["bits_per_byte"]["bytes"] == 3 * 128 and found["run"] == "llama"

    kept, figure = sorted((tmp_path / "llama" / "positions").iterdir())
    assert str(figure) == found["figure"] and figure.suffix == ".png"
    assert json.loads(kept.read_text())["by_position"] == bins
    assert main([*words[:2], "length=2049", *words[3:]]) == 2
    assert "these texts have 0 documents of at least evaluation.length=2049 tokens (the longest has 2048)" in (
        capsys.readouterr().err
    )
    assert main(["evaluate", run, "--by-position"]) == 2
    assert "no text is held out for it; give texts with --text" in capsys.readouterr().err
    assert main([*words, "--suite", "phonebook"]) == 2
    assert "leave out --suite and --lm-eval" in capsys.readouterr().err


@pytest.mark.slow
def test_an_imported_model_with_its_tokenizer_is_scored_and_generated_from(source, tmp_path, capsys):
    run = tmp_path / "mamba"
    assert main(["import", str(source), str(run)]) == 0
    capsys.readouterr()
    _, model = load_model(run)
    tokenizer = loaded((run / "tokenizer.json").read_bytes())
    assert tokenizer.encode([b"abz"])[0].ids.tolist() == [2, 3, 27]
    score = loglikelihood(subject(run), [("ab", "c")])[0]
    logits = np.asarray(model.logits(model(jnp.array([[0, 2, 3]])).hidden), np.float64)[0, -1]
    assert score.log_probability == pytest.approx(logits[4] - np.log(np.exp(logits).sum()), abs=1e-4)

    assert main(["generate", str(run), "ab", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("ab")


def test_a_model_card_says_what_is_known_and_nothing_else(tmp_path, monkeypatch):
    """Of a trained run its tokens, digest and certificate; the certificate only if the run is one of its study's."""
    import yaml

    model = from_huggingface(GOLDEN / "mamba-tied").model
    monkeypatch.setattr("workbench.train.checkpoint.load_model", lambda folder, step: (None, model))
    run = tmp_path / "study" / "mamba-s1"
    run.mkdir(parents=True)
    said = {
        "run": "mamba-s1",
        "study": "tiny",
        "arm": "mamba",
        "seed": 1,
        "tokens": 12345,
        "digest": "d1",
        "parents": [],
    }
    (run / "result.json").write_text(json.dumps(said))
    certificate = {"hash": "c1", "claims": {"runs": {"mamba-s1": {}}}}

    def rows(step=None):
        export_run(run, tmp_path / "out", step)
        _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
        assert yaml.safe_load(front)["tags"] == ["mamba", "architecture-workbench"]
        assert body.startswith("\n# mamba-s1\n")
        cells = [
            line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ") and line[2] != "|"
        ]
        return {cell[0]: cell[1] for cell in cells if len(cell) == 2}

    found = rows()
    assert found["pattern"] == "`SS`" and int(found["parameters"].replace(",", "")) == count(model.config).parameters
    assert (found["tokens trained on"], found["data digest"], found["seed"]) == ("12,345", "`d1`", "1")
    assert not {"certificate", "parents", "weights"} & found.keys()
    (run.parent / "certificate.json").write_text(json.dumps(certificate))
    assert rows()["certificate"] == "`c1`"
    assert not {"certificate", "tokens trained on", "data digest"} & rows(step=3).keys()
    (run.parent / "certificate.json").write_text(json.dumps(certificate | {"claims": {"runs": {}}}))
    assert "certificate" not in rows()


def letters(*begin, template=""):
    """A tokenizer.json of two letters and the tokens that may begin or end documents."""
    from tokenizers import Tokenizer, models, processors

    fast = Tokenizer(models.BPE({token: index for index, token in enumerate((*begin, "a", "b"))}, []))
    fast.add_special_tokens(list(begin))
    if template:
        ids = [(template, fast.token_to_id(template))]
        fast.post_processor = processors.TemplateProcessing(single=f"{template} $A", special_tokens=ids)
    return fast.to_str()


@pytest.mark.parametrize(
    ("text", "settings", "begins"),
    [
        (letters("<s>", "</s>", template="<s>"), {}, "<s>"),
        (letters("<s>", "</s>"), {"bos_token": {"content": "<s>"}, "add_bos_token": True}, "<s>"),
        (letters("<im>", "<|endoftext|>"), {"bos_token": "<im>"}, "<|endoftext|>"),
        (letters("<im>", "</s>"), {"bos_token": "<im>", "add_bos_token": False}, "</s>"),
        (letters("<only>"), {"bos_token": "<only>"}, "<only>"),
        (letters("<s>", "</s>"), None, "</s>"),
    ],
    ids=["template", "setting", "separator", "none added", "the only one", "no settings"],
)
def test_documents_begin_as_the_source_says_and_still_do_when_loaded(tmp_path, text, settings, begins):
    (tmp_path / "tokenizer.json").write_text(text)
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = tokenizer_in(tmp_path)
    for tokenizer in (found, loaded(found.saved())):
        assert tokenizer.fast.id_to_token(tokenizer.boundary) == begins
        stops = {"</s>", "<|endoftext|>"} & tokenizer.fast.get_vocab().keys()
        assert set(map(tokenizer.fast.id_to_token, tokenizer.ends)) == stops | {begins}
        assert len(tokenizer.encode([b"ab"])[0].ids) == 2


def test_a_folder_that_holds_something_is_left_alone(source, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert main(["import", str(source), str(tmp_path / "full")]) == 2
    assert "is not empty; give a folder that is not there yet" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_a_gguf_file_without_its_package_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main(["import", str(tmp_path / "model.gguf"), str(tmp_path / "run")]) == 2
    assert "pip install 'architecture-workbench[gguf]'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["import", "export"])
def test_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"  workbench {command} " in capsys.readouterr().out
