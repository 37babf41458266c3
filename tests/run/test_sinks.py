"""TensorBoard and W&B get a run's figures, once each, however often the run was cut off; what is missing is named."""

import shutil
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nanogpt_jax.cli import train
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.weights.checkpoint import FOLDER
from tests.helpers.commands import metrics_of
from tests.helpers.tiny import TINY, prepare_tiny


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def flags(data_dir, run):
    return [*TINY, f"--data_dir={data_dir}", f"--out_dir={run}", "--max_iters=40"]


@pytest.fixture(scope="module")
def made(data_dir):
    """A run that TensorBoard has been told of."""
    run = data_dir / "run"
    assert train.main([*TINY, f"--data_dir={data_dir}", f"--out_dir={run}", "--max_iters=40", "--tensorboard"]) == 0
    return run


@pytest.fixture
def copy(made, run):
    return shutil.copytree(made, run)


def resume(run, *flags):
    return train.main(["--init_from=resume", f"--out_dir={run}", "--accelerator=cpu", *flags])


def told(run):
    """What `metrics.jsonl` says, by nanoGPT's names: name -> [(step, value)]."""
    named = {}
    for line in metrics_of(run):
        figures = {f"{line['split']}/loss": line["loss"]}
        if line["split"] == "train":
            figures |= {"lr": line["learning_rate"], "tokens_per_second": line["tokens_per_second"]}
        for name, value in figures.items():
            named.setdefault(name, []).append((line["step"], value))
    return named


def in_tensorboard(run):
    """What TensorBoard reads out of the event files."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert [step for step, _ in one[name]] == [step for step, _ in other[name]], name
        assert [v for _, v in one[name]] == pytest.approx([v for _, v in other[name]], rel=1e-6), name


def test_tensorboard_shows_what_the_metrics_file_says(made):
    shown = in_tensorboard(made)
    assert_same(shown, told(made))
    assert [step for step, _ in shown["val/loss"]] == [0, 20, 40]
    assert [step for step, _ in shown["train/loss"]] == list(range(40))


def test_a_resumed_run_goes_on_in_the_same_folder_and_doubles_nothing(copy):
    shutil.rmtree(copy / FOLDER / "40")  # as if it had been killed before that was saved
    assert resume(copy) == 0
    assert len(list((copy / "tensorboard").iterdir())) == 2
    assert_same(in_tensorboard(copy), told(copy))


def test_a_new_run_sets_the_old_event_files_and_the_old_figure_aside(copy, flags):
    figure = (copy / "loss.png").read_bytes()
    assert train.main([*flags, "--max_iters=0"]) == 0
    assert list((copy / "previous" / "1" / "tensorboard").iterdir()) and not (copy / "tensorboard").exists()
    assert (copy / "previous" / "1" / "loss.png").read_bytes() == figure and not (copy / "loss.png").exists()


class Recorder(types.ModuleType):
    """The three calls of W&B's package, and what it keeps of them: steps only go up, as at its server."""

    class Error(Exception):
        pass

    Settings = dict

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.rows, self.finished = [], {}, 0

    def init(self, **arguments):
        self.runs.append(arguments)
        self.id = arguments["id"] or f"run{len(self.runs)}"
        return self

    def log(self, figures, *, step):
        if step >= max(self.rows, default=0):
            self.rows.setdefault(step, {}).update(figures)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    recorder = Recorder()
    recorder.__spec__ = types.SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    return recorder


def test_wandb_gets_the_figures_and_a_resumed_run_goes_on(flags, run, wandb):
    nanogpts = ("--wandb_log=True", "--wandb_project=plays", "--wandb_run_name=mini")
    assert train.main([*flags, *nanogpts, "--max_iters=20"]) == 0
    assert resume(run, "--max_iters=21") == 0
    first, second = wandb.runs
    assert (first["project"], first["name"], first["id"], first["dir"]) == ("plays", "mini", None, run)
    assert first["config"]["n_embd"] == 16
    assert (second["id"], second["resume"], wandb.finished) == ("run1", "allow", 2)
    rows = {}
    for name, values in told(run).items():
        for step, value in values:
            rows.setdefault(step, {})[name] = value
    rows[20]["val_whole/loss"] = wandb.rows[20]["val_whole/loss"]  # the end of the first, which was none
    assert wandb.rows == rows


def test_wandb_that_cannot_begin_is_one_line(flags, wandb, monkeypatch):
    def no_key(**arguments):
        raise wandb.Error("api_key not configured (no-tty).\nSee the manual.")

    monkeypatch.setattr(wandb, "init", no_key)
    with pytest.raises(UserError, match=r"^wandb=True could not begin \(api_key not .*WANDB_MODE=offline.*") as error:
        train.main([*flags, "--wandb"])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "package", "extra"), [("--tensorboard", "tensorboardX", "tensorboard"), ("--wandb", "wandb", "wandb")]
)
def test_a_missing_package_is_named_before_anything_is_written(flags, run, monkeypatch, flag, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    install = rf"^{flag} needs {package}, which is not installed; pip install -e '\.\[{extra}\]'$"
    with pytest.raises(UserError, match=install):
        train.main([*flags, flag])
    assert not run.exists()
