"""Next-token loss. A loss is `loss(model, batch) -> (sum, metrics)`; the step divides once by `metrics["weight"]`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from workbench.model.language_model import LanguageModel
from workbench.model.norm import wide
from workbench.model.product import product

CHUNK = 8192  # logits of the vocabulary that are held at a time


def loss(
    model: LanguageModel, batch: dict[str, jax.Array], *, z_loss: float = 0.0, remat: str = "none"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the targets' negative log-likelihoods (nats), and the weights' sum.

    With z_loss, that times the squared logarithm of the softmax's total is added (Chowdhery et al. 2022,
    arXiv:2204.02311, section 5), and the metrics have the likelihoods' sum alone as `nats`.
    """
    output = model(batch["tokens"], segments=batch.get("segments"), remat=remat)
    total, chosen = _of_targets(output.hidden, model.head(), batch["targets"], CHUNK)
    nats = jnp.sum((total - chosen) * batch["weights"])
    metrics = {"weight": jnp.sum(batch["weights"]), "nats": nats, **output.aux}
    return nats + (z_loss * jnp.sum(total**2 * batch["weights"]) if z_loss else 0), metrics


def negative_log_likelihood(
    hidden: Float[Array, "B T D"], head: Float[Array, "D V"], targets: Int[Array, "B T"], chunk: int = CHUNK
) -> Float[Array, "B T"]:
    """-log softmax(hidden head)[target], float32 or wider, at most `chunk` logits a token held at a time."""
    total, chosen = _of_targets(hidden, head, targets, chunk)
    return total - chosen


def _of_targets(hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """(logarithm of the softmax's total, logit of the target), each [B, T]."""
    vocabulary = head.shape[1]
    if vocabulary <= chunk:
        return _of_logits(product(hidden, head.astype(hidden.dtype), wide(hidden).dtype), targets)
    # Rounded after the look-up, so that the gradients of one target add up in the head's own dtype.
    chosen = jnp.take(head, targets, axis=1, mode="clip").transpose(1, 2, 0).astype(hidden.dtype)
    of_target = jnp.sum(wide(hidden) * wide(chosen), axis=-1)
    head = head.astype(hidden.dtype)
    chunks = -(-vocabulary // chunk)
    padded = jnp.pad(head, ((0, 0), (0, chunks * chunk - vocabulary)))
    columns = jnp.moveaxis(padded.reshape(-1, chunks, chunk), 1, 0)

    @jax.checkpoint
    def body(carry, inputs):
        highest, total = carry
        index, part = inputs
        real = index * chunk + jnp.arange(chunk) < vocabulary
        logits = jnp.where(real[None, None], product(hidden, part, wide(hidden).dtype), -jnp.inf)
        new = jnp.maximum(highest, jax.lax.stop_gradient(logits.max(axis=-1)))
        total = total * jnp.exp(highest - new) + jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
        return (new, total), None

    start = (jnp.full(targets.shape, -1e30, wide(hidden).dtype), jnp.zeros(targets.shape, wide(hidden).dtype))
    (highest, total), _ = jax.lax.scan(body, start, (jnp.arange(chunks), columns))
    return highest + jnp.log(total), of_target


@jax.custom_vjp
def _of_logits(logits, targets):
    return _of_logits_forward(logits, targets)[0]


def _of_logits_forward(logits, targets):
    highest = logits.max(axis=-1)
    total = highest + jnp.log(jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (total, chosen), (logits, total, targets)


def _of_logits_backward(saved, gradients):
    """Softmax and one-hot in one pass: autodiff adds a scatter to zeros of the logits' size."""
    logits, total, targets = saved
    of_total, of_chosen = (gradient[..., None] for gradient in gradients)
    chosen = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    likelihood = jnp.exp(logits - total[..., None])
    return of_total * (likelihood - chosen) + (of_total + of_chosen) * chosen, None  # of the loss alone, the sum is 0


_of_logits.defvjp(_of_logits_forward, _of_logits_backward)
