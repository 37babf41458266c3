"""Whatever a file, a flag or a prompt holds: a command succeeds or ends in one line, and changes nothing it should not.

Every case runs a command as its user would, in this process: `cli.train`, `cli.sample` or `convert.main`. Compiled
programs are kept from case to case, so that a case takes milliseconds; all else is the real thing, files included.
"""

import contextlib
import functools
import io
import itertools
import json
import shutil
import signal
import string
import zlib

import jax
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanogpt_jax import cli, convert, init_state, start, trainer
from nanogpt_jax.config import PRESETS, Settings
from nanogpt_jax.errors import RunFailed, UserError
from nanogpt_jax.optimizer import make_optimizer

from .test_end_to_end import tree_of
from .tiny import TINY, prepare_tiny

LIMIT = 30  # seconds; a case that takes longer hangs


def fuzz(cases):
    """Hypothesis, the same cases every time: what a search finds is written down as a test of its own."""
    return settings(
        max_examples=cases, derandomize=True, database=None, suppress_health_check=list(HealthCheck), deadline=None
    )


def end_of(command, *argv):
    """The exit status a user would see: 0, or 1 or 2 with one line. All else that a command raises is a defect."""

    def too_long(number, frame):
        raise AssertionError(f"{argv} takes more than {LIMIT} s")

    usual = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return command([str(argument) for argument in argv])
    except (UserError, RunFailed) as error:
        assert len(" ".join(str(error).split())) > 10
        return 2 if isinstance(error, UserError) else 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


@contextlib.contextmanager
def only_changes(folder, *allowed):
    """Nothing below `folder` may change but what is below `allowed`."""

    def rest():
        return {p: b for p, b in tree_of(folder).items() if p.name != ".lock" and not set(allowed) & {*p.parents, p}}

    before = rest()
    yield
    assert rest() == before


# What a file may have become.
bits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=4)
bytes_changes = st.one_of(
    st.tuples(st.just("truncate"), st.integers(0, 10**6)),
    st.tuples(st.just("flip"), bits),
    st.tuples(st.just("write"), st.tuples(st.integers(0, 10**6), st.binary(max_size=40))),
    st.tuples(st.just("insert"), st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=40))),
    st.tuples(st.just("replace"), st.binary(max_size=60)),
    st.tuples(st.just("zero"), st.none()),
    st.tuples(st.just("remove"), st.none()),
    st.tuples(st.just("folder"), st.none()),
    st.tuples(st.just("loop"), st.none()),
)


def change(path, how):
    """Do to a file what was drawn."""
    kind, detail = how
    data = bytearray(path.read_bytes())
    if kind in ("remove", "folder", "loop"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path)
        return
    if kind == "truncate":
        data = data[: detail % (len(data) + 1)]
    elif kind == "flip":
        for place, bit in detail:
            if data:
                data[place % len(data)] ^= 1 << bit
    elif kind == "write":
        place = detail[0] % (len(data) + 1)
        data[place : place + len(detail[1])] = detail[1]
    elif kind == "insert":
        place = detail[0] % (len(data) + 1)
        data[place:place] = detail[1]
    else:
        data = bytearray(detail) if kind == "replace" else bytearray(len(data))
    path.write_bytes(data)


odd = st.sampled_from((
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "x",
    "0", "é", "\ud800", "a" * 1000, [], {}, [[]], {"": 0}, "gpt2", "char", "uint16", "/etc/passwd", "../x", "\0",
))  # fmt: skip
odder = st.recursive(odd, lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=4), of, max_size=3))
json_changes = st.lists(
    st.tuples(st.sampled_from(["set", "remove", "add"]), st.integers(0, 10**6), odder), min_size=1, max_size=3
)


def places(document, at=()):
    """The path of every value in a JSON document."""
    yield at
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from places(value, (*at, key))


def changed(document, changes):
    """A JSON document after the changes that were drawn."""
    for kind, number, value in changes:
        paths = [path for path in itertools.islice(places(document), 2000) if path]
        if not paths:
            return document
        *parents, last = paths[number % len(paths)]
        within = functools.reduce(lambda part, key: part[key], parents, document)
        if kind == "remove":
            del within[last]
        elif kind == "set":
            within[last] = value
        elif isinstance(within, dict):
            within[f"{last}x"] = value
        else:
            within.append(value)
    return document


