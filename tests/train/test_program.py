"""What is read from a program's text, on texts whose numbers are known."""

import jax
import jax.numpy as jnp
import pytest

from workbench.train.program import Traffic, read

LOOP = """HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%inner (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %wide = bf16[16,8]{1,0} all-gather(%x), channel_id=1, replica_groups=GATHERED, dimensions={0}
  %y = (f32[4,16]{1,0}, s8[64]{0}) custom-call(%x, %wide), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  ROOT %out = (s32[], bf16[4,8]{1,0}) tuple(%i, %x)
}

%outer (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %while.1 = (s32[], bf16[4,8]{1,0}) while(%p.1), condition=%always, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

ENTRY %main (w: f32[16,4]) -> f32[16,4] {
  %w = f32[16,4]{1,0} parameter(0)
  %while.2 = (s32[], /*index=1*/bf16[4,8]{1,0}) while(%start), condition=%always, body=%outer, backend_config={KNOWN}
  %sum-start = (f32[16,4]{1,0}, f32[2]{0}) all-reduce-start(%w, %two), channel_id=2, replica_groups={}, to_apply=%sum
  %two = f32[2]{0} constant({1, 2})
  %part = f32[4,4]{1,0} reduce-scatter(%w), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%sum
  %own = f32[16,4]{1,0} all-reduce(%w), channel_id=4, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%sum
  %next = f32[16,4]{1,0} collective-permute(%w), channel_id=5, source_target_pairs={{0,1},{1,0}}
  ROOT %dot.1 = f32[16,16]{1,0} dot(%w, %w), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}
"""  # noqa: E501
TWICE = '"known_trip_count":{"n":"2"}'


@pytest.mark.parametrize(
    ("groups", "within"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", True),
        ("[2,4]<=[8]", True),
        ("[2,4]<=[4,2]T(1,0)", False),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", True),
        ("mesh['fsdp'=4,'data'=2] {'fsdp'}", False),
    ],
)
def test_bytes_and_products_in_loops_count_as_often_as_they_run(groups, within):
    program = read(LOOP.replace("GATHERED", groups).replace("KNOWN", TWICE), devices=8, node=4)
    gathered = 2 * 3 * 3 * 4 * 8 * 2  # trips, the others of four, bfloat16
    assert program.traffic["all-gather"] == Traffic(6, gathered if within else 0, 0 if within else gathered)
    assert program.flops == 2 * 3 * 2 * 4 * 16 * 8 + 2 * 16 * 16 * 4


def test_each_kind_sends_what_a_ring_does_and_one_device_alone_sends_nothing():
    traffic = read(LOOP.replace("GATHERED", "[2,4]<=[8]").replace("KNOWN", TWICE), devices=8, node=4).traffic
    assert traffic["all-reduce"] == Traffic(1, 0, 2 * 7 / 8 * (64 + 2) * 4)  # over both nodes
    assert traffic["reduce-scatter"] == Traffic(1, 3 / 4 * 64 * 4, 0)
    assert traffic["collective-permute"] == Traffic(1, 64 * 4, 0)


def test_a_loop_of_unknown_trips_is_refused():
    with pytest.raises(ValueError, match=r"all-gather.* is in a loop, and the program does not say how often"):
        read(LOOP.replace("GATHERED", "[2,4]<=[8]").replace("KNOWN", ""), devices=8, node=4)


def test_products_of_a_compiled_scan_are_those_of_its_every_step():
    def step(x, w):
        return jnp.tanh(x @ w), None

    def loss(x, ws):
        return jax.lax.scan(step, x, ws)[0].sum()

    x, ws = jnp.ones((4, 8)), jnp.ones((5, 8, 8))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, ws).compile()
    assert read(compiled.as_text(), 1, 1).flops == 3 * 5 * 2 * 4 * 8 * 8
