"""A notebook in JupyterLab in a real browser: opened, run from the menu, its figure looked for."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",  # containers often run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def browser(tmp_path):
    """A page of a headless Chromium with an empty profile."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: it is in the dev group"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH; Debian: apt-get install chromium")
    with playwright.sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            str(tmp_path / "profile"), executable_path=CHROMIUM, headless=True, args=list(FLAGS)
        )
        yield context.new_page()
        context.close()


@pytest.fixture
def lab(root, tmp_path):
    """The address of a JupyterLab, with its token, that serves a folder holding a copy of start.ipynb at four steps."""
    text = (root / "notebooks" / "start.ipynb").read_text()
    assert "steps: int = 1600" in text
    served = tmp_path / "notebooks"
    served.mkdir()
    (served / "start.ipynb").write_text(text.replace("steps: int = 1600", "steps: int = 4"))
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
        yield f"{address}/lab/tree/start.ipynb?token={token}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_first_notebook_runs_in_jupyterlab_and_shows_its_figures(browser, lab):
    browser.goto(lab, timeout=120_000)
    browser.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    # Asked to run before its kernel is there, JupyterLab asks back which kernel to take.
    browser.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
    browser.get_by_role("menuitem", name="Run", exact=True).click()
    browser.get_by_text("Run All Cells", exact=True).click()
    # The live figure is below the cell that trains; the last cell says what was seen.
    browser.wait_for_selector(".jp-OutputArea-output img", timeout=400_000)
    browser.wait_for_function(
        "() => [...document.querySelectorAll('.jp-OutputArea-output')].some(o => o.innerText.includes('right in'))",
        timeout=400_000,
    )
    image = browser.locator(".jp-OutputArea-output img").first
    assert image.evaluate("image => image.naturalWidth") > 100
    assert (
        browser.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg").count()
        == 0
    )
