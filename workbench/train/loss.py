"""Next-token loss. A loss is `loss(model, batch) -> (sum, metrics)`; the step divides once by `metrics["weight"]`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from workbench.model.language_model import LanguageModel
from workbench.model.norm import wide

CHUNK = 8192  # logits of the vocabulary that are held at a time


def loss(model: LanguageModel, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the targets' negative log-likelihoods (nats), and the weights' sum."""
    output = model(batch["tokens"], segments=batch.get("segments"))
    nats = negative_log_likelihood(output.hidden, model.head(), batch["targets"])
    return jnp.sum(nats * batch["weights"]), {"weight": jnp.sum(batch["weights"]), **output.aux}


def negative_log_likelihood(
    hidden: Float[Array, "B T D"], head: Float[Array, "D V"], targets: Int[Array, "B T"], chunk: int = CHUNK
) -> Float[Array, "B T"]:
    """-log softmax(hidden head)[target], float32 or wider, over chunks of the vocabulary: never holds [B, T, V]."""
    vocabulary = head.shape[1]
    head = head.astype(hidden.dtype)
    of_target = (
        jnp.sum(wide(hidden) * wide(jnp.take(head, targets, axis=1, mode="clip").transpose(1, 2, 0)), axis=-1)
        if vocabulary > chunk
        else None
    )
    product = partial(jnp.matmul, preferred_element_type=wide(hidden).dtype)
    if vocabulary <= chunk:
        logits = product(hidden, head)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen
    chunks = -(-vocabulary // chunk)
    padded = jnp.pad(head, ((0, 0), (0, chunks * chunk - vocabulary)))
    columns = jnp.moveaxis(padded.reshape(-1, chunks, chunk), 1, 0)

    @jax.checkpoint
    def body(carry, inputs):
        highest, total = carry
        index, part = inputs
        real = index * chunk + jnp.arange(chunk) < vocabulary
        logits = jnp.where(real[None, None], product(hidden, part), -jnp.inf)
        new = jnp.maximum(highest, jax.lax.stop_gradient(logits.max(axis=-1)))
        total = total * jnp.exp(highest - new) + jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
        return (new, total), None

    start = (jnp.full(targets.shape, -1e30, wide(hidden).dtype), jnp.zeros(targets.shape, wide(hidden).dtype))
    (highest, total), _ = jax.lax.scan(body, start, (jnp.arange(chunks), columns))
    return highest + jnp.log(total) - of_target
