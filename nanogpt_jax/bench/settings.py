"""What the benchmark may be asked for beside the settings of a run: its tasks, its other sides, and what is usual."""

from __future__ import annotations

TASKS = ("train", "sample", "all", "growth", "record", "gpu")
AXES = ("block_size", "n_embd", "batch_size")  # of growth
AGAINST = ("torch", "hf", "none")
DEFAULT_PRESET = "shakespeare_char_cpu"
DEFAULT_ROUNDS, DEFAULT_SECONDS, DEFAULT_SEEDS = 11, 0.7, 5
BREAKDOWN_ROUNDS = 3
# Of gpu, which has minutes for all.
GPU_PRESET, GPU_ROUNDS, GPU_BUDGET, GPU_JSON = "gpt2", 5, 480.0, "bench-gpu.json"
