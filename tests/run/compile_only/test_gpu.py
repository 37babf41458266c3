"""Programs compiled for an H100 that is not there: what is in them, and what of memory they take."""

import json
import math
import re
import subprocess
import sys

import pytest

from tests.helpers.chips import needs_cuda
from tests.helpers.commands import HANGS, ROOT, users_environment

from .gpu_child import SETTINGS

pytestmark = needs_cuda

B, T, V, C, L = (getattr(SETTINGS, name) for name in ("batch_size", "block_size", "vocab_size", "n_embd", "n_layer"))
MATRICES = V * C + T * C + L * 12 * C * C
VECTORS = (2 * L + 1) * C
SCALARS = 4 * 4  # of the state: its step, its seed, and two counters of the optimizer's


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-m", "tests.run.compile_only.gpu_child"], cwd=ROOT, env=users_environment(),
        capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shapes_in(text):
    """The type and the shape of every array of a program."""
    arrays = re.findall(r"\b([a-z]+\d+)\[([\d,]+)\]", text)
    return {(kind, tuple(map(int, dims.split(",")))) for kind, dims in arrays}


def calls_in(text):
    return re.findall(r'custom_call_target="(__cudnn\$[^"]+)"', text)


def test_a_step_in_bfloat16_has_cudnn_s_attention_forward_and_backward(found):
    calls = calls_in(found["step"]["text"])
    assert sorted(calls) == ["__cudnn$fmhaSoftmax"] * L + ["__cudnn$fmhaSoftmaxBackward"] * L
    operands = re.findall(r"custom-call\(.*?__cudnn.*?operand_layout_constraints=\{(\w+)\[", found["step"]["text"])
    assert len(operands) == 2 * L and set(operands) == {"bf16"}


def test_no_array_of_a_step_is_as_large_as_scores_or_logits(found):
    shapes = shapes_in(found["step"]["text"])
    assert ("bf16", (B * T, C)) in shapes
    assert [shape for _, shape in shapes if shape.count(T) > 1] == []
    of_tokens = [math.prod(shape) for _, shape in shapes if V in shape and C not in shape]
    assert max(of_tokens) == B * T * V // 8


@pytest.mark.parametrize(("program", "shards"), [("step", 1), ("fsdp", 8)])
def test_a_step_takes_its_state_and_the_batch_and_gives_the_state_s_memory_back(found, program, shards):
    state = 12 * (MATRICES // shards + VECTORS) + SCALARS  # a parameter and its two moments, in float32
    assert found[program]["arguments"] == state + 2 * 4 * B * T // shards
    assert found[program]["aliased"] == state


def test_fsdp_gathers_matrices_where_they_are_used_and_keeps_no_copy_of_the_parameters(found):
    text = found["fsdp"]["text"]
    gathered = re.findall(r"= (.*) all-gather-start\(", text)
    assert gathered and re.search(r" reduce-scatter(-start)?\(", text)
    blocks = {(C, 3 * C), (C, C), (C, 4 * C)}
    whole = [(kind, shape) for results in gathered for kind, shape in shapes_in(results) if C in shape]
    assert {kind for kind, shape in whole if shape in blocks or shape[::-1] in blocks} == {"bf16"}
    assert found["fsdp"]["temporaries"] < 4 * MATRICES


def test_generation_compiles_and_past_the_block_reads_by_cudnn(found):
    text = found["generation"]["text"]
    assert set(calls_in(text)) == {"__cudnn$fmhaSoftmax"}
    assert " while(" in text
    assert [shape for _, shape in shapes_in(text) if V in shape and T in shape] == []
