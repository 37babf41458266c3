"""The commands that our documents tell people to type, and what shortens each of them in a test.

A command is taken as it is written. `RULES` says what is appended to it or set in its environment so that it takes
seconds, what keeps it from running here, and which error is its right end where something is missing: a network, an
accelerator, a package that is an extra. One that no rule fits fails the test: whoever writes a new one says here how it
is tried.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.helpers.browser import CHROMIUM
from tests.helpers.chips import HAS_CUDA, HAS_LIBTPU
from tests.helpers.commands import ROOT
from tests.helpers.jobs import virtual_devices

# In this order in one checkout: what a page makes, a later one may use.
DOCUMENTS = (
    "CONTRIBUTING.md", "README.md", "docs/gpt_from_scratch.ipynb", "docs/from_gpt2_to_today.ipynb", "docs/records.md",
    "docs/evaluate.md", "docs/tuning.md", "docs/launch.md", "docs/buckets.md", "docs/on_a_tpu.ipynb",
    "docs/on_a_gpu.ipynb", "docs/index.md", "data/README.md",
)  # fmt: skip
_PROGRAMS = (
    r"(?:[A-Z_]+=\S+ )*(?:python|pip|pytest|ruff|mkdocs|jupyter|srun|gcloud|torchrun|nanogpt-jax"
    r"|/usr/bin/time|\.ci/\w+)(?= |$)"
)


@dataclasses.dataclass(frozen=True)
class Line:
    """A command, and where it is written."""

    document: str
    text: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the commands that `pattern` is found in are tried."""

    pattern: str
    add: str = ""  # flags, after the command's own
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    status: int = 0
    says: str = ""  # in its one line of error, where its end is not 0
    why_not: str = ""  # it is not run at all


# What stands around a command that is tried by itself: (found, what is left of it).
WRAPPERS = (
    (r"^gcloud .* --command='cd nanogpt-jax && (.*)'$", r"\1"),  # a machine that has chips
    (r"^srun (?:--\S+ )*(?=python )", ""),  # a cluster
    (r"^/usr/bin/time -v ", ""),  # not everywhere; what it says of memory is not ours
    (r" \.\.\. ", " "),  # "and so on"
    (r"\[[^\]]*\]$|\[FILE\.\.\.\]", ""),  # what may be left out
    (r"(?<=openwebtext/prepare\.py )FILE\.\.\.", "documents.jsonl"),
    (r"\bFILE\.\.\.", "letters.txt"),
    (r"\bNAME\b", "mine"),
    (r"\bOTHER\b", "shakespeare_char"),
    (r"\bPRESET\b", "speedrun_cpu"),
    (r"=DIR --tokenizer=WHICH$", "=nano --tokenizer=char:letters.txt"),
    (r"=WHICH\b", "=gpt2"),
)

# Two updates and an evaluation of the sizes that are named; batches are small, one layer is trained, widths stay.
_SHORT = "--max_iters=2 --eval_iters=1 --batch_size=2 --gradient_accumulation_steps=1 --n_layer=1"
_SMALL = "--n_layer=1 --n_head=4 --n_embd=64 --block_size=8 --vocab_size=128 --dataset=shakespeare_char"
_FEW_STEPS = "--steps=1 --n_layer=1 --n_head=2 --n_embd=16 --block_size=8 --batch_size=2"
_BENCH = "--accelerator=cpu --seconds=0.01 --n_layer=1 --n_head=2 --n_embd=16 --block_size=8 --batch_size=2"
# In every command's environment: its programs are worth little, and compiling them less.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1"}
_NO_HUB = {"HF_HUB_OFFLINE": "1", "HF_HOME": "no-hub"}


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _devices(count: int) -> dict[str, str]:
    return {"XLA_FLAGS": virtual_devices(count)["XLA_FLAGS"], "NPROC": "16"}


