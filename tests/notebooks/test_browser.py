"""Notebooks in JupyterLab in a real browser: opened, run from the menu, typed into and clicked, their figures seen."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytestmark = pytest.mark.slow

CHANGED = {  # of each notebook's parameters, for a test
    "start": {"steps: int = 1600": "steps: int = 4"},
    "explore": {"steps: int = 1600": "steps: int = 30000"},
    "inside_a_state": {"runs/phonebook/phonebook-hybrid-s*": "runs/explore/*", "entries: int = 8": "entries: int = 4"},
}


@pytest.fixture
def lab(root, tmp_path):
    """Of a JupyterLab that serves copies of notebooks with changed parameters: a notebook's address, by its name."""
    served = tmp_path / "notebooks"
    served.mkdir()
    for name, changes in CHANGED.items():
        text = (root / "notebooks" / f"{name}.ipynb").read_text()
        for before, after in changes.items():
            assert before in text
            text = text.replace(before, after)
        (served / f"{name}.ipynb").write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    home = {
        name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    }
    environment = (
        os.environ | home | {"PYTHONPATH": os.pathsep.join(sys.path), "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "w")}
    )
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={served}",
        "--ServerApp.port_retries=0", "--LabApp.news_url=None",
    ]  # fmt: skip
    with (tmp_path / "lab.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=served)
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "lab.log").read_text()
                time.sleep(0.5)
        # in a workspace of its own, where no other notebook is open whose kernel could be taken for this one's
        yield lambda name: f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={token}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def run_all(browser, address):
    browser.goto(address, timeout=120_000)
    browser.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    # Asked to run before its kernel is there, JupyterLab asks back which kernel to take.
    browser.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
    browser.get_by_role("menuitem", name="Run", exact=True).click()
    browser.get_by_text("Run All Cells", exact=True).click()


def wait_for_output(browser, text):
    browser.wait_for_function(
        "text => [...document.querySelectorAll('.jp-OutputArea-output')].some(o => o.innerText.includes(text))",
        arg=text,
        timeout=400_000,
    )


def assert_no_error(browser):
    stderr = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg"
    assert browser.locator(stderr).count() == 0


def test_the_first_notebook_runs_in_jupyterlab_and_shows_its_figures(browser, lab):
    run_all(browser, lab("start"))
    # The live figure is below the cell that trains; the last cell says what was seen.
    browser.wait_for_selector(".jp-OutputArea-output img", timeout=400_000)
    wait_for_output(browser, "right in")
    image = browser.locator(".jp-OutputArea-output img").first
    assert image.evaluate("image => image.naturalWidth") > 100
    assert_no_error(browser)


def test_a_pattern_is_typed_clicked_trained_stopped_and_looked_into(browser, lab, tmp_path):
    run_all(browser, lab("explore"))
    facts, wrong = browser.locator(".wb-facts"), browser.locator(".wb-error")
    facts.wait_for(timeout=200_000)
    pattern, train = (
        browser.locator(".jp-OutputArea input[type=text]").first,
        browser.get_by_role("button", name="Train"),
    )
    stop = browser.get_by_role("button", name="Stop and save")
    pattern.fill("M*Q")
    wrong.wait_for(timeout=20_000)
    assert "at position 2" in wrong.inner_text() and train.is_disabled() and facts.count() == 0
    pattern.fill("M")
    facts.wait_for(timeout=20_000)
    browser.get_by_role("button", name="*", exact=True).click()
    browser.wait_for_function("() => document.querySelectorAll('.wb-tile').length == 2", timeout=20_000)
    assert pattern.input_value() == "M*"
    train.click()
    browser.wait_for_function(
        "() => /running/.test(document.querySelector('.wb-runs')?.innerText ?? '')"
        " && Number((/([0-9,]+)\\/30,000/.exec(document.querySelector('.wb-runs').innerText) ?? [0, '0'])[1]) > 0",
        timeout=200_000,
    )
    assert train.is_disabled()
    stop.click()
    browser.wait_for_function("() => /stopped/.test(document.querySelector('.wb-runs').innerText)", timeout=60_000)
    assert browser.locator(".jp-OutputArea-output img").first.evaluate("image => image.naturalWidth") > 500
    assert list((tmp_path / "runs" / "explore").glob("*/checkpoints/*"))
    assert_no_error(browser)
    run_all(browser, lab("inside_a_state"))
    wait_for_output(browser, "of the numbers asked for in 64 unseen books of 4 entries are right")
    assert browser.locator(".jp-OutputArea-output img").count() == 4
    assert_no_error(browser)
