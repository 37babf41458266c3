"""`bench train --breakdown`: every moment of an update is counted once, and under the name of what is done in it."""

import contextlib
import io
import json
import types

import pytest

from nanogpt_jax.bench import command
from nanogpt_jax.bench.trace import (
    KINDS,
    UPDATES,
    Event,
    Work,
    broken_down,
    events_of_planes,
    spent,
    work_of_instructions,
    work_of_operator,
)
from nanogpt_jax.core.errors import UserError

TINY = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=2)
FLAGS = [f"--{name}={value}" for name, value in TINY.items()] + ["--accelerator=cpu", "--data_dir=none"]

# Of a compiled step of XLA:CPU, shortened; the names are as they were.
PROGRAM = """\
HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[768,128]{1,0})->(f32[])}

%region_5.9 (reduce_sum.1: f32[], reduce_sum.2: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%reduce_sum.1, %reduce_sum.2)
}

%fused_computation.112 (param_0.163: f32[768,128], param_1.166: f32[]) -> f32[768] {
  %param_0.163 = f32[768,128]{1,0} parameter(0)
  %param_1.166 = f32[] parameter(1)
  ROOT %reduce_sum.191 = f32[768]{0} reduce(%param_0.163, %param_1.166), dimensions={1}, to_apply=%region_5.9
}

%fused_computation.110 (param_0.160: f32[768,128], param_1.163: f32[128,512]) -> f32[768,512] {
  %param_0.160 = f32[768,128]{1,0} parameter(0)
  %param_1.163 = f32[128,512]{1,0} parameter(1)
  ROOT %dot_general.45 = f32[768,512]{1,0} dot(%param_0.160, %param_1.163), lhs_contracting_dims={1}
}

%fused_computation.354 (param_0.652: f32[768,384]) -> f32[12,4,64,32] {
  %param_0.652 = f32[768,384]{1,0} parameter(0)
  %bitcast.84 = f32[12,64,12,32]{3,2,1,0} bitcast(%param_0.652)
  %transpose.97 = f32[12,12,64,32]{3,1,2,0} transpose(%bitcast.84), dimensions={0,2,1,3}
  %copy.100 = f32[12,12,64,32]{3,2,1,0} copy(%transpose.97)
  ROOT %slice.11 = f32[12,4,64,32]{3,2,1,0} slice(%copy.100), slice={[0:12], [0:4], [0:64], [0:32]}
}

%fused_computation.343 (param_0.622: f32[768,512]) -> f32[768,512] {
  %param_0.622 = f32[768,512]{1,0} parameter(0)
  %constant.742 = f32[] constant(0.707106769)
  %broadcast.567 = f32[768,512]{1,0} broadcast(%constant.742), dimensions={}
  %mul.469 = f32[768,512]{1,0} multiply(%param_0.622, %broadcast.567)
  ROOT %erf.3 = f32[768,512]{1,0} erf(%mul.469)
}

%fused_computation.12 (param_0.1: f32[128,512], param_1.1: f32[128,512]) -> (f32[128,512], f32[128,512]) {
  %param_0.1 = f32[128,512]{1,0} parameter(0)
  %param_1.1 = f32[128,512]{1,0} parameter(1)
  %add.9 = f32[128,512]{1,0} add(%param_0.1, %param_1.1)
  ROOT %tuple.1 = (f32[128,512]{1,0}, /*index=1*/f32[128,512]{1,0}) tuple(%add.9, %param_1.1)
}

ENTRY %main.4 (p.1: f32[768,128], p.2: f32[128,512]) -> f32[] {
  %ynn_fusion.112 = f32[768]{0} fusion(%p.1, %c), kind=kCustom, calls=%fused_computation.112, metadata={op_name="jit(train_step)/jvp(GPT.loss)/GPT.hidden/GPT._blocks/h_0/ln_2/reduce_sum" stack_frame_id=35}
  %ynn_fusion.111 = f32[768]{0} fusion(%p.1, %c), kind=kCustom, calls=%fused_computation.112, metadata={op_name="jit(train_step)/jvp(GPT.loss)/GPT.hidden/GPT._blocks/h_0/attn/reduce_max"}
  %ynn_fusion.110 = f32[768,512]{1,0} fusion(%p.1, %p.2), kind=kCustom, calls=%fused_computation.110, metadata={op_name="jit(train_step)/jvp(GPT.loss)/GPT.hidden/GPT._blocks/h_0/mlp/c_fc/dot_general"}
  %ynn_fusion.117 = f32[768,512]{1,0} fusion(%p.1, %p.2), kind=kCustom, calls=%fused_computation.110, metadata={op_name="jit(train_step)/jvp(GPT.loss)/GPT.hidden/GPT._blocks/h_3/attn/c_attn/dot_general"}
  %ynn_fusion.115 = f32[768,512]{1,0} fusion(%p.1, %p.2), kind=kCustom, calls=%fused_computation.110, metadata={op_name="jit(train_step)/transpose(jvp(GPT.loss))/GPT.hidden/GPT._blocks/h_0/attn/bhts,bhsd->bhtd/dot_general"}
  %dot_general.102 = f32[65,128]{1,0} dot(%a, %b), lhs_contracting_dims={0}, metadata={op_name="jit(train_step)/transpose(jvp(GPT.loss))/GPT.head/dot_general" stack_frame_id=185}
  %copy_slice_fusion.11 = f32[12,4,64,32]{3,2,1,0} fusion(%ynn_fusion.117), kind=kLoop, calls=%fused_computation.354, metadata={op_name="jit(train_step)/jvp(GPT.loss)/GPT.hidden/GPT._blocks/h_0/attn/slice"}
  %multiply_erf_fusion.3 = f32[768,512]{1,0} fusion(%ynn_fusion.110), kind=kLoop, calls=%fused_computation.343, metadata={op_name="jit(train_step)/jvp(GPT.loss)/GPT.hidden/GPT._blocks/h_0/mlp/erf"}
  %multiply_add_fusion.12 = (f32[128,512]{1,0}, /*index=1*/f32[128,512]{1,0}) fusion(%p.2, %p.2), kind=kLoop, calls=%fused_computation.12, metadata={op_name="jit(train_step)/optimizer/add" stack_frame_id=255}
  %while.7 = (s32[], f32[65,128]{1,0}) while(%tuple.5), condition=%region_5.9, body=%region_5.9, metadata={op_name="jit(train_step)/while"}
  ROOT %copy.185 = s32[] copy(%count.1)
}
"""  # noqa: E501 (an instruction is a line)


