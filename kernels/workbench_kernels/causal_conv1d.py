"""The short causal convolution in front of a scan: a reference, and shifted multiply-adds."""

import jax
import jax.numpy as jnp

from workbench_kernels.implementation import resolve
from workbench_kernels.mesh import neighbour, on_each_device, parts
from workbench_kernels.segments import find_runs
from workbench_kernels.shapes import require, require_steps, sum_dtype, widest_dtype


def causal_conv1d(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    state: jax.Array | None = None,
    segments: jax.Array | None = None,
    initial_segment: jax.Array | None = None,
    *,
    activation: str | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Depthwise causal convolution: y_t = bias + sum_k weight[:, k] x_{t - (K - 1) + k}, then silu if asked.

    x [B, T, C]; weight [C, K], its last column meeting the current token; bias [C]; state [B, K - 1, C], the inputs
    before the first, oldest first (None: zeros). Returns y [B, T, C] and the window for what follows.
    Sums in float32 or wider; y has x's dtype, the window that of the given state, or else x's.
    segments [B, T] are document ids: no tap reaches into another document; 0 is padding at a row's end, where y is 0.
    A given state belongs to document initial_segment [B] (None: to the row's first). The window returned holds each
    row's last real inputs, with zeros for those of another document than the last.
    Raises ValueError on shapes that do not fit, and on an activation or implementation that does not exist.
    """
    name = resolve("causal_conv1d", implementation)
    sizes = {}
    require("x", x, ("B", "T", "C"), sizes)
    require_steps("x", x)
    require("weight", weight, ("C", "K"), sizes)
    if bias is not None:
        require("bias", bias, ("C",), sizes)
    batch, time, channels = x.shape
    before = sizes["K"] - 1
    if state is None:
        state = jnp.zeros((batch, before, channels), x.dtype)
    elif state.shape != (batch, before, channels):
        raise ValueError(
            f"state has shape {state.shape}; x and weight need [B, K - 1, C] = {(batch, before, channels)}"
        )
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}; use None or 'silu'")
    runs = find_runs(segments, initial_segment, batch, time)

    compute = sum_dtype(x, weight, bias) if name == "xla" else widest_dtype()
    inputs = jnp.concatenate([state, x], axis=1)
    number = None if runs is None else jnp.pad(runs.number, [(0, 0), (before, 0)])
    devices = parts("T", time)
    if name == "xla" and devices > 1 and 0 < before <= time // devices:
        arguments = x, state, weight.astype(compute), None if runs is None else runs.number
        (y,) = on_each_device(_part, arguments, ("BTC", "BKC", "CK", "BT"), ("BTC",))
    else:
        y = {"xla": _xla, "reference": _reference}[name](inputs.astype(compute), weight.astype(compute), number)
    if bias is not None:
        y = y + bias.astype(compute)[None, None]
    if activation == "silu":
        y = jax.nn.silu(y)
    if runs is None:
        return y.astype(x.dtype), inputs[:, time:].astype(state.dtype)
    y = jnp.where(runs.real[..., None], y, 0)
    if time == 1:  # a choice, where gathering takes a CPU as long as the convolution
        window = jnp.where(runs.real[..., None], inputs[:, 1:], inputs[:, :-1])
        same = jnp.where(runs.real, number[:, 1:], number[:, :-1]) == number[:, -1:]
    else:
        places = runs.real.sum(axis=1, dtype=jnp.int32)[:, None] + jnp.arange(before, dtype=jnp.int32)[None]
        window = jnp.take_along_axis(inputs, places[..., None], axis=1)
        same = jnp.take_along_axis(number, places, axis=1) == number[:, -1:]
    return y.astype(x.dtype), jnp.where(same[..., None], window, 0).astype(state.dtype)


def _reference(inputs, weight, number):
    """Token by token: the K inputs that end at it, those of its own document only."""
    taps = weight.shape[1]

    def one(t):
        window = jax.lax.dynamic_slice_in_dim(inputs, t, taps, axis=1)
        if number is not None:
            numbers = jax.lax.dynamic_slice_in_dim(number, t, taps, axis=1)
            window = jnp.where((numbers == numbers[:, -1:])[..., None], window, 0)
        return jnp.einsum("bkc,ck->bc", window, weight)

    return jnp.moveaxis(jax.lax.map(one, jnp.arange(inputs.shape[1] - taps + 1)), 0, 1)


def _part(x, state, weight, number):
    """A device's part of a sequence, whose window is the end of the part before, or the state."""
    before = state.shape[1]
    first = jax.lax.axis_index("sequence") == 0
    window = jnp.where(first, state, neighbour(x[:, -before:], 1).astype(state.dtype))
    inputs = jnp.concatenate([window, x], axis=1)
    if number is not None:  # before the first part stands run 0, which the state belongs to
        number = jnp.concatenate([neighbour(number[:, -before:], 1), number], axis=1)
    return (_xla(inputs.astype(weight.dtype), weight, number),)


@jax.custom_vjp
def _xla(inputs, weight, number):
    """K shifted multiply-adds, which XLA fuses into one pass; its own convolution is slower on CPU."""
    y = 0
    for k in range(weight.shape[1]):
        y = y + _tap(inputs, weight.shape[1], k, number) * weight[None, None, :, k]
    return y


def _tap(inputs, taps, k, number):
    """What tap k reads at each step: the input taps - 1 - k steps back, or 0 where that is another document's."""
    time = inputs.shape[1] - taps + 1
    tap = inputs[:, k : k + time]
    if number is None or k == taps - 1:
        return tap
    same = number[:, k : k + time] == number[:, taps - 1 :]
    return jnp.where(same[..., None], tap, 0)


def _xla_forward(inputs, weight, number):
    return _xla(inputs, weight, number), (inputs, weight, number)


def _xla_backward(saved, dy):
    """Each input gathers from the steps that read it, in one pass; autodiff pads and adds once a tap."""
    inputs, weight, number = saved
    taps, long = weight.shape[1], inputs.shape[1]
    around = jnp.pad(dy, [(0, 0), (taps - 1, taps - 1), (0, 0)])
    if number is not None:
        reading = jnp.pad(number[:, taps - 1 :], [(0, 0), (taps - 1, taps - 1)])
    dinputs = 0
    for k in range(taps):
        first = taps - 1 - k
        part = around[:, first : first + long]
        if number is not None and k < taps - 1:
            part = jnp.where((reading[:, first : first + long] == number)[..., None], part, 0)
        dinputs = dinputs + part * weight[None, None, :, k]
    dweight = [jnp.sum(_tap(inputs, taps, k, number) * dy, axis=(0, 1)) for k in range(taps)]
    return dinputs, jnp.stack(dweight, axis=1), None


_xla.defvjp(_xla_forward, _xla_backward)
