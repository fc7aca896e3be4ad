"""Next-token loss. A loss is `loss(model, batch) -> (sum, metrics)`; the step divides once by `metrics["weight"]`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from workbench_kernels.mesh import divide, parts

from workbench.model.language_model import LanguageModel
from workbench.model.norm import wide
from workbench.model.product import product

CHUNK = 8192  # logits of a token that a device holds at a time


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
    """-log softmax(hidden head)[target], float32 or wider; a device holds `chunk` logits of a token at a time."""
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
    # Devices that divide the vocabulary each go over their own part of it, and their totals meet at the end.
    over = parts("V", vocabulary)
    own = vocabulary // over
    chunks = -(-own // chunk)
    columns = jnp.pad(head.astype(hidden.dtype).reshape(-1, over, own), ((0, 0), (0, 0), (0, chunks * chunk - own)))
    columns = jnp.moveaxis(columns.reshape(-1, over, chunks, chunk), 2, 0)

    @jax.checkpoint
    def body(carry, inputs):
        highest, total = carry
        index, part = inputs
        real = index * chunk + jnp.arange(chunk) < own
        logits = product(hidden, part.reshape(-1, over * chunk), wide(hidden).dtype)
        logits = divide(logits.reshape(*targets.shape, over, chunk), "BTV_")
        logits = jnp.where(real[None, None, None], logits, -jnp.inf)
        new = jnp.maximum(highest, jax.lax.stop_gradient(logits.max(axis=-1)))
        total = total * jnp.exp(highest - new) + jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
        return (new, total), None

    shape, dtype = (*targets.shape, over), wide(hidden).dtype
    (highest, total), _ = jax.lax.scan(
        body, (jnp.full(shape, -1e30, dtype), jnp.zeros(shape, dtype)), (jnp.arange(chunks), columns)
    )
    top = highest.max(axis=-1)
    return top + jnp.log(jnp.sum(total * jnp.exp(highest - top[..., None]), axis=-1)), of_target


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
