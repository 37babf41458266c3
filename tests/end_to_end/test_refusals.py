"""What the system refuses is one line that names the cause: no permission, too long a name, no room."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

import nanogpt_jax
from nanogpt_jax import convert, plot
from nanogpt_jax.cli import entry, prepare, sample, train
from nanogpt_jax.compare import command as compare
from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.data import files
from nanogpt_jax.lens import command as lens
from nanogpt_jax.run import conversion, reports
from nanogpt_jax.run.run_folder import newest_run
from nanogpt_jax.weights.checkpoint import FOLDER
from tests.helpers.refusals import largest_file, permissions_that_count
from tests.helpers.tiny import TINY, prepare_tiny

DENIED, TOO_LONG = "Permission denied", "File name too long"
LONG = "n" * 256


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, its data set and files of other programs."""
    folder = tmp_path_factory.mktemp("made")
    data_dir = prepare_tiny(folder)
    assert train.main([*TINY, f"--data_dir={data_dir}", f"--out_dir={folder / 'run'}", "--max_iters=1"]) == 0
    conversion.convert(str(folder / "run"), str(folder / "ckpt.pt"))
    conversion.convert(str(folder / "run"), str(folder / "hf"))
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it, and the working directory in it; what a test has closed is opened again."""
    copy = shutil.copytree(made, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(copy)
    yield copy
    for folder, _, _ in os.walk(copy, onerror=lambda error: os.chmod(error.filename, 0o700)):
        os.chmod(folder, 0o700)


def main(program, *arguments):
    """A command, and the one line of the error it ends in."""
    mains = {
        "train": train.main,
        "sample": sample.main,
        "lens": lens.main,
        "plot": plot.main,
        "convert": convert.main,
    }
    mains |= {"compare": compare.main, "prepare": prepare.main}
    with pytest.raises(UserError) as error:
        mains[program](arguments)
    line = str(error.value)
    assert len(line.splitlines()) == 1
    for wrong in ("missing", "damaged", "whole", "could not go on", "holds no run"):
        assert wrong not in line
    return line


RUN_COMMANDS = [
    ("sample", "--out_dir=run"),
    ("train", "--init_from=resume", "--out_dir=run", "--max_iters=2"),
    ("train", "--init_from=run", "--out_dir=new", "--data_dir=data", *TINY),
    ("convert", "run", "new"),
    ("lens", "--out_dir=run"),
]


@pytest.mark.parametrize("command", RUN_COMMANDS, ids=lambda command: " ".join(command[:2]))
@pytest.mark.parametrize("closed", ["run", f"run/{FOLDER}", f"run/{FOLDER}/1/files/params.safetensors"])
def test_a_run_that_may_not_be_read_is_not_missing_or_damaged(here, command, closed):
    os.chmod(closed, 0)
    with permissions_that_count():
        said = main(*command)
    assert "run" in said and DENIED in said and "get the permission for it" in said
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("closed", "command"),
    [
        ("run/metrics.jsonl", ("plot", "run")),
        ("run", ("plot", "run")),
        ("run", ("plot", "hf", "--png=run/x.png")),
        ("ckpt.pt", ("sample", "--init_from=ckpt.pt")),
        ("ckpt.pt", ("convert", "ckpt.pt", "new")),
        ("hf/model.safetensors", ("convert", "hf", "new", "--tokenizer=data/tiny")),
        ("hf/config.json", ("sample", "--init_from=hf")),
        ("hf", ("sample", "--init_from=hf")),
        ("data/tiny/train.bin", ("train", *TINY, "--data_dir=data")),
        ("data/tiny/meta.json", ("train", *TINY, "--data_dir=data")),
        ("data", ("train", *TINY, "--data_dir=data")),
        ("data", ("train", "data/mine.toml")),
        ("data", ("train", *TINY, "--out_dir=data/new", "--data_dir=copy")),
        ("text.txt", ("sample", "--out_dir=run", "--start=FILE:text.txt")),
        ("text.txt", ("prepare", "text.txt", "--data_dir=data")),
        ("data", ("prepare", "text.txt", "--data_dir=data")),
        ("data", ("compare", "--reference=data")),
        ("data", ("compare", "--json=data/x.json")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:1] + value[-1:]),
)
def test_each_thing_that_may_not_be_used_is_named_with_its_cause(here, closed, command):
    if "--data_dir=copy" in command:
        shutil.copytree("data", "copy")
    if command == ("plot", "hf", "--png=run/x.png"):
        shutil.copy("run/metrics.jsonl", "hf")
    os.chmod(closed, 0)
    with permissions_that_count():
        said = main(*command)
    assert closed.split("/")[0] in said and DENIED in said


def test_the_newest_run_is_not_taken_for_none_where_it_may_not_be_looked_at(here):
    Path("run").rename("out-run")
    os.chmod("out-run", 0)
    with permissions_that_count(), pytest.raises(UserError, match=f"out-run cannot be looked at .{DENIED}"):
        newest_run()


@pytest.mark.parametrize(
    "command",
    [
        ("sample", f"--out_dir={LONG}"),
        ("sample", f"--init_from={LONG}"),
        ("sample", "--out_dir=run", f"--start=FILE:{LONG}"),
        ("train", *TINY, "--data_dir=data", f"--out_dir={LONG}"),
        ("train", *TINY, "--data_dir=data", f"--dataset={LONG}"),
        ("train", "--init_from=resume", f"--out_dir={LONG}"),
        ("train", LONG),
        ("convert", LONG, "new"),
        ("convert", "run", LONG),
        ("convert", "run", f"{LONG}.pt"),
        ("plot", LONG),
        ("plot", "run", f"--png={LONG}.png"),
        ("lens", "--out_dir=run", f"--html={LONG}"),
        ("compare", f"--json={LONG}.json"),
        ("compare", f"--reference={LONG}"),
        ("prepare", LONG, "--name=x"),
        ("prepare", "text.txt", f"--name={LONG}", "--data_dir=data"),
    ],
    ids=lambda command: " ".join(command).replace(LONG, "LONG")[-40:],
)
def test_a_name_too_long_for_the_file_system_is_told_as_that(here, command):
    said = main(*command)
    assert LONG in said and TOO_LONG in said and "255 bytes" in said


def test_a_name_as_long_as_the_file_system_takes_is_taken(here):
    longest = Path("n" * 250 + ".json")
    reports.write_json(longest, {"a": 1})
    assert json.loads(longest.read_text()) == {"a": 1}
    assert convert.main(["run", "n" * 255]) == 0


def test_a_refusal_that_no_command_foresaw_is_one_line_and_a_fault_of_ours_is_none(monkeypatch, capsys):
    def command(error):
        def refuse(argv):
            raise error

        return refuse

    assert entry.run(command(PermissionError(13, DENIED, "/there"))) == entry.WRONG_USE
    assert capsys.readouterr().err == (
        f"error: /there cannot be used ({DENIED}); get the permission for it, or name another\n"
    )
    with pytest.raises(FileNotFoundError):
        entry.run(command(FileNotFoundError(2, "No such file or directory", "/there")))


# Twenty bytes fit, and so not a file of any of these.
@pytest.mark.parametrize(
    ("command", "written"),
    [
        (("convert", "run", "new"), "new"),
        (("convert", "run", "new", "--to=run"), "new"),
        (("convert", "run", "new.pt"), "new.pt"),
        (("lens", "--out_dir=run", "--start=to be", "--html=new.html"), "html=new.html"),
        (("plot", "run", "--png=new.png"), "png=new.png"),
        (("prepare", "text.txt", "--data_dir=new"), "preparing"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache")
def test_a_disk_that_is_full_is_named_by_what_could_not_be_written_and_nothing_half_is_left(here, command, written):
    before = sorted(path.name for path in here.iterdir())
    with largest_file(20):
        said = main(*command)
    assert said.startswith(written) and "large" in said and "make room" in said
    assert sorted(path.name for path in here.iterdir() if path.name != "new" or any(path.iterdir())) == before


@pytest.mark.parametrize("name", ["json", "png"])  # of compare and bench, which write when all is measured
def test_a_report_that_finds_no_room_is_named(here, name):
    from matplotlib.figure import Figure

    path = Path(f"new.{name}")
    write = {
        "json": lambda path: reports.write_json(path, ["x" * 99]),
        "png": lambda p: reports.write_figure(p, Figure()),
    }
    with largest_file(20), pytest.raises(UserError, match=f"{name}=new.{name} cannot be written .* make room"):
        reports.write_where_asked(name, path, write[name])
    assert not list(here.glob("*new*"))


def test_a_conversion_is_refused_before_it_starts_where_it_has_no_room(here, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 10_000))
    for target in ("new", "new.pt", "a/b/new"):
        arguments = ["run", target, *([] if target == "new.pt" else ["--to=run"])]
        with pytest.raises(UserError, match=f"{target} cannot be written: it takes 0.0 MB where 0.0 MB are free; make"):
            convert.main(arguments)
    assert not list(here.glob("*new*")) and not Path("a").exists()


def test_a_full_disk_at_the_first_checkpoint_speaks_of_no_other(here):
    with largest_file(9_000), pytest.raises(RunFailed) as failed:
        train.main([*TINY, "--data_dir=data", "--out_dir=fresh", "--max_iters=2"])
    said = str(failed.value)
    assert (
        "the checkpoint of iteration 2 could not be saved" in said and "train again, for it has no checkpoint" in said
    )
    with (
        largest_file(9_000),
        pytest.raises(RunFailed, match="go on from its checkpoint of iteration 1 with --init_from"),
    ):
        train.main(["--init_from=resume", "--out_dir=run", "--max_iters=2"])


def test_no_module_asks_pathlib_what_lies_at_a_users_path():
    """It answers `PermissionError` or, from Python 3.14 on, a no; `files` has the functions that say which it is."""
    ours = {"worker.py", "orbax_files.py"}  # /proc, and a folder that was written just now
    asking = re.compile(r"\.(is_file|is_dir|exists)\(\)")
    sources = [path for path in Path(nanogpt_jax.__file__).parent.rglob("*.py") if path.name not in ours]
    assert [path.name for path in sources if asking.search(path.read_text(encoding="utf-8"))] == []
