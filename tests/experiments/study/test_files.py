"""A user's own study file: what is wrong in it, the code it needs, and the command that names both."""

import shlex

import pytest

from ccl_jax import algorithms
from experiments import cli, extensions
from experiments.study import catalogue, command, records
from tests.support import tiny_main  # noqa: F401 (registers the model "mlp")
from tests.support.studies import SMALL


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("title", "titel", "unknown key of the study 'titel': did you mean 'title'"),
        ('"plain" = { algorithm', '"plain" = { algoritm', "did you mean 'algorithm'"),
        ('"dsgdm-n" }', "3 }", "methods.plain.algorithm is 3; it must be a text"),
        ("epochs = 2", "epochs = 2.5", "epochs is 2.5; it must be a whole number"),
        ("epochs = 2", "epochs = 0", "epochs is 0; it must be at least 1"),
        ("epochs = 2", "seed = 2", "unknown setting 'seed'"),
        ("seeds = [0, 1]", "seeds = []", "seeds are []"),
        # What only a run would find, after those before it.
        (
            '"plain" = { algorithm = "dsgdm-n" }',
            '"plain" = { algorithm = "dsgd-n" }',
            "plain, seed 0: unknown algorithm 'dsgd-n': did you mean 'dsgdm-n'",
        ),
        ('model = "mlp"', 'model = "lenet5"\nnorm = "bach"', "unknown norm 'bach': did you mean"),
        ("alpha = 1.0", 'schedule = "cosin"', "unknown schedule 'cosin': did you mean 'cosine'"),
        ("alpha = 1.0", 'distance = "hubr"', "unknown distance 'hubr': did you mean 'huber'"),
        ("alpha = 1.0", 'augment = "flip-corp"', "unknown augmentation 'flip-corp'"),
        ("alpha = 1.0", 'feature_shift = ["rotat:0.5"]', "rotat"),
        ("alpha = 1.0", 'label_noise = "2"', "label_noise is '2'; it must be a rate in [0, 1]"),
        ("alpha = 1.0", 'domain = ["mnist18"]', "unknown dataset 'mnist18': did you mean"),
        ('model = "mlp"', 'model = "mpl"', "unknown model 'mpl': did you mean 'mlp'"),
        ("alpha = 1.0", 'topology = "rign"', "unknown topology 'rign': did you mean 'ring'"),
        ("alpha = 1.0", 'topology = "dyck"', "dyck"),
        ("alpha = 1.0", 'partition = "idd"', "unknown partition 'idd': did you mean 'iid'"),
        ("alpha = 1.0", 'compression = "topk:2"', "topk"),
        ("alpha = 1.0", 'hparam = ["momntum=0.9"]', "dsgdm-n has no hyper-parameter momntum"),
        (
            '"plain" = { algorithm = "dsgdm-n" }',
            '"plain" = { algorithm = "d2", local_steps = 3 }',
            "plain, seed 0: local_steps is 3, and d2 needs an exchange in every step",
        ),
        ("seeds = [0, 1]", 'seeds = [0]\nreference = "plan"', "did you mean 'plain'"),
        (
            "[data.digits.settings]",
            "[data.digits]\nmain = 3\n[data.digits.settings]",
            "main of data.digits is 3",
        ),
        ("seeds = [0, 1]", 'seeds = [0]\nagainst = { ccl = "x" }', "unknown method 'x'"),
        ("seeds = [0, 1]", "seeds = 3", "seeds of the study is 3; it must be a list"),
        ("seeds = [0, 1]", "seeds = [0]\naxes = { lr = 3 }", "axes.lr is 3; it must be a table"),
        ("[data.digits.settings]", "[date.digits.settings]", "unknown key of the study 'date'"),
        (
            "seeds = [0, 1]",
            'seeds = [0]\n[[figures]]\nkind = "pie"',
            "unknown kind of figure 'pie'",
        ),
        ("seeds = [0, 1]", 'seeds = [0]\n[[figures]]\nkind = "lines"', "figures.lines needs x"),
        ("seeds = [0, 1]", "seeds = [0]\n[tune]\nlr = [1]", "tune needs lr = [...], validation"),
        (
            "seeds = [0, 1]",
            'seeds = [0]\n[tune]\nlr = [1]\nvalidation = 0.1\nseeds = [1]\neach = ["a"]',
            "tune.each names 'a'",
        ),
        ("seeds = [0, 1]", "seeds = [0, 1", "mine"),
        # What counts twice if it is given twice.
        ("seeds = [0, 1]", "seeds = [0, 1, 0]", "seeds: 0 is given 2 times"),
        ("seeds = [0, 1]", "seeds = [1, true]", "seeds are [1, True]; they must be whole numbers"),
        (
            "seeds = [0, 1]",
            'seeds = [0]\nmetrics = ["local_accuracy_min", "local_accuracy_min"]',
            "metrics: local_accuracy_min is given 2 times",
        ),
        ("seeds = [0, 1]", "seeds = [0]\nmetrics = [[]]", "metrics are [[]]; they must be texts"),
        (
            "seeds = [0, 1]",
            'seeds = [0]\nmetrics = ["consensus_acuracy"]',
            "unknown metric 'consensus_acuracy': did you mean 'consensus_accuracy'",
        ),
        (
            "seeds = [0, 1]",
            'seeds = [0]\n[[figures]]\nkind = "lines"\nx = "aplha"',
            "unknown x of figures.lines 'aplha': did you mean 'alpha'",
        ),
        ("seeds = [0, 1]", "seeds = [0]\nfigures = [1]", "figures: 1 must be a table"),
        ("seeds = [0, 1]", "seeds = [0]\nagainst = { ccl = 1 }", "against: 1 must be a text"),
        (
            "seeds = [0, 1]",
            "seeds = [0]\n[tune]\nlr = [1]\nvalidation = 0.1\nseeds = [8, 8]",
            "tune.seeds: 8 is given 2 times",
        ),
        (
            "seeds = [0, 1]",
            'seeds = [0]\n[tune]\nlr = [1]\nvalidation = 0.1\nseeds = ["8"]',
            "tune.seeds are ['8']; they must be whole numbers",
        ),
        (
            "seeds = [0, 1]",
            "seeds = [0]\n[tune]\nlr = [0.1, 1, 1e-1]\nvalidation = 0.1\nseeds = [8]",
            "tune.lr: 0.1 is given 2 times",
        ),
        (
            "seeds = [0, 1]",
            'seeds = [0]\n[axes.alpha]\n"0.1" = { alpha = 0.1 }\n"0.10" = { alpha = 0.10 }',
            "axes.alpha: '0.1' and '0.10' have the same settings",
        ),
        (
            '"plain" = { algorithm = "dsgdm-n" }',
            '"plain" = { algorithm = "dsgdm-n" }\n"again" = { algorithm = "dsgdm-n" }',
            "methods: 'plain' and 'again' have the same settings",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line(write, capsys, tmp_path, old, new, message):
    assert old in SMALL
    path = write(SMALL.replace(old, new, 1))
    code = command.main(["study", f"--study={path}", f"--results={tmp_path}/r"])
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_epochs_of_ones_own_are_not_those_of_all_runs(write, capsys):
    path = write(SMALL + '[axes.length]\n"short" = { epochs = 1 }\n"long" = { epochs = 2 }\n')
    assert command.main(["study", f"--study={path}", "--epochs=3", "--list"]) == 2
    assert "--epochs=3 is for all runs, and short of mine has epochs" in capsys.readouterr().err


def test_runs_of_another_version_of_ones_own_file_are_said(write, tmp_path, capsys, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ccl_jax import algorithms\n"
        "@algorithms.register('own-dsgd', summary='x', reference='x', "
        "capabilities=algorithms.base.GOSSIP)\n"
        "def own():\n    return algorithms.make('dsgd')\n"
    )
    monkeypatch.setattr(extensions, "LOADED", [])
    registry = dict(algorithms.REGISTRY)
    path = write(SMALL.replace('algorithm = "dsgdm-n" }', 'algorithm = "own-dsgd" }', 1))
    argv = ["study", f"--study={path}", f"--results={tmp_path}/r", "--seeds=0", "--only=plain"]
    argv += [f"--extension={file}"]
    try:
        assert command.main(argv) == 0
        assert command.main(argv) == 0
        assert "made with another" not in capsys.readouterr().err
        (found,) = records.read(tmp_path / "r" / "mine-digits" / "runs.jsonl")
        assert found["made_with"]["own_code"].keys() == {"mine.py", "tiny_main.py"}
        file.write_text(file.read_text() + "# changed\n")
        assert command.main(argv) == 0
        assert "note: some of them were made with another mine.py" in capsys.readouterr().err
    finally:
        algorithms.REGISTRY.clear()
        algorithms.REGISTRY.update(registry)


def test_the_command_of_ones_own_study_names_its_files(write, tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "LOADED", [])
    (tmp_path / "my model.py").touch()
    path = write(SMALL.replace('"ccl" =', "'c\"cl' ="))
    asked = [f"--study={path}", "--seeds=4", '--only=c"c', f"--extension={tmp_path}/my model.py"]
    values = command.define()
    cli.parse(values, ["study", *asked])
    assert shlex.split(command.requested(values).options) == asked
    # Another study in the same process does not need it.
    assert catalogue.load("agents").options == "--study=agents"


def test_a_file_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SMALL, encoding="utf-8-sig")
    assert catalogue.load(str(path)).seeds == (0, 1)
    path.write_text(SMALL, encoding="utf-16")
    with pytest.raises(ValueError, match=r"study .*mine\.toml: .* can't decode"):
        catalogue.load(str(path))
