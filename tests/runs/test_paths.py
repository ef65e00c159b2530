"""Paths in settings: `~` is the home directory wherever a path begins, and all are local."""

import pytest
from absl import flags

from ccl_jax.runs import paths
from ccl_jax.runs.config import Config
from experiments import cli


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize(
    "text, expanded",
    [
        ("~", "/home/me"),
        ("~/x", "/home/me/x"),
        ("folder:~/pets", "folder:/home/me/pets"),
        ("file:~/g.txt", "file:/home/me/g.txt"),
        ("alternating:file:~/a.txt+file:~/b.txt", None),
        # These are names with a tilde, or no paths at all.
        ("./~", "./~"),
        ("x/~/y", "x/~/y"),
        ("a~b", "a~b"),
        ("backup~", "backup~"),
        ("localhost:9911", "localhost:9911"),
        ("0.2:3", "0.2:3"),
        ("top-k:0.01", "top-k:0.01"),
        ("a//b", "a//b"),
    ],
)
def test_the_home_directory(text, expanded):
    expanded = expanded or "alternating:file:/home/me/a.txt+file:/home/me/b.txt"
    assert paths.local(text) == expanded


def test_a_home_that_is_not_known_is_no_folder_of_that_name():
    with pytest.raises(ValueError, match=r"directory ~nobody-at-all is not known.*\./~nobody-at"):
        paths.local("folder:~nobody-at-all/x")


@pytest.mark.parametrize(
    "text", ["gs://bucket/run", "s3://b", "hf://datasets/x", "folder:gs://b/x", "abfs+x.y://z"]
)
def test_places_elsewhere_are_refused(text):
    with pytest.raises(ValueError, match="no path on this machine") as refused:
        paths.local(text)
    assert repr(text) in str(refused.value)


def test_every_setting_of_a_run():
    config = Config(
        workdir="~/run",
        data_dir="~/data",
        compile_cache="~/cache",
        domain=("folder:~/a", "digits"),
        topology="file:~/g.txt",
    )
    assert (config.workdir, config.data_dir) == ("/home/me/run", "/home/me/data")
    assert config.compile_cache == "/home/me/cache"
    assert config.domain == ("folder:/home/me/a", "digits")
    assert config.topology == "file:/home/me/g.txt"
    for name in ("workdir", "data_dir", "compile_cache", "topology"):
        with pytest.raises(ValueError, match="no path on this machine"):
            Config(**{name: "s3://b/x"})
    with pytest.raises(ValueError, match="no path on this machine"):
        Config(domain=("digits", "folder:s3://b/x"))


def test_every_flag_of_any_main():
    values = flags.FlagValues()
    flags.DEFINE_string("out", "here.png", "", flag_values=values)
    flags.DEFINE_multi_string("topology", None, "", flag_values=values)
    flags.DEFINE_integer("agents", 3, "", flag_values=values)
    cli.parse(values, ["main", "--topology=ring", "--topology=file:~/g.txt", "--agents=4"])
    assert values.topology == ["ring", "file:/home/me/g.txt"]
    assert (values.out, values.agents) == ("here.png", 4)
    cli.parse(values, ["main", "--out=~/x.png"])
    assert values.out == "/home/me/x.png"
    with pytest.raises(ValueError, match=r"'gs://b/x\.png' is no path"):
        cli.parse(values, ["main", "--out=gs://b/x.png"])