# No store is asked that is not on this machine, and none is here.
_NO_STORE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
}
# The first one that fits a command is its rule.
RULES = (
    Rule(r"^pip install ", why_not="the environment that runs this test was made by it; its extras are looked up"),
    Rule(r"^(FUZZ_EXAMPLES=\d+ )?pytest\b", why_not="this is it; the files that it names are looked up"),
    Rule(r"^mkdocs serve$", why_not="serves until it is stopped; .ci/run builds the site"),
    Rule(r"^jupyter lab ", why_not="serves until it is stopped; test_tour.py and test_today.py run the notebooks"),
    Rule(r"^\.ci/\w+$", why_not="it runs this test"),
    Rule(r"^nanogpt-jax\b", why_not="tests/cli/test_installed.py installs the wheel and runs what it brings"),
    Rule(r"^ruff (check|format) \.$"),
    Rule(r"^python -m tests\.torture --kills=", add="--kills=1"),
    Rule(r"^python -m tests\.end_to_end$", why_not="takes a quarter of an hour; test_journey.py is smaller"),
    Rule(r"^python -m tests\.torture\.cost$", add="--pairs=1 --stretch=4"),
    Rule(r"^python -m tests\.lora_memory$", why_not="takes GPT-2's 124M parameters four times"),
    Rule(r"^python data/shakespeare_lines/pairs\.py$"),
    Rule(r"^python -m tests\.seeing_cost (live|lines)$", add="6"),
    Rule(r"^python -m tests\.lens_latency lens\.html$", why_not="" if CHROMIUM else "there is no Chromium"),
    Rule(r"^python -m nanogpt_jax\.compare\b", add=_FEW_STEPS),
    Rule(r"^python -m nanogpt_jax\.bench growth\b", add=f"{_BENCH} --axis=batch_size"),
    Rule(r"^python -m nanogpt_jax\.bench record .*--steps",
         why_not="each step takes as long as the record, which another line measures; tests/bench/test_record.py"),
    Rule(r"^python -m nanogpt_jax\.bench record\b",
         add="--seeds=1 --max_iters=2 --eval_iters=1 --n_layer=1 --block_size=8 --batch_size=2 --accelerator=cpu"),
    Rule(r"^python -m nanogpt_jax\.bench (all shakespeare_char|sample gpt2 --vocab_size=50304) ",
         why_not="so short, they are what the other lines of bench are"),
    Rule(r"^python -m nanogpt_jax\.bench (all|train|sample|gpu)\b", add=f"{_BENCH} --rounds=1 --max_new_tokens=2"),
    Rule(r"^python -m nanogpt_jax\.sweep .*--init_from=resume"),
    Rule(r"^python -m nanogpt_jax\.sweep\b", add=f"{_SHORT} --seed=0,1 --accelerator=cpu"),
    Rule(r"^python -m nanogpt_jax\.evaluate gpt2 ", env=_NO_HUB, status=2, says="gpt2"),
    Rule(r"^python -m nanogpt_jax\.evaluate\b"),
    Rule(r"s3://my-bucket", env=_NO_STORE, status=2, says="check the network"),  # tests/run/test_bucket.py
    Rule(r"^python -c '"),
    Rule(r"^python -m nanogpt_jax\.lens\b"),
    Rule(r"^python -m nanogpt_jax\.(plot|convert)\b"),
    Rule(r"=HuggingFaceTB/", env=_NO_HUB, status=2, says="SmolLM2-135M"),
    Rule(r"^python data/openwebtext/prepare\.py$", env=_NO_HUB, status=2, says="OpenWebText"),
    Rule(r"^python data/(\w+/)?prepare\.py\b"),
    Rule(r"--init_from=gpt2", env=_NO_HUB, status=2, says="gpt2"),
    Rule(r"^python sample\.py .*--past_block=rolling", add="--max_new_tokens=80 --num_samples=1"),
    Rule(r"^python sample\.py\b", add="--max_new_tokens=20"),
    Rule(r"^python train\.py .*--compile_only=v\d", status=2, says="pip install",
         why_not="it compiles for minutes where libtpu is installed" if HAS_LIBTPU else ""),
    Rule(r"^python train\.py .*--compile_only=", status=2, says="pip install",
         why_not="it compiles for a minute where JAX's CUDA plugin is installed" if HAS_CUDA else ""),
    Rule(r"^python train\.py .*--eval_only"),
    Rule(r"^python train\.py .*--init_from=resume", add="--max_iters=3 --eval_iters=1"),
    Rule(r"^python train\.py .*--wandb", add=_SHORT, env={"WANDB_MODE": "offline"},
         **({} if _has("wandb") else {"status": 2, "says": "wandb"})),
    Rule(r"^python train\.py .*--coordinator=HOST0:8476",
         add=f"--coordinator=127.0.0.1:8476 --connect_timeout=1 {_SHORT}", status=2, says="127.0.0.1:8476"),
    Rule(r"^python train\.py gpt2.* --mesh=data:4,fsdp:8", add=f"{_SHORT} {_SMALL} --batch_size=32", env=_devices(32)),
    Rule(r"^python train\.py gpt2.* --mesh=fsdp:16", add=f"{_SHORT} {_SMALL} --batch_size=16", env=_devices(16)),
    Rule(r"^python train\.py gpt2.* --mesh=", add=f"{_SHORT} {_SMALL} --batch_size=8", env=_devices(8)),
    Rule(r"^python train\.py gpt2", add=f"{_SHORT} {_SMALL}"),
    Rule(r"^python train\.py (shakespeare_char |config/|.*--block_size=200)", add=f"{_SHORT} --block_size=32"),
    Rule(r"^(python|torchrun) train\.py\b", add=_SHORT),
)  # fmt: skip

