"""The core needs JAX, Flax, Optax, NumPy and jaxtyping, and nothing else of what the project installs."""

import ast
import subprocess
import sys
from pathlib import Path

import nanogpt_jax.core

CORE = Path(nanogpt_jax.core.__file__).parent
ALLOWED = {"jax", "flax", "optax", "numpy", "jaxtyping"}

# What those five import themselves is loaded first. After that every import fails but of theirs, of Python's and of the
# core's; what Flax brings along and the package uses elsewhere is taken away again.
ALONE = """
import importlib, pkgutil, sys
import jax, flax.linen, flax.struct, optax, numpy, jaxtyping
import jax.experimental.pallas

class Nothing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in {"jax", "jaxlib", "flax", "optax", "numpy", "jaxtyping"}:
            return None
        if name == "nanogpt_jax" or name.startswith("nanogpt_jax.core"):
            return None
        raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Nothing())
for name in ("orbax", "safetensors", "tokenizers", "tiktoken", "huggingface_hub", "rich", "matplotlib", "filelock"):
    sys.modules[name] = None

import nanogpt_jax.core
for module in pkgutil.iter_modules(nanogpt_jax.core.__path__):
    importlib.import_module(f"nanogpt_jax.core.{module.name}")

from nanogpt_jax import GPT, Batch, Settings, generate, init_params, init_state, make_optimizer, make_train_step
settings = Settings(n_layer=1, n_head=2, n_embd=16, block_size=8)
model, tx = GPT(settings.gpt_config(vocab_size=11)), make_optimizer(settings)
state = init_state(init_params(model, seed=1), tx, seed=1)
tokens = numpy.arange(18, dtype=numpy.int32).reshape(2, 9) % 11
batch = Batch(jax.numpy.asarray(tokens[:, :-1]), jax.numpy.asarray(tokens[:, 1:]))
state, metrics = make_train_step(model, tx)(state, batch)
text = generate(model, state.params, batch.tokens[0, :4], jax.random.key(0), max_new_tokens=6)
print(text.shape, bool(jax.numpy.isfinite(metrics["loss"])))
"""


def test_the_core_trains_and_samples_where_nothing_else_can_be_imported():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "(1, 6) True\n"), done.stderr


def test_the_core_names_no_other_package():
    for file in CORE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                is_known = top in ALLOWED | set(sys.stdlib_module_names)
                assert is_known or name.startswith("nanogpt_jax.core"), f"{file.name} imports {name}"
