"""Collectives read from compiled programs, and from HLO as the TPU's compiler writes it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxft.planning.collectives import Collective, by_kind, collectives
from jaxft.sharding import make_mesh

DEVICES = 8
WIDTH = 32


@pytest.fixture(scope="module")
def read():
    """The collectives of a function of one [8 * WIDTH, WIDTH] float32 array, split by rows."""
    mesh = make_mesh({"fsdp": DEVICES})

    def of(function: Callable[[jax.Array], Any], out: P = P("fsdp")) -> list[Collective]:
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=P("fsdp"), out_specs=out, check_vma=False
        )
        x = jax.ShapeDtypeStruct((DEVICES * WIDTH, WIDTH), jnp.float32)
        return collectives(jax.jit(mapped).lower(x).compile().as_text())

    return of


def only(found: list[Collective]) -> Collective:
    assert len(found) == 1
    return found[0]


PART = 4 * WIDTH * WIDTH
"""Bytes that one device holds."""
KINDS = {
    "all-gather": (lambda x: lax.all_gather(x, "fsdp").sum(0), DEVICES * PART, 7 * PART),
    "all-reduce": (lambda x: lax.psum(x, "fsdp"), PART, 2 * PART * 7 / 8),
    "reduce-scatter": (lambda x: lax.psum_scatter(x, "fsdp", tiled=True), PART, PART * 7 / 8),
    "all-to-all": (lambda x: lax.all_to_all(x, "fsdp", 0, 0, tiled=True), PART, PART * 7 / 8),
    "collective-permute": (
        lambda x: lax.ppermute(x, "fsdp", [(i, (i + 1) % 8) for i in range(8)]),
        PART,
        PART,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_with_its_bytes(read, kind):
    function, size, moved = KINDS[kind]
    found = read(function)
    assert {one.kind for one in found} == {kind}
    assert sum(one.bytes for one in found) == size
    assert sum(one.moved_bytes for one in found) == pytest.approx(moved)
    assert all(one.count == 1 and not one.in_loop for one in found)
    assert all(one.devices == DEVICES for one in found)


def test_what_a_loop_does_counts_as_often_as_it_runs(read):
    def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return lax.psum(jnp.sin(x), "fsdp"), None

    def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return lax.scan(inner, x, None, length=5)[0], None

    one = only(read(lambda x: lax.scan(inner, x, None, length=7)[0]))
    assert (one.kind, one.count, one.in_loop, one.bytes) == ("all-reduce", 7, True, PART)
    nested = only(read(lambda x: lax.scan(outer, x, None, length=3)[0]))
    assert (nested.count, nested.in_loop) == (15, True)
    after = read(lambda x: lax.psum(lax.scan(inner, x, None, length=7)[0], "fsdp"))
    assert sorted((one.count, one.in_loop) for one in after) == [(1, False), (7, True)]
    assert by_kind(after)["all-reduce"] == {
        "count": 8,
        "bytes": 8 * 2 * PART * 7 / 8,
        "outside_loops_bytes": 2 * PART * 7 / 8,
    }


def test_a_branch_is_looked_into(read):
    def function(x: jax.Array) -> jax.Array:
        return lax.cond(x[0, 0] > 0, partial(lax.psum, axis_name="fsdp"), jnp.sin, x)

    assert only(read(function)).kind == "all-reduce"


def test_a_loop_of_unknown_length_with_a_collective_is_refused(read):
    def body(x: jax.Array) -> jax.Array:
        return lax.psum(x, "fsdp") / 16

    def function(x: jax.Array) -> jax.Array:
        return lax.while_loop(lambda x: x.sum() > 1, body, x)

    with pytest.raises(ValueError, match="no trip count"):
        read(function)
    assert read(lambda x: lax.while_loop(lambda x: x.sum() > 1, jnp.sin, x)) == []


TPU = """HloModule jit_step, is_scheduled=true, num_partitions=16

%body (state: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %state = (u32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=1
  %begin = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], /*index=3*/u32[]) \
collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %end = bf16[4,8]{1,0} collective-permute-done(%begin)
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %out = (u32[], bf16[4,8]{1,0}) tuple(%next, %end)
}

%condition (state.1: (u32[], bf16[4,8])) -> pred[] {
  %state.1 = (u32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %count = u32[]{:T(128)} get-tuple-element(%state.1), index=0
  %limit = u32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%count, %limit), direction=LT
}

%begun (p: f32[2]) -> (f32[2], u32[]) {
  %p = f32[2]{0:T(128)S(1)} parameter(0)
  %gather = f32[32]{0} all-gather(%p), channel_id=7, \
replica_groups=mesh['a'=4,'b'=4] {'a','b'}, dimensions={0}
  ROOT %call = (f32[2]{0}, u32[]{:S(2)}) custom-call(%gather), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion (p.1: f32[2]) -> f32[32] {
  %p.1 = f32[2]{0:T(128)S(1)} parameter(0)
  ROOT %gather.1 = f32[32]{0} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['a'=4,'b'=4] {'a','b'}, dimensions={0}
}

ENTRY %main (a: bf16[4,8], b: f32[2]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = f32[2]{0} parameter(1)
  %start = (f32[2]{0}, u32[]{:S(2)}) fusion(%b), kind=kCustom, calls=%begun
  %progress = f32[32]{0} fusion(%b), kind=kOutput, calls=%async_collective_fusion
  %zero = u32[] constant(0)
  %state.2 = (u32[], bf16[4,8]{1,0}) tuple(%zero, %a)
  %loop = (u32[], bf16[4,8]{1,0}) while(%state.2), condition=%condition, body=%body
  %part = f32[2]{0} reduce-scatter(%progress), channel_id=9, replica_groups=[4,4]<=[16]
  ROOT %result = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_hlo_as_the_tpu_compiler_writes_it():
    """Counters that step by two, collectives begun in one fusion and carried on in others, groups
    named by mesh axes.
    """
    found = {one.kind: one for one in collectives(TPU)}
    assert len(collectives(TPU)) == 3, "a collective's later steps are not others"
    assert found["collective-permute"].count == 4
    assert found["collective-permute"].bytes == 64
    assert found["all-gather"].bytes == 16 * 8
    assert found["all-gather"].devices == 16
    assert (found["reduce-scatter"].devices, found["reduce-scatter"].bytes) == (4, 128)


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("{}", 16),
        ("[4,4]<=[16]", 4),
        ("[8,2]<=[2,2,4]T(0,2,1)", 2),
        ("mesh['a'=4,'b'=4] {'b'}", 4),
        ("mesh['a'=1,'b'=2,'c'=8] {'c':(2)4}", 4),
        ("mesh['a'=1,'b'=2,'c'=8], device_ids=([8,2]T(1,0)) {'b'}", 2),
        ("mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a','b'}", 16),
    ],
)
def test_groups_of_devices_in_every_spelling(groups, devices):
    hlo = TPU.replace("[4,4]<=[16]", f"{groups}, use_global_device_ids=true, metadata={{x='y'}}")
    (found,) = (one for one in collectives(hlo) if one.kind == "reduce-scatter")
    assert found.devices == devices


def test_groups_in_an_unknown_spelling_are_not_taken_for_all_devices():
    with pytest.raises(ValueError, match="cannot be read: replica_groups=<4x4>"):
        collectives(TPU.replace("[4,4]<=[16]", "<4x4>"))