def change_json(path, changes):
    path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A data set, a run of three iterations on it, and that run as a ckpt.pt and as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("pristine")
    data_dir = prepare_tiny(folder)
    run = folder / "run"
    short = ("--max_iters=3", "--eval_interval=2", "--save_interval=1", "--bias=True")
    assert end_of(cli.train, *TINY, *short, f"--data_dir={data_dir}", f"--out_dir={run}") == 0
    assert end_of(convert.main, run, folder / "ckpt.pt") == 0
    assert end_of(convert.main, run, folder / "hf", "--to=hf") == 0
    return folder


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Keep the compiled steps of a model, which a process trains but once otherwise."""
    make_train_step, make_eval_step = trainer.make_train_step, functools.cache(trainer.make_eval_step)
    steps = {}

    def cached_train_step(model, tx, **options):
        key = (model, *options.items())
        steps.setdefault(key, make_train_step(model, tx, **options))
        return steps[key]

    @functools.cache
    def state_maker(**optimizer):
        tx = make_optimizer(Settings(**optimizer))
        return jax.jit(lambda params, seed: init_state(params, tx, seed), static_argnums=1)

    def state_of(params, tx, settings, mesh):
        return state_maker(grad_clip=settings.grad_clip)(params, settings.seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_train_step", cached_train_step)
        patch.setattr(trainer, "make_eval_step", make_eval_step)
        patch.setattr(start, "_state_of", state_of)
        patch.setattr(start, "_placed", lambda make, mesh, *arguments: make(*arguments))
        yield


numbers = itertools.count()


@pytest.fixture(scope="module")
def laid_out(pristine, tmp_path_factory):
    """A function that gives a fresh copy of `pristine` for a case, and takes it away after it."""
    base = tmp_path_factory.mktemp("cases")

    @contextlib.contextmanager
    def copy(*parts):
        folder = base / str(next(numbers))
        folder.mkdir()
        for part in parts:
            source = pristine / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
        yield folder
        shutil.rmtree(folder)

    return copy


def train_flags(folder):
    short = ("--max_iters=3", "--eval_interval=2", "--bias=True")
    return [*TINY, *short, f"--data_dir={folder / 'data'}", f"--out_dir={folder / 'out'}"]


def assert_trains_or_refuses(folder, *flags):
    """Training ends in order, if only because weights hold no number; where it is refused nothing at all is written."""
    with only_changes(folder, folder / "out"):
        status = end_of(cli.train, *train_flags(folder), *flags)
    assert status != 2 or not (folder / "out").exists()


settings_names = st.sampled_from([*Settings.__dataclass_fields__, "n_heads", "preset", "device", "compile", ""])
texts = st.one_of(
    st.text(max_size=12),
    st.text(string.digits + "-.eE_", max_size=8),
    st.sampled_from(["True", "none", "nan", "inf", "1e400", "-0", "9" * 5000, "auto", "\0", "a" * 300, "٣", "1_0"]),
)


@contextlib.contextmanager
def settings_alone():
    """Settings are parsed and checked; what would be trained with them is another test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train", lambda settings, given: None)
        yield


@fuzz(800)
@given(
    flags=st.lists(st.tuples(settings_names, texts), max_size=4),
    first=st.sampled_from(["", *PRESETS, "gpt5", "x.toml"]) | st.text(max_size=5),
)
def test_flags(flags, first):
    argv = [first] * bool(first) + [f"--{name}={value}" for name, value in flags]
    with settings_alone(), contextlib.suppress(SystemExit):  # --help
        assert end_of(cli.train, *argv) in (0, 2)


@fuzz(600)
@given(
    lines=st.lists(st.tuples(settings_names, odder), max_size=5),
    how=st.none() | bytes_changes,
)
def test_settings_files(lines, how, laid_out):
    with settings_alone(), laid_out() as folder:
        path = folder / "mine.toml"
        text = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in lines) + "n_layer = 2\n"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        if how is not None:
            change(path, how)
        assert end_of(cli.train, path) in (0, 2)


@fuzz(120)
@given(name=st.sampled_from(["train.bin", "val.bin", "meta.json"]), how=bytes_changes)
def test_token_files(name, how, laid_out):
    with laid_out("data") as folder:
        change(folder / "data" / "tiny" / name, how)
        assert_trains_or_refuses(folder)


@fuzz(120)
@given(changes=json_changes)
def test_tokenizer_json(changes, laid_out):
    with laid_out("data") as folder:
        change_json(folder / "data" / "tiny" / "meta.json", changes)
        assert_trains_or_refuses(folder)


def resume_or_sample(folder, resumes, flag):
    """Go on with a run, which may write into its folder, or sample from it, which may not."""
    flags = (f"--out_dir={folder / 'run'}", "--accelerator=cpu")
    if resumes:
        with only_changes(folder, folder / "run"):
            end_of(cli.train, "--init_from=resume", *flags, f"--data_dir={folder / 'data'}", flag)
    else:
        with only_changes(folder):
            end_of(cli.sample, *flags, "--num_samples=1", "--max_new_tokens=3", "--start=to")


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


