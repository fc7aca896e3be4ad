"""Settings for every test, made before jax is imported and inherited by the processes that tests start."""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
STARTED = pytest.StashKey[float]()
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

# On the CPU, unless told otherwise; compiled programs are kept, since most tests compile far longer than they run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# An axis too few is an error, never a silent broadcast.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

# Shapes and types in annotations are checked wherever a test calls the two packages.
install_import_hook(
    ["workbench", "workbench_kernels"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


@pytest.fixture
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture
def x64():
    """Makes float64 the default within one test, for references."""
    import jax

    with jax.enable_x64(True):
        yield


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
def lettered(tmp_path) -> Callable[[str], Path]:
    """Of a golden model of transformers, by its name: a copy with a tokenizer of the lower-case letters beside it."""
    from tokenizers import Tokenizer, decoders, models

    def copied(name: str) -> Path:
        folder = Path(shutil.copytree(ROOT / "tests" / "exchange" / "golden" / name, tmp_path / name))
        letters = {"<|endoftext|>": 0, "[UNK]": 1} | {chr(97 + i): 2 + i for i in range(26)}
        fast = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="[UNK]"))
        fast.decoder = decoders.Fuse()
        fast.save(str(folder / "tokenizer.json"))
        return folder

    return copied


def pytest_addoption(parser):
    parser.addoption("--record", type=Path, help="add this run's machine, counts and seconds to a JSON file")


def pytest_sessionstart(session):
    session.config.stash[STARTED] = time.perf_counter()


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Writes the record of `make test-all`: one entry a part, so that a second environment adds its own."""
    path = config.getoption("record")
    if path is None or hasattr(config, "workerinput"):  # a worker of pytest-xdist has only a share of the counts
        return
    stats = terminalreporter.stats
    run = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "jax": version("jax"),
        "tests": config.getoption("markexpr") or "all",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "exit_status": int(exitstatus),
        "counts": {
            kind: len(stats.get(kind, ())) for kind in ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
        },
        "skipped_because": sorted({report.longrepr[2] for report in stats.get("skipped", ())}),
        "seconds": round(time.perf_counter() - config.stash[STARTED], 1),
    }
    record = json.loads(path.read_text()) if path.exists() else {"machine": machine(), "runs": []}
    record["runs"].append(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def machine() -> dict[str, str | int]:
    """The processor's name, the cores this process may use, and the system."""
    from workbench.train.environment import cpus, processor

    return {"cpu": processor(), "cores": cpus(), "system": f"{sys.platform} {platform.machine()}"}
