"""Bytes moved, counted in a program small enough to count by hand."""

import pytest

from nanogpt_jax.run.compile_only.hlo_traffic import traffic

PROGRAM = """\
HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%cond (p: (u32[], bf16[8,4])) -> pred[] {
  %p = (u32[], bf16[8,4]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %limit = u32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (u32[], bf16[8,4])) -> (u32[], bf16[8,4]) {
  %p = (u32[], bf16[8,4]{1,0}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%p), index=1
  %start = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %passed = bf16[8,4]{1,0} collective-permute-done(%start)
}

%async.1 (p0: f32[4]) -> f32[16] {
  %p0 = f32[4]{0} parameter(0)
  ROOT %gathered = f32[16]{0} all-gather(%p0), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
}

%async.2 (p0: f32[4]) -> f32[16] {
  %p0 = f32[4]{0} parameter(0)
  ROOT %gathered = f32[16]{0} all-gather(%p0), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
}

ENTRY %main (w: f32[4], x: bf16[8,4]) -> f32[16] {
  %w = f32[4]{0} parameter(0)
  %x = bf16[8,4]{1,0} parameter(1)
  %one = f32[16]{0:S(1)} fusion(%w), kind=kCustom, calls=%async.1
  %two = f32[16]{0:S(1)} fusion(%w), kind=kCustom, calls=%async.2
  %reduced = (f32[16]{0}, f32[4]{0}) all-reduce(%two, %w), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%sum
  %share = f32[2]{0} reduce-scatter(%two), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  %t = (u32[], bf16[8,4]{1,0}) tuple(%w, %x)
  %loop = (u32[], bf16[8,4]{1,0}) while(%t), condition=%cond, body=%body
}
"""


def test_collectives_are_counted_by_what_each_device_sends():
    sent = traffic(PROGRAM).collectives
    assert sent == pytest.approx(
        {
            "all-gather": 64 * 3 / 4,  # two steps of one gather, by their channel
            "all-reduce": 2 * (64 + 16) * 3 / 4,
            "reduce-scatter": 8 * 8 * 7 / 8,
            "collective-permute": 5 * 64,  # in a loop that turns five times
        }
    )


def test_memory_traffic_leaves_out_on_chip_memory():
    """Two fusions read 16 bytes each, the sums write 80 + 8 and read 16, and the loop reads 64 and writes twice that."""
    assert traffic(PROGRAM).memory == 2 * 16 + (80 + 16) + 8 + 5 * (64 + 128)


TWO_HOSTS = """\
HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (w: f32[4], x: bf16[8,4]) -> f32[16] {
  %w = f32[4]{0} parameter(0)
  %x = bf16[8,4]{1,0} parameter(1)
  %inside = ((f32[4]{0}, bf16[8,4]{1,0}), (f32[16]{0}, /*index=1*/bf16[8,16]{1,0})) all-gather-start(%w, %x), channel_id=1, replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, dimensions={0}
  %across = f32[16]{0} all-reduce-start(%w), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%sum
  %both = (f32[16]{0}, f32[16]{0}) all-reduce-start(%w, %w), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  %share = ((f32[64]{0}), f32[8]{0}) reduce-scatter-start(%w), channel_id=4, replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%sum
  %all = ((f32[16]{0}), f32[16]{0}) all-to-all-start(%w), channel_id=5, replica_groups=[1,8]<=[8]
  %next = (bf16[8,4]{1,0}, bf16[8,4]{1,0}) collective-permute-start(%x), channel_id=6, source_target_pairs={{0,1},{3,4}}
  %near = (bf16[8,4]{1,0}, bf16[8,4]{1,0}) collective-permute-start(%x), channel_id=7, source_target_pairs={{0,1},{1,0}}
}
"""


def test_of_two_hosts_each_array_crosses_the_network_once_for_all_devices_of_a_host():
    moved = traffic(TWO_HOSTS, of_a_host=4)
    assert moved.collectives == pytest.approx(
        {
            "all-gather": (64 + 256) * 3 / 4,  # two arrays in one
            "all-reduce": 2 * 64 / 2 + 2 * 128 * 7 / 8,
            "reduce-scatter": 8 * 32 * 7 / 8,
            "all-to-all": 64 * 7 / 8,
            "collective-permute": 2 * 64,
        }
    )
    # Half of what a host of four has to get, and four take their part: an eighth of each array, and twice to reduce it.
    once = 2 * 64 / 2 + 2 * 128 / 8 + 8 * 32 / 8 + 64 * 4 / 8 + 64
    assert moved.between_hosts == pytest.approx(once)


def test_in_one_host_nothing_crosses_the_network():
    assert traffic(TWO_HOSTS).between_hosts == traffic(TWO_HOSTS, of_a_host=8).between_hosts == 0