@fuzz(100)
@given(
    which=st.lists(st.tuples(st.integers(0, 10**6), bytes_changes), min_size=1, max_size=4),
    resumes=st.booleans(),
)
def test_a_runs_folder(which, resumes, laid_out):
    with laid_out("data", "run") as folder:
        for number, how in which:
            files = files_in(folder / "run")
            change(files[number % len(files)], how)
        resume_or_sample(folder, resumes, "--max_iters=4")


@fuzz(80)
@given(changes=json_changes, resumes=st.booleans())
def test_a_runs_document(changes, resumes, laid_out):
    """Its sums made right again, as another program, or a hostile one, would."""
    with laid_out("data", "run") as folder:
        for files in (folder / "run" / "checkpoints").glob("*/files"):
            change_json(files / "run.json", changes)
            sums = json.loads((files / "sums.json").read_text())
            sums["run.json"] = f"{zlib.crc32((files / 'run.json').read_bytes()):08x}"
            (files / "sums.json").write_text(json.dumps(sums))
        resume_or_sample(folder, resumes, "--eval_only")


@fuzz(80)
@given(how=bytes_changes, samples=st.booleans())
def test_a_ckpt_pt(how, samples, laid_out):
    with laid_out("data", "ckpt.pt") as folder:
        change(folder / "ckpt.pt", how)
        weights = f"--init_from={folder / 'ckpt.pt'}"
        if samples:
            with only_changes(folder):
                end_of(cli.sample, weights, "--num_samples=1", "--max_new_tokens=3", "--start=to", "--accelerator=cpu")
        else:
            assert_trains_or_refuses(folder, weights)


@fuzz(50)
@given(
    part=st.sampled_from(["model_args", "config", "iter_num", "best_val_loss", "optimizer", "model"]),
    value=odder,
    key=st.integers(0, 100),
)
def test_a_ckpt_pt_that_says_something_else(part, value, key, laid_out):
    with laid_out("data", "ckpt.pt") as folder:
        document = torch.load(folder / "ckpt.pt", weights_only=True)
        if isinstance(document[part], dict) and key % 4:
            keys = sorted(document[part])
            document[part][keys[key % len(keys)]] = value
        else:
            document[part] = value
        torch.save(document, folder / "ckpt.pt")
        with only_changes(folder, folder / "converted"):
            data = f"--data_dir={folder / 'data'}"
            end_of(
                convert.main, folder / "ckpt.pt", folder / "converted", "--tokenizer=" + str(folder / "data/tiny"), data
            )


@fuzz(70)
@given(name=st.sampled_from(["config.json", "model.safetensors"]), how=bytes_changes)
def test_a_hugging_face_folder(name, how, laid_out):
    with laid_out("data", "hf") as folder:
        change(folder / "hf" / name, how)
        assert_trains_or_refuses(folder, f"--init_from={folder / 'hf'}")


@fuzz(50)
@given(changes=json_changes)
def test_a_hugging_face_config(changes, laid_out):
    with laid_out("data", "hf") as folder:
        change_json(folder / "hf" / "config.json", changes)
        assert_trains_or_refuses(folder, f"--init_from={folder / 'hf'}")


prompts = st.one_of(
    st.text("to be,nq:", max_size=20),
    st.text(max_size=8),
    st.sampled_from(["", "FILE:", "FILE:/", "FILE:missing", "FILE:\0", "FILE:/dev/null", "\ud800", "to " * 3000, "\n"]),
)


@fuzz(80)
@given(
    start=prompts,
    flags=st.lists(
        st.tuples(st.sampled_from(["seed", "top_k", "top_p", "temperature", "num_samples", "max_new_tokens"]), odd),
        max_size=1,
    ),
)
def test_prompts(start, flags, pristine):
    argv = [f"--out_dir={pristine / 'run'}", "--num_samples=1", "--max_new_tokens=3", f"--start={start}"]
    small = [(name, value) for name, value in flags if not (isinstance(value, int) and value > 10)]
    with only_changes(pristine):
        end_of(cli.sample, *argv, "--accelerator=cpu", *(f"--{name}={value}" for name, value in small))


@fuzz(50)
@given(data=st.binary(max_size=30) | st.text("to be", max_size=30).map(str.encode))
def test_prompt_files(data, laid_out, pristine):
    with laid_out() as folder:
        (folder / "prompt").write_bytes(data)
        argv = [f"--out_dir={pristine / 'run'}", "--num_samples=1", "--max_new_tokens=3", "--accelerator=cpu"]
        with only_changes(folder):
            end_of(cli.sample, *argv, f"--start=FILE:{folder / 'prompt'}")
