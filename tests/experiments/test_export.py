"""Exported parameters: the same bits in every format, and the same function in PyTorch."""

import errno
import importlib.util
import json
import sys
import types
from pathlib import Path

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import ccl_jax
from ccl_jax.runs.config import Config
from experiments import cli, export
from tests.support import saved_run

CONFIG = Config(model="digits-cnn", agents=3, norm="batch", algorithm="dsgd")
FORMATS = ("safetensors", "npz", "orbax")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """With batch statistics, and two checkpoints."""
    path = tmp_path_factory.mktemp("runs") / "run"
    saved_run.save(path, CONFIG, saved_run.facts(), steps=(20, 30))
    return path


def flat(variables) -> dict[str, np.ndarray]:
    found = flax.traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    return {name: np.asarray(x) for name, x in found.items()}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("agent", ["consensus", "1", "all"])
def test_the_line_that_is_printed_loads_the_same_bits(form, agent, saved, capsys):
    if form == "safetensors":
        pytest.importorskip("safetensors")
    argv = ["export", f"--run={saved}", f"--format={form}", f"--agent={agent}"]
    assert export.main(argv) == 0
    written, described, load = capsys.readouterr().out.splitlines()
    namespace = {}
    exec(load.removeprefix("load it: "), namespace)
    run = ccl_jax.load_run(saved)
    wanted = flat({"consensus": run.consensus, "1": run.variables(1), "all": run.agents}[agent])
    found = flat(namespace["variables"])
    assert found.keys() == wanted.keys()
    assert "params/head/kernel" in found and "batch_stats/norm1/mean" in found
    for name in wanted:
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], wanted[name])
    about = json.loads((saved / described.removeprefix(f"described in: {saved}/")).read_text())
    name = {"consensus": "consensus", "1": "agent-1", "all": "agents"}[agent]
    assert written == f"written: {saved}/export/{name}.{form}"
    assert about["whose"] == name and about["step"] == 30 and about["model"] == "digits-cnn"
    assert about["classes"] == [f"class {k}" for k in range(10)]
    assert about["normalisation"]["mean"] == [0.4] and about["normalisation"]["scale"] == 255.0
    kernel = ["float32", *([3] if agent == "all" else []), 64, 10]
    assert about["arrays"]["params/head/kernel"] == kernel
    assert about["run"] == str(saved) and about["metrics"]["consensus_accuracy"] == 0.5


def test_what_is_loaded_is_a_model(saved, tmp_path):
    run = ccl_jax.load_run(saved, "best")
    path = export.export(run, "npz", path=tmp_path / "deep" / "model.weights")
    assert path == tmp_path / "deep" / "model.weights"
    variables = flax.traverse_util.unflatten_dict(dict(np.load(path)), sep="/")
    about = json.loads((tmp_path / "deep" / "model.weights.json").read_text())
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    how = about["normalisation"]
    images = (pixels.astype(np.float32) / how["scale"] - how["mean"]) / how["std"]
    model = ccl_jax.models.make(about["model"], len(about["classes"]), norm=about["norm"])
    _, logits = model.apply(variables, images.astype(np.float32))
    assert about["step"] == run.step == 20
    np.testing.assert_allclose(logits, run.logits(pixels), rtol=1e-5, atol=1e-5)


def test_of_stacked_agents_the_line_loads_one_into_a_pytorch_model(tmp_path, capsys, monkeypatch):
    safetensors = pytest.importorskip("safetensors")
    if importlib.util.find_spec("torch") is None:  # Its arrays are indexed as NumPy's are.
        arrays = pytest.importorskip("safetensors.numpy")
        monkeypatch.setitem(sys.modules, "safetensors.torch", arrays)
        monkeypatch.setattr(safetensors, "torch", arrays, raising=False)
    config = Config(model="lenet5", agents=2, algorithm="dsgd")
    saved_run.save(tmp_path, config, saved_run.facts(7, (28, 28, 1)))
    found = []
    for agent in ("0", "all"):
        argv = ["export", f"--run={tmp_path}", "--format=pytorch", f"--agent={agent}"]
        assert export.main(argv) == 0
        load = capsys.readouterr().out.splitlines()[-1].removeprefix("load it: ")
        exec(load, {"model": types.SimpleNamespace(load_state_dict=found.append)})
    single, first = found
    assert first.keys() == single.keys()
    for name in single:
        np.testing.assert_array_equal(first[name], single[name])


TORCH = {
    "lenet5": (Config(model="lenet5", agents=2, algorithm="dsgd"), (28, 28, 1)),
    "resnet20": (Config(model="resnet20", agents=2, algorithm="dsgd"), (32, 32, 3)),
    "resnet20-batch": (
        Config(model="resnet20", norm="batch", agents=2, algorithm="dsgd"),
        (32, 32, 3),
    ),
}