def test_what_instructions_of_xla_do_is_in_the_program():
    assert work_of_instructions(PROGRAM) | EXPECTED == work_of_instructions(PROGRAM)


EXPECTED = {
    "ynn_fusion.112": Work("reductions", "forward ln_2/reduce_sum (ynn_fusion)"),
    "ynn_fusion.111": Work("attention", "forward attn/reduce_max (ynn_fusion)"),
    "ynn_fusion.110": Work("products", "forward mlp/c_fc/dot_general (ynn_fusion)"),
    "ynn_fusion.117": Work("products", "forward attn/c_attn/dot_general (ynn_fusion)"),
    "ynn_fusion.115": Work("attention", "backward attn/bhts,bhsd->bhtd/dot_general (ynn_fusion)"),
    "dot_general.102": Work("products", "backward dot_general (dot_general)"),
    "copy_slice_fusion.11": Work("copies", "forward attn/slice (copy_slice_fusion)"),
    "multiply_erf_fusion.3": Work("elementwise", "forward mlp/erf (multiply_erf_fusion)"),
    "multiply_add_fusion.12": Work("optimizer", "optimizer/add (multiply_add_fusion)"),
    "while.7": Work(None, "while (while)"),
    "copy.185": Work("copies", "(copy)"),
}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("products", "aten::mm aten::addmm extern_kernels.mm mkl::_mkl_linear mkldnn::_linear_pointwise"),
        (
            "attention",
            "aten::scaled_dot_product_attention aten::_scaled_dot_product_flash_attention_for_cpu_backward aten::bmm "
            "aten::_softmax_backward_data "
            "graph_0_cpp_fused__scaled_dot_product_flash_attention_for_cpu_backward_transpose_view_4",
        ),
        (
            "reductions",
            "aten::native_layer_norm aten::native_layer_norm_backward aten::_log_softmax aten::sum "
            "aten::nll_loss_forward aten::linalg_vector_norm aten::_foreach_norm "
            "graph_0_cpp_fused_add_embedding_native_layer_norm_0 "
            "graph_0_cpp_fused__unsafe_view_add_native_layer_norm_native_layer_norm_backward_5",
        ),
        (
            "copies",
            "aten::copy_ aten::cat aten::index_select aten::fill_ aten::embedding_dense_backward "
            "graph_0_cpp_fused_cat_transpose_view_5 graph_0_cpp_fused__unsafe_view_clone_1",
        ),
        (
            "elementwise",
            "aten::gelu aten::gelu_backward aten::add aten::mul_ aten::div graph_0_cpp_fused__unsafe_view_gelu_2 "
            "graph_0_cpp_fused__unsafe_view_gelu_gelu_backward_view_2",
        ),
        ("optimizer", "optimizer Optimizer.step#AdamW.step Optimizer.zero_grad#AdamW.zero_grad"),
        (
            None,  # only what lies within these, or nothing
            "updates aten::expand aten::transpose aten::t aten::view aten::empty aten::to aten::contiguous "
            "autograd::engine::evaluate_function:_MmBackward0 MmBackward0 torch::autograd::AccumulateGrad "
            "CompiledFunctionBackward CompiledFunction "
            "Torch-Compiled_Region:_0/0 ScaledDotProductFlashAttentionForCpuBackward0",
        ),
    ],
)
def test_what_operators_of_pytorch_do_is_in_their_names(kind, names):
    named = {name: work_of_operator(name).kind for name in names.split()}
    assert named == dict.fromkeys(named, kind)


def test_kernels_of_all_graphs_are_one_work():
    assert work_of_operator("graph_1_cpp_fused_gelu_7").name == "cpp_fused_gelu"


