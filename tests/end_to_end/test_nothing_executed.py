"""No file that a user can be handed is ever executed: nothing that could is called, and hostile files run nothing."""

import ast
import pickle

import pytest

from nanogpt_jax.cli import sample, train
from nanogpt_jax.core.errors import UserError
from tests.helpers.commands import ROOT
from tests.helpers.states import tree_of
from tests.helpers.tiny import TINY, prepare_tiny

SOURCES = [ROOT / "train.py", ROOT / "sample.py", *sorted((ROOT / "nanogpt_jax").rglob("*.py"))]
SOURCES += sorted((ROOT / "data").rglob("*.py"))
SOURCES.remove(
    ROOT / "nanogpt_jax" / "compare" / "torch_training.py"
)  # runs the nanoGPT that --reference names: that is its task
# Functions that run code, or unpickle, or write where an archive says; by the last part of their name.
BUILTINS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {
    "run_path", "run_module", "spec_from_file_location",
    "Unpickler", "loads_pickle", "read_pickle", "unpack_archive", "extract", "extractall", "system", "popen",
}  # fmt: skip
FORBIDDEN_MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "imp", "tarfile", "code"}


def calls_in(tree):
    """Every call as the dotted name of what is called, and the call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords_of(call):
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_could_run_a_file_is_called(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, call in calls_in(tree):
        *owner, function = name.split(".")
        at = f"{path.name}:{call.lineno} calls {name}"
        assert function not in FORBIDDEN_CALLS, at
        assert function not in BUILTINS or owner not in ([], ["builtins"]), at
        assert not (owner == ["pickle"] or name in ("load", "loads")), at
        if name == "torch.load":
            assert keywords_of(call)["weights_only"] == "True", at
        if owner == ["np"] and function in ("load", "fromfile", "memmap"):
            assert function != "load" and "allow_pickle" not in keywords_of(call), at
        assert keywords_of(call).get("shell", "False") == "False", at
        assert keywords_of(call).get("trust_remote_code", "False") == "False", at
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {name.split(".")[0] for name in names} & FORBIDDEN_MODULES, f"{path.name} imports {names}"


class Evil:
    """An object whose unpickling makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path):
    """A folder in which hostile files are laid, and which no file of theirs may change."""
    data_dir = prepare_tiny(tmp_path)
    return tmp_path, data_dir, Evil(tmp_path / "sprung")


def refused(command, *argv):
    with pytest.raises(UserError) as error:
        command([*argv, "--accelerator=cpu"])
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_hostile_ckpt_is_refused_by_every_command(trap):
    folder, data_dir, evil = trap
    hostile = folder / "ckpt.pt"
    hostile.write_bytes(pickle.dumps({"model": evil, "model_args": {}}))
    before = tree_of(folder)
    flags = [*TINY, f"--data_dir={data_dir}", f"--out_dir={folder / 'out'}"]
    assert "mkdir, which is code" in refused(train.main, *flags, f"--init_from={hostile}")
    assert "mkdir, which is code" in refused(train.main, *flags, f"--init_from={hostile}", "--eval_only")
    assert "mkdir, which is code" in refused(sample.main, f"--init_from={hostile}")
    assert "name that: --init_from=" in refused(sample.main, f"--out_dir={folder}")
    assert tree_of(folder) == before and not (folder / "sprung").exists() and not (folder / "out").exists()


def test_a_hostile_meta_pkl_is_never_opened(trap):
    folder, data_dir, evil = trap
    (data_dir / "tiny" / "meta.pkl").write_bytes(pickle.dumps(evil))
    flags = [*TINY, f"--data_dir={data_dir}"]
    assert train.main([*flags, f"--out_dir={folder / 'beside'}", "--max_iters=1"]) == 0
    (data_dir / "tiny" / "meta.json").unlink()
    message = refused(train.main, *flags, f"--out_dir={folder / 'out'}")
    assert "a pickle can run code and is not read here, so say what its tokens are: python data/prepare.py" in message
    assert not (folder / "sprung").exists() and not (folder / "out").exists()


@pytest.mark.parametrize("line", ["os.mkdir({0})", "out_dir = os.mkdir({0})", "out_dir = str(os.mkdir({0})) * 2"])
def test_a_settings_file_that_holds_code_is_refused_by_its_line(trap, line):
    folder, _, evil = trap
    (folder / "mine.py").write_text(f"import os\n{line.format(repr(str(evil.path)))}\n")
    message = refused(train.main, str(folder / "mine.py"))
    assert "mine.py, line 2" in message and "is code, which is never executed here" in message
    assert not (folder / "sprung").exists()


def test_a_settings_file_in_toml_runs_nothing(trap):
    folder, _, evil = trap
    (folder / "mine.toml").write_text(f"out_dir = __import__('os').mkdir({str(evil.path)!r})\n")
    assert "is not TOML" in refused(train.main, str(folder / "mine.toml"))
    assert not (folder / "sprung").exists()


def test_a_hostile_checkpoint_folder_runs_nothing(trap):
    """Pickles in place of every file of a run's checkpoint."""
    folder, data_dir, evil = trap
    run = folder / "run"
    assert train.main([*TINY, f"--data_dir={data_dir}", f"--out_dir={run}", "--max_iters=1"]) == 0
    for path in (run / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(pickle.dumps(evil))
    assert "holds no checkpoint that is whole" in refused(train.main, "--init_from=resume", f"--out_dir={run}")
    assert "holds no checkpoint that is whole" in refused(sample.main, f"--out_dir={run}")
    assert not (folder / "sprung").exists()
