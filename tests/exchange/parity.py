"""`make parity TORCH=PYTHON`: the models of peers.py read here, a row each, and written back for transformers to load.

Held to: logits within 2e-4 in float32 at a spread of 3, or three times transformers' own float32-to-float64 difference
if that is larger, both as read here and as transformers loads what was written here (exported); mean loss within
1e-5; the same 64 greedy tokens; gradients' norms within 1e-3.
"""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from workbench.exchange import safetensors
from workbench.exchange.families import FAMILIES
from workbench.exchange.huggingface import from_huggingface, places, to_huggingface
from workbench.generate import generate
from workbench.model.names import named

LOGITS, LOSS, GRADIENT = 2e-4, 1e-5, 1e-3


def mean_loss(model, tokens):
    logits = model.logits(model(tokens).hidden)[:, :-1]
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean(), logits


def gradient_error(model, gradients, theirs, family):
    """Largest relative error of a parameter's gradient norm; theirs are put together as their parameters are."""
    worst = 0.0
    for place in places(model.config, family):
        mine = gradients[place.ours] if place.period is None else gradients[place.ours][place.period]
        norm = np.sqrt(sum(float((theirs[f"gradient.{name}"].astype(np.float64) ** 2).sum()) for name in place.theirs))
        worst = max(worst, abs(float(np.linalg.norm(np.asarray(mine, np.float64))) - norm) / norm)
    return worst


def row(folder: Path) -> dict:
    """The errors of one model, which is also written to `exported`."""
    model, _, kind = from_huggingface(folder)
    expected = safetensors.read(folder / "expected.safetensors")
    more = safetensors.read(folder / "gradients.safetensors")
    tokens = jnp.array(expected["tokens"], jnp.int32)
    (loss, _), gradients = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(model, tokens)
    logits = np.asarray(jax.jit(lambda model, tokens: model.logits(model(tokens).hidden))(model, tokens))
    greedy = generate(model, list(expected["greedy"][:, :7]), 64).tokens
    to_huggingface(model, folder / "exported")
    return {
        "family": folder.name,
        "spread": float(logits.std()),
        "logits": float(np.abs(logits - expected["logits"]).max()),
        "their own": float(np.abs(expected["logits"] - more["logits64"]).max()),
        "loss": abs(float(loss) - float(expected["loss"])),
        "gradient": gradient_error(model, named(gradients), more, FAMILIES[kind]),
        "greedy": float(np.mean(np.stack(greedy) == expected["greedy"][:, 7:])),
    }


def main(torch: str, place: Path, *more: str) -> int:
    """Prints the table; returns how many families failed. torch: a Python that has it and transformers.

    more: arguments of peers.py, such as --only=llama,bamba.
    """
    peers = str(Path(__file__).with_name("peers.py"))
    subprocess.run([torch, peers, str(place), *more], check=True, stdout=subprocess.DEVNULL)
    rows = [row(folder.parent) for folder in sorted(place.glob("*/config.json"))]
    subprocess.run([torch, peers, str(place), "--reload"], check=True)
    failed = 0
    print("family                       spread  logits   (theirs) loss     gradient greedy  exported")
    for each in rows:
        folder = place / each["family"]
        logits = safetensors.read(folder / "exported" / "logits.safetensors")["logits"]
        back = np.abs(logits - safetensors.read(folder / "expected.safetensors")["logits"]).max()
        limit = max(LOGITS, 3 * each["their own"])
        held = each["logits"] <= limit and each["loss"] <= LOSS and each["gradient"] <= GRADIENT
        held &= each["greedy"] == 1 and back <= limit
        failed += not held
        print(
            f"{each['family']:28s} {each['spread']:6.2f}  {each['logits']:.1e}  {each['their own']:.1e}  "
            f"{each['loss']:.1e}  {each['gradient']:.1e}  {each['greedy']:6.1%}  {back:.1e}"
            + ("" if held else "  FAILED"),
            flush=True,
        )
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