# Commands that are run before a release. Other tests run their programs and flags; ordinarily they need only mean
# something (meanings.py), as all do.
LONG = (
    r"tests\.(torture|seeing_cost)\b",  # tests/torture, tests/run/test_live.py
    r"\.compare( --|$)",  # tests/compare
    r"\.bench (all|growth|sample|gpu|train|record)\b",  # tests/bench
    r"gpt2(_xl)? --mesh=(?!data:8 )", r"gpt2_xl --remat$",  # tests/core/test_sharding.py, test_model.py
    r"--coordinator=",  # tests/run/test_hosts.py
    r"train\.py (speedrun_cpu|--tensorboard|config/\S+ .*)$",  # test_end_to_end.py, test_sinks.py, cli/
    r"train\.py shakespeare_char(_cpu)? --(?!dataset=)", r"train\.py --dataset=mine$",  # what others train
    r"train\.py \| cat$", r"(train|sample)\.py .*s3://",  # tests/run/test_bucket.py
    r"train\.py laptop$",  # as shakespeare_char_cpu_modern
    r"\.sweep (speedrun_cpu|\S+_modern|laptop|shakespeare_char_cpu) ",  # run/test_sweep.py
    # tests/evaluate, test_worked_task.py, cli/test_chat.py
    r"\.evaluate ", r"--out_dir=out-(default|char|bpe|full|chats)\b",
)  # fmt: skip


def is_long(command: str) -> bool:
    """Whether it is run before a release only."""
    return any(re.search(pattern, command) for pattern in LONG)


def rule_of(command: str) -> Rule | None:
    """The first rule that fits a command."""
    return next((rule for rule in RULES if re.search(rule.pattern, command)), None)


def lines() -> list[Line]:
    """Every command of the documents in their order; those that are one and the same once shortened, once."""
    found: dict[object, Line] = {}
    for document in DOCUMENTS:
        for typed in _typed(markdown_of(document)):
            for command in map(_unwrapped, re.split(r" +&& +(?![^']*'$)", typed)):
                found.setdefault(_meaning(command), Line(document, command))
    return list(found.values())


def markdown_of(document: str) -> str:
    """A document as Markdown; of a notebook, what is not code."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if Path(document).suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def flags_in(markdown: str) -> set[str]:
    """The names of our flags that stand in code, `--max_iters=3` or `python train.py --max_iters=3`."""
    code = re.findall(r"`((?:--|python )[^`]*)`|^(python .*)$", markdown, re.M)
    return {flag for part in code for flag in re.findall(r"(?<!\S)--([a-z_]+)", "".join(part))}


def shortened(command: str, rule: Rule) -> str:
    """The command with the rule's flags, before a pipe if there is one."""
    first, pipe, rest = command.partition(" | ")
    return f"{first} {rule.add}".strip() + pipe + rest


def _meaning(command: str) -> object:
    """What two commands share that do the same: of a flag that comes twice, the last counts."""
    rule = rule_of(command)
    words = shlex.split(command if rule is None else shortened(command, rule))
    flags = {word.partition("=")[0]: word for word in words if word.startswith("--")}
    return tuple(word for word in words if not word.startswith("--")), frozenset(flags.values())


def _typed(markdown: str) -> Iterator[str]:
    """What stands in shell blocks, after a prompt, in indented blocks and between backticks."""
    block = re.compile(
        r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```$|^    (?P<indented>\S[^\n]*)$|`(?P<inline>[^`]+)`", re.M | re.S
    )
    for part in block.finditer(markdown):
        if part["fenced"] is not None:
            for line in part["fenced"].splitlines():
                if part["language"] == "sh" and line.strip():
                    yield _without_remark(line)
                elif line.startswith("$ "):
                    yield _without_remark(line[2:])
        elif part["indented"] is not None:
            if re.match(_PROGRAMS, part["indented"]):
                yield _without_remark(part["indented"])
        elif re.match(_PROGRAMS, inline := " ".join(part["inline"].replace(r"\|", "|").split())) and " " in inline:
            yield inline


def _without_remark(line: str) -> str:
    return re.sub(r"\s+# .*$", "", line).strip()


def _unwrapped(command: str) -> str:
    for found, left in WRAPPERS:
        command = re.sub(found, left, command)
    return " ".join(command.split())