@pytest.mark.parametrize("case", TORCH)
def test_pytorch_computes_the_same(case, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from tests.support import torch_models

    config, shape = TORCH[case]
    saved_run.save(tmp_path, config, saved_run.facts(7, shape))
    model = torch_models.LeNet5(7) if case == "lenet5" else None
    if model is None:
        norm = torch.nn.BatchNorm2d if config.norm else torch_models.EvoNorm
        model = torch_models.ResNet20(7, norm)
    assert export.main(["export", f"--run={tmp_path}", "--format=pytorch", "--agent=1"]) == 0
    load = capsys.readouterr().out.splitlines()[-1].removeprefix("load it: ")
    exec(load, {"model": model})  # Strictly: every name is there, and no other.
    run = ccl_jax.load_run(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    images = torch.from_numpy((pixels.astype(np.float32) / 255 - 0.4) / np.float32(0.3))
    with torch.no_grad():
        theirs = model.eval()(images.permute(0, 3, 1, 2)).numpy()
    ours = np.asarray(run.logits(pixels, agent=1))
    assert ours.std() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format=npz"], "give --run=DIR"),
        (["--run={saved}"], "give --format=FORMAT, one of safetensors, npz, orbax, pytorch"),
        (["--run={saved}", "--format=onnx"], "'onnx'"),
        (["--run={empty}", "--format=npz"], "is no run (no config.json)"),
        (["--run={bare}", "--format=npz"], "has no checkpoint yet"),
        (["--run={saved}", "--format=npz", "--checkpoint=7"], "give last, best or a step"),
        (["--run={saved}", "--format=npz", "--agent=3"], "give consensus or 0 to 2"),
        (["--run={saved}", "--format=npz", "--agent=-1"], "give consensus or 0 to 2"),
        (["--run={saved}", "--format=pytorch"], "no table of PyTorch's parameter names"),
    ],
)
def test_one_line_and_exit_code_2(flags, said, saved, tmp_path, capsys):
    if "--format=pytorch" in flags:
        pytest.importorskip("safetensors")
    saved_run.save(tmp_path / "bare", CONFIG, saved_run.facts(), steps=())
    places = {"saved": saved, "bare": tmp_path / "bare", "empty": tmp_path}
    before = set(saved.rglob("*"))
    assert export.main(["export", *(flag.format(**places) for flag in flags)]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("error: ") and said in line
    assert set(saved.rglob("*")) == before


@pytest.mark.parametrize("form", FORMATS)
def test_a_directory_that_is_no_export_is_left_alone(form, saved, tmp_path, capsys):
    if form == "safetensors":
        pytest.importorskip("safetensors")
    export_to = lambda path: export.main(
        ["export", f"--run={saved}", f"--format={form}", f"--output={path}"]
    )
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all of it")
    assert export_to(mine) == 2
    (line,) = capsys.readouterr().err.splitlines()
    advice = "give another name" if form == "orbax" else "give the name of a file in it"
    assert line.startswith("error: ") and str(mine) in line and advice in line
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    assert (mine / "thesis.tex").read_text() == "all of it"
    for _ in range(2):  # An export of its own is replaced.
        assert export_to(tmp_path / "model") == 0


def test_a_file_that_would_be_taken_for_the_description_is_left_alone(saved, capsys):
    settings = (saved / "config.json").read_text()
    assert (
        export.main(["export", f"--run={saved}", "--format=npz", f"--output={saved / 'config'}"])
        == 2
    )
    assert "config.json is there, and no export that it describes" in capsys.readouterr().err
    assert (saved / "config.json").read_text() == settings and not (saved / "config").exists()


def test_a_full_disk_is_one_line_and_the_export_before_stays(saved, tmp_path, monkeypatch, capsys):
    target = tmp_path / "model.npz"
    argv = ["export", f"--run={saved}", "--format=npz", f"--output={target}"]
    assert export.main(argv) == 0
    before = target.read_bytes()

    def full(file, **arrays):
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    capsys.readouterr()
    assert export.main(argv) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model.npz", "model.npz.json"}


def test_where_orbax_fails_the_export_before_stays(saved, tmp_path, monkeypatch, capsys):
    argv = ["export", f"--run={saved}", "--format=orbax", f"--output={tmp_path / 'model'}"]
    assert export.main(argv) == 0
    files = lambda: {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    before = files()

    def full(self, directory, *args, **kwargs):
        (directory / "begun").mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", full)
        assert export.main(argv) == 1
    assert "model could not be written" in capsys.readouterr().err
    assert files() == before
    # The description is whole or not there, too.
    write = Path.write_text

    def half(self, text):
        write(self, text[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        assert export.main(argv) == 1
    assert (tmp_path / "model.json").read_bytes() == before[tmp_path / "model.json"]
    assert export.main(argv) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.json"}


@pytest.mark.parametrize("name", ["a", "before"])
def test_what_takes_a_place_is_whole(tmp_path, name, monkeypatch):
    folder = tmp_path / name
    for k in range(2):
        with cli.whole(folder) as partial:
            partial.mkdir()
            (partial / str(k)).touch()
        assert [path.name for path in folder.iterdir()] == [str(k)]
        if k == 0:
            folder.chmod(0o700)
    assert folder.stat().st_mode & 0o777 == 0o700
    # A file does not take the place of a directory, and what was not written none.
    with pytest.raises(IsADirectoryError), cli.whole(folder) as partial:
        partial.touch()
    with pytest.raises(FileNotFoundError), cli.whole(folder):
        pass
    replace = Path.replace

    def interrupted(self, other):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt), cli.whole(folder) as partial:
            partial.mkdir()
    assert replace is Path.replace and [path.name for path in folder.iterdir()] == ["1"]
    # A link stays one, and a private file private.
    (tmp_path / "file").touch(0o600)
    (tmp_path / "link").symlink_to("file")
    with cli.whole(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {name, "file", "link"}


def test_what_safetensors_cannot_write_is_one_line(saved, tmp_path, capsys):
    pytest.importorskip("safetensors")
    run = ccl_jax.load_run(saved)
    with pytest.raises(OSError, match="could not be written"):
        export.export(run, "safetensors", path=tmp_path)


def test_without_safetensors_it_is_said_what_to_install(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for form in ("safetensors", "pytorch"):
        argv = ["export", f"--run={saved}", f"--format={form}", f"--output={tmp_path}/deep/x"]
        assert export.main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--format={form} needs the package safetensors" in line
        assert "pip install 'ccl_jax[safetensors]'" in line
    assert not (tmp_path / "deep").exists()