def event(thread, start, stop, kind, name="it"):
    return Event(thread, start, stop, Work(kind, name))


def kinds_of(events, start, stop):
    found = spent(events, start, stop)
    assert sum(found.values()) == pytest.approx(stop - start)
    sums = {kind: sum(time for work, time in found.items() if work.kind == kind) for kind in KINDS}
    return {kind: time for kind, time in sums.items() if time > 0}


def test_where_nothing_runs_is_waiting():
    assert kinds_of([], 1.0, 3.0) == {"waiting": 2.0}
    told = kinds_of([event(0, 0.0, 2.0, "products"), event(0, 3.0, 4.0, "copies")], 1.0, 5.0)
    assert told == pytest.approx({"products": 1.0, "copies": 1.0, "waiting": 2.0})


def test_threads_share_the_time():
    events = [event(0, 0.0, 4.0, "products"), event(1, 1.0, 3.0, "copies"), event(2, 2.0, 3.0, "copies")]
    assert kinds_of(events, 0.0, 4.0) == pytest.approx({"products": 2 + 1 / 2 + 1 / 3, "copies": 1 / 2 + 2 / 3})


def test_the_innermost_counts_but_in_attention_and_the_optimizer():
    inner = [event(0, 2.0, 3.0, "copies"), event(0, 3.0, 4.0, None)]
    for outer, expected in {
        "elementwise": {"elementwise": 3.0, "copies": 1.0, "waiting": 1.0},
        None: {"copies": 1.0, "waiting": 4.0},
        "attention": {"attention": 5.0},
        "optimizer": {"optimizer": 5.0},
    }.items():
        assert kinds_of([event(0, 1.0, 6.0, outer), *inner], 1.0, 6.0) == pytest.approx(expected), outer


def test_a_product_that_is_left_to_threads_lasts_until_it_ends():
    def traced(name, start_ns, duration_ns, **stats):
        return types.SimpleNamespace(name=name, start_ns=start_ns, duration_ns=duration_ns, stats=stats.items())

    python = [traced(UPDATES, 0, 1e10), traced("PjitFunction", 0, 9e9)]
    pool = [
        traced("dot.1", 1e9, 1e9, hlo_op="dot.1", _p=7), traced("add.2", 2e9, 1e9, hlo_op="add.2", _p=8),
        traced("end: add.2", 3e9, 0, _c=8), traced("end: dot.1", 5e9, 0, _c=7),
    ]  # fmt: skip
    lines = [types.SimpleNamespace(events=events) for events in (python, pool)]
    works = {"dot.1": Work("products", "dot"), "add.2": Work("elementwise", "add")}
    events = events_of_planes([types.SimpleNamespace(lines=lines)], works)
    told = {kind: seconds for kind, _, seconds in broken_down(events, 2)["breakdown"]}
    assert told == pytest.approx({"waiting": 6 / 2, "products": 3.5 / 2, "elementwise": 0.5 / 2})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the command prints, and writes."""
    path = tmp_path_factory.mktemp("breakdown") / "breakdown.json"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as told:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")  # it takes most of a minute; its kernels' names are tried above
        assert command.main(["train", *FLAGS, "--breakdown", "--rounds=2", "--seconds=0.05", f"--json={path}"]) == 0
    return told.getvalue(), json.loads(path.read_text())


def test_each_side_has_all_kinds_of_work(measured):
    _, document = measured
    sides = {side["name"]: side for side in document["breakdown"]}
    assert list(sides) == ["nanogpt-jax", "PyTorch, eager", "PyTorch, compiled"]
    for name, side in sides.items():
        assert list(side["kinds"]) == list(KINDS)
        lacking = [kind for kind, seconds in side["kinds"].items() if seconds <= 0]
        assert lacking in ([], ["copies"]), name
        whole = sum(side["kinds"].values())
        rounds = [sum(work["seconds"] for work in each) for each in side["rounds"]]
        assert len(rounds) == 2 and any(whole == pytest.approx(seconds) for seconds in rounds)


def test_the_table_has_every_kind_and_shares_of_the_whole(measured):
    out, _ = measured
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:2] == "| "]
    assert [row[0] for row in rows] == ["an update's time", rows[1][0], *KINDS.values(), "all of it"]
    for column in (1, 2, 3):
        shares = [float(row[column].split("(")[1].rstrip("%)")) for row in rows[2:]]
        assert shares[-1] == 100 and sum(shares[:-1]) == pytest.approx(100, abs=0.5 * len(KINDS))
    assert rows[0][4:] == ["ours to PyTorch, eager", "ours to PyTorch, compiled"]
    assert "The longest in nanogpt-jax: `" in out and "of 0.05 s a side" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "--breakdown"], "breakdown is of train alone; leave it out"),
        (["train", "--breakdown", "--plot=a.png"], "plot=a.png has no meaning for a breakdown"),
    ],
)
def test_wrong_use_is_one_line(argv, message):
    with pytest.raises(UserError) as error:
        command.main(argv)
    assert str(error.value).startswith(message)
