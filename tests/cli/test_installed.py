"""The one command of those who have the wheel alone; and what is suggested to them, and to those with the checkout."""

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nanogpt_jax import __main__ as installed
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data import commands
from nanogpt_jax.data.commands import pasteable, to_install, to_prepare, to_put_in_tokens_of
from tests.helpers.commands import HANGS, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools leaves its traces beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "nanogpt_jax", folder / "nanogpt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", folder]
    subprocess.run(build, check=True, capture_output=True, timeout=HANGS)
    [wheel] = (folder / "dist").glob("*.whl")
    return wheel


def test_the_wheel_holds_all_that_the_commands_need_and_no_test(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        [entry_points] = [file.read(name).decode() for name in names if name.endswith("/entry_points.txt")]
    assert entry_points == "[console_scripts]\nnanogpt-jax = nanogpt_jax.__main__:main\n"
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nanogpt_jax").rglob("*.py")}
    template = {f"nanogpt_jax/lens/template/lens.{ending}" for ending in ("html", "css", "js")}
    assert {name for name in names if ".dist-info/" not in name} == tracked | template | {"nanogpt_jax/py.typed"}


def test_the_installed_command_works_from_any_folder_and_suggests_itself(wheel, tmp_path):
    site, here = tmp_path / "site", tmp_path / "no checkout"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, check=True, capture_output=True, timeout=HANGS)
    here.mkdir()
    (here / "a text.txt").write_text("to be or not to be " * 50)
    path = os.pathsep.join([str(site / "bin"), os.environ["PATH"]])

    def run(*argv):
        return subprocess.run(
            argv, cwd=here, env={**os.environ, "PATH": path, "PYTHONPATH": str(site)},
            capture_output=True, text=True, timeout=HANGS, check=False,
        )  # fmt: skip

    done = run("nanogpt-jax", "prepare", "a text.txt")
    assert done.returncode == 0, done.stderr
    suggested = done.stdout.splitlines()[-1].removeprefix("train on it with: ")
    assert suggested == "nanogpt-jax train '--dataset=a text'"
    few = " --block_size=8 --n_layer=1 --n_embd=8 --max_iters=2 --eval_iters=1 --accelerator=cpu"
    done = run("sh", "-c", suggested + few)
    assert done.returncode == 0, done.stderr
    suggested = done.stdout[done.stdout.index("nanogpt-jax sample") :].strip()
    done = run("sh", "-c", f"{suggested} --num_samples=1 --max_new_tokens=3 --start=be")
    assert done.returncode == 0 and done.stdout.startswith("be"), done.stderr
    done = run("nanogpt-jax", "lense")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: there is no command 'lense'; ")
    done = run(sys.executable, "-m", "nanogpt_jax", "prepare")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("as in: python -m nanogpt_jax prepare letters.txt\n")


def test_help_has_a_line_for_each_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nanogpt-jax"])
    assert installed.run(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: nanogpt-jax ") and max(map(len, lines)) <= 120
    for name, (_, about) in installed.COMMANDS.items():
        assert [line.split(None, 1)[1] for line in lines if line.split()[:1] == [name]] == [about]
    assert installed.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("nanogpt-jax ")


COMMANDS = [*installed.COMMANDS, "prepare shakespeare_char", "prepare shakespeare", "prepare openwebtext"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("program", ["/usr/bin/nanogpt-jax", installed.__file__])
def test_each_command_calls_itself_by_the_name_it_was_started_by(monkeypatch, capsys, name, program):
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit) as ended:
        installed.run([*name.split(), "--help"])
    assert ended.value.code == 0
    start = "nanogpt-jax" if program != installed.__file__ else "python -m nanogpt_jax"
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {start} {name} ") and "{" + name not in said
    assert "python data/" not in said and "nanogpt_jax." not in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no command is named; choose one of prepare, train, "),
        (["tran"], "there is no command 'tran'; choose one of .*; did you mean train\\?$"),
        (["--n_layer=4"], "there is no command '--n_layer=4'; choose one of "),
        (["train", "--n_heads=4"], "there is no setting --n_heads; did you mean --n_head\\?$"),
        (["prepare", "--data_dir=x", "shakespeare"], "shakespeare: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^{said}"):
        installed.run(argv)
    assert list(tmp_path.iterdir()) == []


class TestSuggestions:
    """What is suggested, by how the program was started, and by whether the checkout is there."""

    @pytest.fixture
    def wheel_alone(self, monkeypatch, tmp_path):
        monkeypatch.setattr(commands, "_CHECKOUT", tmp_path)
        monkeypatch.chdir(tmp_path)

    def test_the_checkout_s_scripts(self, monkeypatch, tmp_path):
        monkeypatch.chdir(ROOT)
        assert pasteable("train", seed=1) == "python train.py --seed=1"
        assert pasteable("prepare openwebtext", "a b") == "python data/openwebtext/prepare.py 'a b'"
        assert pasteable("plot", "out") == "python -m nanogpt_jax.plot out"
        assert to_install("torch") == "pip install -e '.[torch]'"
        monkeypatch.chdir(tmp_path)
        assert pasteable("sample") == shlex.join(["python", f"{ROOT}/sample.py"])
        assert to_install("torch") == f"pip install -e '{ROOT}[torch]'"

    def test_the_installed_command_in_a_checkout(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(tmp_path / "nanogpt-jax")])
        assert to_prepare(Path("data/shakespeare")).endswith("/nanogpt-jax prepare shakespeare")
        assert to_install("torch") == f"pip install -e '{ROOT}[torch]'"

    def test_the_wheel_alone(self, wheel_alone, monkeypatch, tmp_path):
        assert to_install("torch") == "pip install 'nanogpt-jax[torch]'"
        assert pasteable("train") == "python -m nanogpt_jax train"  # by a notebook
        monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "nanogpt-jax")])
        assert pasteable("train") == f"{tmp_path}/bin/nanogpt-jax train"  # which the PATH does not lead to
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "nanogpt-jax").touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
        assert pasteable("plot", "my run") == "nanogpt-jax plot 'my run'"

    def test_a_data_set_s_folder_is_not_taken_for_its_name(self, wheel_alone, monkeypatch):
        assert to_prepare(Path("data/shakespeare")) == "python -m nanogpt_jax prepare shakespeare"
        assert to_prepare(Path("shakespeare")).endswith(" prepare shakespeare --data_dir=.")
        assert " prepare ./shakespeare --tokenizer=gpt2 " in to_put_in_tokens_of("gpt2", Path("shakespeare"))
