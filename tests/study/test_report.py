import csv
import io
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.config import PhonebookConfig, RecallConfig, load_file, to_json
from workbench.study import answer, differences, figures, judge, panels
from workbench.study import tables as tables_module
from workbench.study.collect import collect
from workbench.study.report import html, report
from workbench.study.tables import columns, pasted, rows, terminal_table

fake = load_file(Path(__file__).with_name("fake_study.py"))


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A study with everything in it: an untrained arm, another stream, a failure, a control, states; and its page."""
    folder = tmp_path_factory.mktemp("phonebook")
    fake.write(folder, ("hybrid", "mamba2"))
    for seed in (0, 1):
        fake.phonebook(folder, "transformer", seed, truth=lambda arm, k: 0.4)
        fake.phonebook(folder, "no <b>positions", seed, role="control", control_of="hybrid", truth=lambda arm, k: 0.97)
    fake.phonebook(folder, "mamba", 0, digest="ffee" * 16)
    fake.phonebook(folder, "mamba", 1, status="nan", error="loss is nan at step 640 <script>")
    fake.phonebook(folder, "mamba2", 0, role="state", width=128, state_bytes=4 * fake.STATE["mamba2"])
    page = report(folder)
    return folder, page.read_text()


def test_the_page_needs_nothing_but_itself(troubled):
    _, page = troubled
    assert not re.findall(r'(?:src|href)="(?!data:image/svg)', page) and "@import" not in page and "url(" not in page
    assert page.count("<figure ") == page.count("data:image/svg+xml;base64,") >= 6


# The least contrast of any text with what is behind it (WCAG 2.2, 1.4.3), and the text.
CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const rgb = parts(getComputedStyle(at).backgroundColor);
      if (rgb.length < 4 || rgb[3] > 0) return rgb.slice(0, 3); }
    return [255, 255, 255]; };
  const found = [...document.querySelectorAll("main *")].filter(
    (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
      const pair = [parts(getComputedStyle(e).color).slice(0, 3), behind(e)].map(light).sort((a, b) => b - a);
      return [(pair[0] + 0.05) / (pair[1] + 0.05), e.textContent]; });
  return found.sort((a, b) => a[0] - b[0])[0]; }"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_in_a_browser_in_light_and_dark_on_paper_and_on_a_phone(troubled, browser, scheme):
    def brightness():
        shot = browser.locator(".card").first.screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("L")).mean()

    asked, said = [], []
    browser.on("request", lambda request: asked.append(request.url))
    browser.on("console", lambda message: said.append(message.text))
    browser.emulate_media(color_scheme=scheme)
    browser.set_viewport_size({"width": 1280, "height": 900})
    browser.goto((troubled[0] / "report.html").as_uri())
    assert all(url.startswith(("file:", "data:")) for url in asked) and not said
    widths = "[...document.images].map((image) => image.complete * image.naturalWidth)"
    assert min(browser.evaluate(widths)) > 100
    least, text = browser.evaluate(CONTRAST)
    assert least >= 4.5, text
    assert brightness() > 200 if scheme == "light" else brightness() < 80
    wider = "document.documentElement.scrollWidth - innerWidth"
    for width in (1280, 390):
        browser.set_viewport_size({"width": width, "height": 800})
        assert browser.evaluate(wider) <= 0
    browser.set_viewport_size({"width": 700, "height": 1000})  # of A4, between margins
    browser.emulate_media(media="print", color_scheme=scheme)
    assert browser.evaluate(wider) <= 0 and brightness() > 200
    heights = "[...document.querySelectorAll('details table')].map((e) => e.getBoundingClientRect().height)"
    assert min(browser.evaluate(heights)) > 20  # what is folded on a screen is printed


def test_its_first_words_name_who_is_not_trained(troubled):
    _, page = troubled
    body = re.sub(r"<[^>]+>", " ", page[page.index("<body>") :]).strip()
    assert body.startswith("transformer (phonebook) is not trained")
    assert "0 of 2 seeds solved" in body[:400]


def test_what_arms_are_called_and_what_failed_is_escaped(troubled):
    _, page = troubled
    assert "<b>positions" not in page and "<script>" not in page
    assert "no &lt;b&gt;positions" in page and "loss is nan at step 640 &lt;script&gt;" in page


def test_no_arm_that_is_not_ranked_is_compared(troubled):
    folder, _ = troubled
    record = json.loads((folder / "study.json").read_text())
    assert {c[side] for c in record["comparisons"] for side in ("first", "second")} == {"hybrid", "mamba2"}
    assert not any("transformer" in sentence or "mamba " in sentence for sentence in record["headline"])


def test_an_arm_of_another_stream_is_not_drawn_and_the_reason_stands_across(troubled):
    folder, _ = troubled
    drawing = figures.recall(collect(folder), "phonebook")
    assert "not drawn: mamba" in drawing.figure.get_suptitle() and "ffeeffee" in drawing.figure.get_suptitle()
    assert {row["arm"] for row in drawing.rows if row["series"] == "arm"} == {"hybrid", "mamba2", "transformer"}
    assert "not ranked (transformer)" in drawing.caption


def test_every_figure_is_a_png_with_its_data_beside_it(troubled):
    folder, _ = troubled
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {path.stem for path in (folder / "figures").glob("*.csv")}
    assert names >= {f"phonebook-{kind}" for kind in ("recall", "depth", "learning", "state", "controls")} | {
        "text-bits"
    }
    with (folder / "figures" / "phonebook-recall.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "hybrid" and row["measure"] == "exact_match"]
    result = next(run for run in collect(folder).select("result", task="phonebook", arm="hybrid")).by_entries()
    assert float(next(r for r in rows if r["seed"] == "0" and r["entries"] == "8")["mean"]) == result[8].mean


def test_cells_of_the_depth_map_that_copying_any_answer_would_explain_are_grey(tmp_path):
    """Intervals of the books: of 2 entries the last place holds chance, 1/2; of the others only one, in both seeds."""
    for seed in (0, 1):
        path = fake.phonebook(tmp_path, "hybrid", seed) / "result.json"
        result = json.loads(path.read_text())
        for cell in result["evaluation"]["phonebook"]["by_depth"]:
            doubtful = (cell["entries"], cell["depth"]) in ((2, 1.0), (16, 0.0))
            low = 1 / cell["entries"] - 0.02 if doubtful else min(cell["mean"], 1) - 0.02
            cell |= {"mean": low + 0.03, "low": low, "high": low + 0.06}
        path.write_text(json.dumps(result))
    drawing = figures.depth(collect(tmp_path), "phonebook")
    ax = drawing.figure.axes[0]
    _, grey = ax.images
    seen = np.isnan(grey.get_array().filled(np.nan))
    places = {2: [4, 5, 6, 7], 16: [0]}  # a small book's last place covers the lower half of the map
    expected = np.ones((8, 6), bool)
    for column, entries in enumerate(fake.ENTRIES):
        expected[places.get(entries, []), column] = False
    np.testing.assert_array_equal(seen, expected)
    assert "Grey: no better than chance, which is copying any answer of the book" in drawing.caption
    assert {row["chance"] for row in drawing.rows if row["entries"] == 16} == {1 / 16}


def test_the_distance_of_every_arm_to_the_best_is_drawn_as_it_was_compared(troubled):
    folder, _ = troubled
    study = collect(folder)
    (drawing,) = (each for each in figures.drawings(study) if each.name == "text-gaps")
    found = {(c.first, c.second): c for c in differences.comparisons(study) if c.task == "text"}
    arms = judge.ranked(study, "text")
    (best,) = {row["best"] for row in drawing.rows}
    assert [row["arm"] for row in drawing.rows] == [arm for arm in arms if arm != best]
    for row in drawing.rows:
        c = found.get((row["arm"], best)) or found[best, row["arm"]]
        assert abs(c.checkpoints.mean) == row["behind"] and row["low"] <= row["behind"] <= row["high"]
    (ax,) = drawing.figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == arms and best in ax.get_xlabel()


def test_a_page_rebuilt_is_the_same_page(troubled):
    folder, page = troubled
    study = collect(folder)
    drawing = figures.recall(study, "phonebook")
    (again,) = re.findall(r"base64,[^\"]+", html(study, [drawing]))
    # the report lays a figure out for its PNG first; the bytes of a figure laid out anew are the same
    assert again == re.findall(r"base64,[^\"]+", html(study, [figures.recall(study, "phonebook")]))[0]
    assert re.sub(r"<figure.*?</figure>\n", "", page, flags=re.DOTALL) == html(study, [])


def test_the_page_says_what_it_cannot_say(troubled):
    _, page = troubled
    assert "trained on the task: the paper&#x27;s Phonebook is prompt-only" in page
    assert "about these checkpoints only" in page and "Convergence was not checked at this scale" in page
    assert "No controls" not in page  # there is one


def test_the_terminals_table_is_aligned_and_fits(troubled):
    folder, _ = troubled
    text = terminal_table(collect(folder))
    lines = text.splitlines()
    assert max(map(len, lines)) < 110
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    assert len({len(line) for line in lines[rule - 1 : rule + 6]}) == 1
    tables = [block for block in text.split("\n\n") if "\n---" in block]
    assert tables and all(("95 % intervals" in block.splitlines()[0]) == ("[" in block) for block in tables)
    assert "transformer (!)" in text and lines[0].startswith("transformer (phonebook) is not trained")


def test_colours_stay_with_their_arm_in_every_figure(troubled):
    folder, _ = troubled
    study = collect(folder)
    styles = panels.styles(study)
    assert len({style.colour for style in styles.values()}) == len(styles) == len(study.arms())
    (ax, _), expected = figures.recall(study, "phonebook").figure.axes, styles["hybrid"].colour
    assert expected in {line.get_color() for line in ax.lines}


def test_an_arms_states_are_one_line_of_its_colour_and_their_sizes_are_said(troubled):
    folder, _ = troubled
    study = collect(folder)
    drawing = figures.state(study, "phonebook")
    mine = [row for row in drawing.rows if row["arm"] == "mamba2" and row["entries"] == 8]
    assert {row["role"] for row in mine} == {"result", "state"}
    lines = [x for x in drawing.figure.axes[0].lines if x.get_color() == panels.styles(study)["mamba2"].colour]
    assert max(len(line.get_xdata()) for line in lines) == 2
    assert "mamba2 131,904" in drawing.caption and "non-embedding parameters" in drawing.caption


def test_convergence_that_was_checked_is_not_said_to_be_unchecked_where_there_are_controls(tmp_path):
    fake.write(tmp_path, ("hybrid", "mamba2"), text=False)
    for arm in ("hybrid", "mamba2"):
        fake.phonebook(tmp_path, arm, 0, role="long", steps=3200)
    for seed in (0, 1):
        fake.phonebook(tmp_path, "hybrid, rotary", seed, role="control", control_of="hybrid")
    page = report(tmp_path).read_text()
    assert "Convergence was not checked" not in page and "twice the steps change little" in page


def test_a_study_in_which_nothing_finished_still_reports(tmp_path):
    fake.phonebook(tmp_path, "hybrid", 0, status="nan", error="loss is nan at step 3")
    page = report(tmp_path).read_text()
    assert "loss is nan at step 3" in page and "no arm is ranked" in page


def test_the_tables_can_be_pasted_as_markdown_and_as_latex(troubled):
    markdown, latex = (pasted(collect(troubled[0]), form) for form in ("markdown", "latex"))
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count(" | ") for line in tables[:6]}) == 1
    assert (
        "| hybrid |" in markdown
        and "| transformer (not ranked) |" in markdown
        and "[" in tables[2]
        and "Made by `workbench" in markdown
    )
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    for line in latex.splitlines():
        if line.endswith(r"\\"):
            assert not re.search(r"(?<!\\)[%_#$]", line)
    assert markdown.count("| noise floor |") == 2 and re.search(r"\| [-+]\d\.\d{3} \[[-+]\d\.\d{3}, ", markdown)
    assert re.search(r"\\footnotesize .*certificate [0-9a-f]{12}", latex)  # printed, not a comment
    assert tables_module._escaped(r"a_b\c~^{}") == r"a\_b\textbackslash{}c\textasciitilde{}\textasciicircum{}\{\}"


def test_held_out_files_of_trained_groups_have_a_column_beside_those_of_new_ones(troubled):
    study = collect(troubled[0])
    heads = [name for name, _ in columns(study, "text")]
    (new, same) = (heads.index(name) for name in ("bits per byte", "bits per byte, trained groups"))
    for _, cells, _ in rows(study, "text"):
        assert float(cells[new].split()[0]) - float(cells[same].split()[0]) == pytest.approx(0.25, abs=2e-3)
    assert "trained groups" not in terminal_table(study).split("text")[0]
    assert "trained groups" in terminal_table(study)


def test_what_arms_answered_of_a_suite_is_a_table_with_what_is_at_chance_in_brackets(tmp_path):
    def share(mean):
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "items": 20, "chance": 0.25, "digest": "aa"}

    for arm, mean in (("transformer", 0.8), ("mamba", 0.3)):
        for seed in (0, 1):
            one = share(mean) | {"low": None, "high": None}  # of one cluster
            suite = {"recall-pairs-4": share(mean + 0.1 * seed), "one": one, "short": {"left_out": "too short"}}
            fake.source(tmp_path, arm, seed, suite=suite)
    table = tables_module.every(collect(tmp_path))["text-suite"]
    assert table.heads == ["task", "chance", "transformer", "mamba"] and len(table.rows) == 2
    pairs, one = table.rows
    assert pairs[:2] == ["recall-pairs-4\n20 items", "25.0\u00a0%"] and one[2:] == ["80.0\u00a0%", "30.0\u00a0%"]
    assert re.fullmatch(r"85\.0 \[\d\d\.\d, \d\d\.\d\]\u00a0%", pairs[2])
    assert re.fullmatch(r"\(35\.0 \[\d\d\.\d, \d\d\.\d\]\u00a0%\)", pairs[3])
    page = report(tmp_path).read_text()
    assert "What was answered of 2 tasks in text" in page and "(35.0\u00a0%)<small>[" in page
    assert "recall-pairs-4 & 25.0" in pasted(collect(tmp_path), "latex")


def test_a_study_that_asked_no_suite_has_no_table_of_one(troubled):
    assert "text-suite" not in tables_module.every(collect(troubled[0])) and "tasks in text" not in troubled[1]


# ---- extended runs


def falling(level, length):
    """Bits that fall with the position up to a length and rise past it."""
    edges = [0, 16, 64, 256, 1024, 4096]
    return [(a, b, level - 0.1 * i + (0.5 if b > length else 0)) for i, (a, b) in enumerate(pairwise(edges))]


@pytest.fixture
def longer(tmp_path):
    for level, arm in enumerate(("transformer", "mamba")):
        for seed in (0, 1):
            for length in (0, 1024, 4096):
                fake.source(tmp_path, arm, seed, longer=length, positions=falling(3 + level, length or 256))
    return tmp_path


def test_loss_by_position_is_drawn_for_every_length_of_training(longer):
    study = collect(longer)
    (drawing,) = (each for each in figures.drawings(study) if each.name == "text-positions")
    axes = drawing.figure.axes
    titles = ["trained at 256 tokens", "extended to 1,024 tokens", "extended to 4,096 tokens"]
    assert [ax.get_title("left") for ax in axes] == titles
    for ax, length in zip(axes, (256, 1024, 4096), strict=True):
        curves = [line.get_ydata() for line in ax.get_lines()]
        expected = [[mean for *_, mean in falling(3 + level, length)] for level in range(2)]
        assert [list(curve) for curve in curves] == [pytest.approx(each) for each in expected]
    assert len(drawing.rows) == 2 * 2 * 3 * 5
    assert {row["extrapolated"] for row in drawing.rows if row["end"] > row["length"]} == {True}
    assert not any(row["extrapolated"] for row in drawing.rows if row["end"] <= row["length"])


def test_extended_runs_neither_count_as_results_nor_hide_a_stream_of_their_own(longer):
    study = collect(longer)
    checks = {check.name: check.holds for check in judge.checks(study, "text")}
    assert all(checks.values()) and "same token stream, extended to 1,024 tokens" in checks
    assert all(verdict.ranked for verdict in judge.verdicts(study, "text").values())
    fake.source(longer, "hybrid", 0)
    fake.source(longer, "hybrid", 0, longer=1024, positions=falling(2, 1024), digest="0b" * 32)
    study = collect(longer)
    checks = {check.name: check.holds for check in judge.checks(study, "text")}
    assert not checks["same token stream, extended to 1,024 tokens"]
    drawing = figures.positions(study, "text")
    assert "not drawn: hybrid; data seed 0, extended to 1024: its token stream" in drawing.figure.get_suptitle()
    assert {row["arm"] for row in drawing.rows} == {"transformer", "mamba"}


def test_recall_is_spoken_of_in_its_own_words(tmp_path):
    for arm, right in (("transformer", 0.99), ("mamba", 0.3)):
        fake.phonebook(tmp_path, arm, 0, truth=lambda arm, k, right=right: 0.99 if k < 4 else right)
    for path in tmp_path.glob("*/config.json"):
        config = json.loads(path.read_text())
        result = json.loads(path.with_name("result.json").read_text())
        for evaluation in result["evaluation"].values():
            evaluation["baselines"] = {size: {"copy_any": 1 / int(size)} for size in evaluation["exact_match"]}
        path.with_name("result.json").write_text(json.dumps(result))
        config["data"] = to_json(RecallConfig("mqar"))
        path.write_text(json.dumps(config))
    study = collect(tmp_path)
    assert study.tasks == ["mqar"]
    heads = [name for name, _ in columns(study, "mqar")]
    assert "exact, 8 pairs" in heads and not any(name.startswith("values") for name in heads)  # a value is all of it
    assert len(figures.recall(study, "mqar").figure.axes) == 1
    assert "with 8 pairs in the document (the most in training) transformer has" in answer.headline(study)[0]
    said = terminal_table(study) + " ".join(drawing.caption for drawing in figures.drawings(study))
    assert not re.search("entr(y|ies)|book|digit ", said)


def test_the_dashed_line_of_capacity_is_the_most_that_any_state_can_answer(troubled):
    from matplotlib.figure import Figure

    folder, _ = troubled
    drawing = figures.state(collect(folder), "phonebook")
    (head,) = {row["state_bytes"] for row in drawing.rows if row["role"] == "capacity" and row["entries"] == 8}
    assert head == pytest.approx(8 * 3 * math.log2(10) / 8) and "any state" in drawing.caption  # 8 numbers of 3 digits

    ax = Figure().subplots()
    panels.capacity(ax, 5, 2)  # five fair bits: the distortion-rate function is the inverse of 1 - H(wrong)
    held, right = ax.lines[0].get_data()
    for share, doubt in ((0.75, 0.811278), (0.9, 0.468996), (1.0, 0.0)):  # of a table of the binary entropy
        assert np.interp(share, np.array(right) / 100, held) == pytest.approx(5 * (1 - doubt) / 8, abs=1e-3)

    ax = Figure().subplots()
    panels.capacity(ax, 1, 256**64)  # more alternatives than a float can count
    assert np.all(np.isfinite(ax.lines[0].get_xdata()))


def test_what_a_document_holds_is_counted_in_answers_that_do_not_follow_from_each_other():
    assert PhonebookConfig(digits=3).answers(8) == (8, 1000)
    assert RecallConfig("mqar", symbols=64).answers(16) == (16, 32)
    assert RecallConfig("trigrams", symbols=64).answers(16) == (16, 32)
    assert RecallConfig("copying", symbols=16).answers(4) == (1, 16**4)
    assert RecallConfig("induction", symbols=16).answers(4) == (1, 16)


def test_only_what_comes_from_packages_is_called_source_code(tmp_path):
    fake.write(tmp_path, ("hybrid", "mamba2"), seeds=(0,))
    assert any("on unseen source code" in each for each in answer.headline(collect(tmp_path)))
    for path in tmp_path.glob("*/config.json"):
        path.write_text(path.read_text().replace("workbench.config:Packages", "workbench.config:Files"))
    said = answer.headline(collect(tmp_path))
    assert any("on unseen text" in each for each in said) and not any("source code" in each for each in said)
