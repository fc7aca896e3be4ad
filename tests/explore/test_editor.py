"""What the editor shows of a pattern and of runs, without a browser; and a training that is stopped and goes on."""

import dataclasses
import json
import time

import pytest

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    ModelConfig,
    PhonebookConfig,
    PhonebookEvaluation,
    to_json,
)
from workbench.count import count
from workbench.devices import DEVICES
from workbench.explore import editor as editors
from workbench.explore import trial as trials
from workbench.speed.predict import decode
from workbench.study.sizes import binary

SYMBOLS = {"M": Mamba2Config(state=8, head_dim=16), "*": AttentionConfig(heads=2), "w": AttentionConfig(2, window=64)}
DATA = PhonebookConfig(names=16, digits=2, entries=(2,), length=16, batch=4)
EVALUATION = PhonebookEvaluation(entries=(2, 4), books=8, queries=2)


def opened(folder, pattern="M*", steps=6, **options):
    return editors.editor(
        pattern, width=16, data=DATA, evaluation=EVALUATION, folder=folder, symbols=SYMBOLS, steps=steps, **options
    )


def button(made, text):
    """The button with this description, anywhere in the box."""

    def within(widget):
        return [widget, *(each for child in getattr(widget, "children", ()) for each in within(child))]

    return next(
        each for each in within(made.box) if getattr(each, "description", None) == text and hasattr(each, "click")
    )


def test_what_grows_with_the_context_is_cache_and_the_rest_is_state():
    model = ModelConfig("MM*w", 16, 28, SYMBOLS)
    shown = {fact.name: fact for fact in editors.facts(model, DEVICES["h100"], context=1000, batch=2)}
    fixed = count(dataclasses.replace(model, pattern="MM"), 1000).state_bytes
    assert shown["state a sequence"].value == binary(fixed)
    assert shown["cache a sequence"].value == binary(count(model, 1000).state_bytes - fixed)
    assert shown["cache a sequence"].note.startswith(f"and {binary(2 * 16 * 4)} more")  # the window is full
    step = decode(model, DEVICES["h100"], batch=2, context=1000)
    assert shown["decoding, predicted"].value == f"{editors.engineering(2 / step.seconds)} tokens/s"


def test_costs_follow_what_is_typed_and_an_error_stands_in_its_place(tmp_path):
    made = opened(tmp_path)
    page, go = made.outputs["facts"], made.outputs["train"]
    before = page.value
    assert before.count("wb-tile") == 3 and "parameters" in before and not go.disabled  # two tiles in their frame
    made.inputs["pattern"].value = "M*Q"
    assert "wb-error" in page.value and "at position 2" in page.value and "\n  M*Q\n    ^" in page.value
    assert go.disabled and "wb-fact" not in page.value
    made.inputs["pattern"].value = "(M*)x2"
    assert page.value.count("wb-tile") == 5 and not go.disabled
    made.inputs["width"].value = 15
    assert "wb-error" in page.value and "divisible" in page.value and go.disabled


def test_a_pattern_is_clicked_together(tmp_path):
    made = opened(tmp_path, pattern="M")
    for symbol in ("*", "w", "-"):
        button(made, symbol).click()
    assert made.inputs["pattern"].value == "M*w-" and made.run().model.pattern == "M*w-"
    assert made.run().arm == "M*w-" and made.run().steps == 6


def written(folder, run, steps, loss, result=None):
    """A run's folder as training leaves it."""
    place = folder / run.name
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(to_json(run)))
    for name, value in (("metrics", {"loss": loss, "tokens": 64}), ("timing", {"tokens_per_second": 100.0})):
        (place / f"{name}.jsonl").write_text(
            "".join(json.dumps({"step": s, **value}) + "\n" for s in range(1, steps + 1))
        )
    if result:
        (place / "result.json").write_text(json.dumps(result))


def test_earlier_runs_are_drawn_where_they_read_the_same_and_named_where_not(tmp_path):
    made = opened(tmp_path)
    assert "no run yet" in editors.curves([]).axes[0].texts[0].get_text()
    mine = made.run()
    score = {"mean": 0.75, "low": 0.5, "high": 0.9}
    evaluation = {"phonebook": {"trained_entries": [2], "exact_match": {"2": score, "4": score | {"mean": 0.25}}}}
    done = {"status": "finished", "parameters": 1234, "evaluation": evaluation}
    written(tmp_path, mine, 6, 1.5, done)
    other = dataclasses.replace(mine, data=dataclasses.replace(DATA, names=15), arm="other")
    written(tmp_path, other, 3, 2.5)
    found = editors.known(tmp_path, mine)
    assert [(each.state.run, each.alike) for each in found] == [(mine.name, True), (other.name, False)]
    figure = editors.curves(found, mine.name)
    assert [len(ax.lines) for ax in figure.axes] == [1, 1]
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.5] * 6
    table = editors.listed(found, mine.name)
    assert "75% of 2" in table and "1.234 k" in table and "1 not drawn" in table
    assert editors.conclusion(made).splitlines()[1:] == [
        "M* (1,234 parameters, rate 0.001): 2: 0.75 [0.50, 0.90], 4: 0.25 [0.50, 0.90]"
    ]


def test_without_runs_there_is_a_picture_and_nothing_concluded(tmp_path):
    made = opened(tmp_path / "new")
    assert bytes(made.outputs["picture"].value[:4]) == b"\x89PNG" and made.outputs["runs"].value == ""
    assert "press Train" in editors.conclusion(made)
    assert made.outputs["stop"].disabled


@pytest.mark.slow
def test_a_training_is_stopped_by_its_button_and_goes_on_to_its_end(tmp_path):
    made = opened(tmp_path, steps=20_000)
    button(made, "Train").click()
    assert made.outputs["train"].disabled and not made.outputs["stop"].disabled
    place = made.trial.folder
    until = time.monotonic() + 300
    while not (place / "metrics.jsonl").exists():
        assert made.trial.running and time.monotonic() < until, trials.problem(made.trial)
        time.sleep(0.1)
    button(made, "Stop and save").click()
    editors.wait(made)
    [stopped] = editors.known(tmp_path, None)
    assert stopped.state.state == "stopped" and 0 < stopped.state.seen.step < 20_000
    assert any((place / "checkpoints").iterdir()) and not made.outputs["train"].disabled
    first = [row["step"] for row in stopped.rows]
    button(made, "Train").click()
    while editors.known(tmp_path, None)[0].state.seen.step <= first[-1]:
        assert made.trial.running and time.monotonic() < until, trials.problem(made.trial)
        time.sleep(0.1)
    made.trial.process.stdin.close()  # as when the notebook's kernel is gone
    editors.wait(made)
    [again] = editors.known(tmp_path, None)
    assert [row["step"] for row in again.rows][: len(first)] == first and again.state.state == "stopped"


@pytest.mark.slow
def test_a_training_that_fails_says_why_in_its_place(tmp_path):
    made = opened(tmp_path)
    run = made.run()
    written(tmp_path, run, 0, 0.0)
    (tmp_path / run.name / "config.json").write_text("{")
    button(made, "Train").click()
    with pytest.raises(RuntimeError, match="half-written"):
        editors.wait(made)
    assert "half-written" in made.outputs["cost"].value
