"""Two processes of four devices each train as one process does, stop together and go on together.

`CCL_TEST_EVERY_ALGORITHM=1` in the environment runs every method; the default is one of every kind.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ccl_jax import algorithms
from ccl_jax.data import base, feeds, partition
from ccl_jax.devices import hosts, parallel
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.directory import RunDirectory
from tests.devices.test_parallel import SUITABLE
from tests.support import tiny_main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/running.md").read_text()


def shown(name: str) -> list[str]:
    """The flags in a variable of the two-process run of docs/running.md."""
    (flags,) = re.findall(rf'^    {name}="(.*)"$', PAGE, re.MULTILINE)
    return flags.split()


# 1,437 images: 6 steps an epoch, the last of them padded.
COMMON = (
    "--nofigures",
    "--agents=8",
    "--devices=8",
    "--epochs=4",
    "--eval_every=4",
    "--lr=0.02",
    "--schedule=constant",
)
RUNS = {
    # What docs/running.md runs.
    "ccl": shown("RUN")[:-1],
    "pmap": ("--algorithm=dsgdm-n", "--lambda_m=0.1", "--lambda_d=0.1", "--spmd=pmap"),
    "relaysgd": ("--algorithm=relaysgd", "--topology=chain"),
    "sgp": ("--algorithm=sgp", "--topology=one-peer-exponential"),
    # One batch over both processes, and images that differ from agent to agent.
    "batch": (
        "--algorithm=dsgdm-n",
        "--agents=4",
        "--epochs=2",
        "--batch_devices=8",
        "--clip_norm=0.5",
        "--feature_shift=noise:0.2",
    ),
}
if not os.environ.get("CCL_TEST_EVERY_ALGORITHM"):
    RUNS = {name: RUNS[name] for name in ("ccl", "pmap", "batch")}
else:
    RUNS |= {
        name: (
            f"--algorithm={name}",
            f"--topology={SUITABLE.get(name, 'ring')}",
            "--lambda_m=0.05",
            "--lambda_d=0.05",
        )
        for name in algorithms.REGISTRY
    }
SAVING = ("--checkpoint_every=2", "--keep=9")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(*command: str, cache: Path | str = "") -> subprocess.Popen:
    python = [sys.executable, *command]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        python, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory, pytestconfig):
    """What two processes did with all runs: their folder, exit codes, stdouts and stderrs."""
    folder = tmp_path_factory.mktemp("hosts")
    flags = lambda name: [*COMMON, *SAVING, *RUNS[name], f"--workdir={folder / name}"]
    entries = [{"flags": flags(name)} for name in RUNS]
    entries = [entries[0] | {"terminate": 9}, *entries]
    entries[1] = {"flags": [*entries[1]["flags"], "--resume"]}
    # What only one of them cannot do ends both: the graph's file is of another name there.
    entries += [{"flags": [*COMMON, "--algorithm=dsgd", f"--workdir={folder / 'bad'}"]}]
    processes = []
    for k in range(2):
        graph = {"topology": f"file:{folder}/nowhere"} if k else {}
        mine = json.dumps([*entries[:-1], {"flags": [*entries[-1]["flags"], *as_flags(graph)]}])
        (folder / f"runs{k}.json").write_text(mine)
    port = free_port()
    for k in range(2):
        assert f"python -m experiments.digits $RUN $HOSTS --process_id={k}" in PAGE
        joining = [flag.replace(":9911", f":{port}") for flag in shown("HOSTS")]
        runs = str(folder / f"runs{k}.json")
        process = ["-m", "tests.support.hosts_main", runs, *joining, f"--process_id={k}"]
        processes.append(start(*process, cache=pytestconfig.cache.mkdir("jax-hosts")))
    ends = [process.communicate(timeout=300 + 60 * len(RUNS)) for process in processes]
    return folder, [p.returncode for p in processes], *zip(*ends, strict=True)


def as_flags(values) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def outcome(workdir: Path, step: int = 24):
    """Arrays of a checkpoint, and rows of metrics without their seconds."""
    arrays = Checkpoints(workdir / "checkpoints").arrays(step)
    rows = RunDirectory(workdir).read_metrics()
    return arrays, [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def alone(tmp_path: Path, name: str, devices: int):
    """The same run in this process."""
    flags = [*COMMON, *RUNS[name], "--batch_devices=1", f"--devices={devices}"]
    assert tiny_main.main(["tiny_main", *flags, f"--workdir={tmp_path / str(devices)}"]) == 0
    return outcome(tmp_path / str(devices))


def assert_close(a, b):
    (arrays, rows), (expected, expected_rows) = a, b
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        # The momentum of quasi-global methods is a difference of parameters over the learning rate.
        limit = 1e-4 if name.startswith(".algorithm") else 1e-5
        np.testing.assert_allclose(arrays[name], value, rtol=limit, atol=limit, err_msg=name)
    assert len(rows) == len(expected_rows) >= 2
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert row.keys() == wanted.keys()
        for key in row:
            # Nearly equal logits may be told apart differently: one of 360 test images.
            tolerance = 3e-3 if "accuracy" in key else 1e-5
            if wanted[key] is not None:
                np.testing.assert_allclose(row[key], wanted[key], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_device(name, pair, tmp_path):
    assert_close(outcome(pair[0] / name), alone(tmp_path, name, devices=1))


@pytest.mark.slow
def test_two_processes_train_as_one_of_eight_devices(pair, tmp_path):
    assert_close(outcome(pair[0] / "ccl"), alone(tmp_path, "ccl", devices=8))


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_the_same_step_and_both_go_on(pair):
    """That they go on to the same end is what the tests above have seen."""
    _, _, outs, errors = pair
    for text in outs:
        assert re.findall(r"exit code (\d+)", text) == ["143", *["0"] * len(RUNS)]
    for text in errors:
        # Step 10 was under way, and what they agree on is known a step later.
        assert "stopped by signal 15 after step 11" in text
    assert "goes on after step 11" in errors[0]


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_have_saved(pair, tmp_path):
    shutil.copytree(pair[0] / "ccl", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "24")
    (tmp_path / "one" / "summary.json").unlink()
    flags = [*COMMON, *RUNS["ccl"], f"--workdir={tmp_path / 'one'}", "--resume"]
    assert tiny_main.main(["tiny_main", *flags]) == 0
    assert_close(outcome(tmp_path / "one"), outcome(pair[0] / "ccl"))


@pytest.mark.slow
def test_only_the_first_prints_and_what_fails_in_one_fails_in_both(pair):
    folder, codes, outs, errors = pair
    assert outs[0].count("run directory: ") == len(RUNS)
    assert "run directory" not in outs[1]
    assert codes == [2, 2]
    assert "nowhere" in errors[1].splitlines()[-1]
    assert errors[0].splitlines()[-1].startswith("error: another process has failed")
    assert not (folder / "bad").exists()


APART = """
import sys
from pathlib import Path

from ccl_jax import Config
from ccl_jax.devices import hosts
from ccl_jax.runs import checksums, seeds

port, me, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
hosts.join(f"localhost:{port}", 2, me)
config = Config(
    dataset="digits",
    model="digits-cnn",
    agents=4,
    algorithm="dsgd",
    lr=0.1 * (me + 1),
    # What each may have its own of.
    quiet=bool(me),
    num_processes=2,
    process_id=me,
)
(run,) = seeds.prepare(config, [0], folder)
print(run.plan.devices)
try:
    checksums.agree(run)
except ValueError as error:
    print(error)
"""


def test_processes_ask_for_their_devices_first_and_refuse_to_train_apart(tmp_path):
    port = free_port()
    processes = [start("-c", APART, str(port), str(k), str(tmp_path)) for k in range(2)]
    ends = [process.communicate(timeout=120) for process in processes]
    for process, (out, error) in zip(processes, ends, strict=True):
        assert process.returncode == 0, error
        assert out.splitlines()[-2:] == [
            "4",
            "processes 0 and 1 would not train the same: lr is 0.1 and 0.2; start all with the same "
            "flags, files and checkpoints",
        ]


def test_who_does_not_find_the_others_says_so():
    port = free_port()
    join = f"hosts.join('localhost:{port}', 2, 1, timeout_seconds=1)"
    process = start("-c", f"from ccl_jax.devices import hosts; {join}; print('joined')")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    last = error.splitlines()[-1]
    assert last.startswith("error: not all processes found each other at localhost:")
    assert "within 1 seconds" in last


REFUSED = [
    (["--coordinator=localhost:1"], "num_processes and process_id must be given too"),
    (["--process_id=0"], "coordinator and num_processes must be given too"),
    (["--coordinator=localhost", "--num_processes=2", "--process_id=0"], "must be HOST:PORT"),
    (["--coordinator=a:70000", "--num_processes=2", "--process_id=0"], "must be HOST:PORT"),
    (["--coordinator=a:1", "--num_processes=0", "--process_id=0"], "num_processes is 0"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "process_id is 2; it must be 0"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=-1"], "process_id is -1"),
    (["--coordinator=a:1", "--distributed"], "not both"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=0"], "before JAX has started"),
    (["--batch_devices=0"], "batch_devices is 0"),
    (["--batch_devices=3"], "batch_devices is 3; it must be a divisor of batch_size 32"),
    (["--batch_devices=2", "--devices=3"], "3 devices cannot be divided by batch_devices 2"),
    (["--batch_devices=2", "--spmd=pmap"], "take shard_map"),
    (["--batch_devices=16"], "cannot be spread evenly"),
]


@pytest.mark.parametrize("flags, says", REFUSED, ids=[" ".join(r[0]) for r in REFUSED])
def test_refused_in_one_line(flags, says, tmp_path, capsys):
    jax.devices()
    assert (
        tiny_main.main(["tiny_main", *flags, "--algorithm=dsgd", f"--workdir={tmp_path / 'run'}"])
        == 2
    )
    out, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert out == "" and says in line
    assert not (tmp_path / "run").exists()


def test_devices_that_processes_cannot_share_are_refused(monkeypatch):
    monkeypatch.setattr(hosts, "count", lambda: 2)
    with pytest.raises(ValueError, match="3 devices cannot be divided by num_processes 2"):
        parallel.Plan(3)
    with pytest.raises(ValueError, match="7 agents with batch_devices 1 cannot be spread evenly"):
        parallel.usable_devices(7)


def test_a_host_holds_back_what_is_not_its_own():
    """The batches of some agents, as the whole feed has them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 2, 2, 1), dtype=np.uint8)
    labels = rng.integers(0, 3, 40).astype(np.int32)
    tiny = base.Dataset(
        "tiny", images, labels, images, labels, 3, (0.5,), (0.3,), 255.0, tuple("abc")
    )
    split = partition.Partition("uneven", tuple(np.split(np.arange(40), [10, 26, 31])))
    whole, part = feeds.InMemory(tiny, split, 4, 1), feeds.OnHost(tiny, split, 4, 1, [1, 3])
    assert part.steps == whole.steps == 4
    for indices, item in zip(whole.epoch(1, 1), part.epoch(1, 1), strict=True):
        expected = whole.fetch(whole.constants, indices)
        for found, wanted in zip(item, expected, strict=True):
            np.testing.assert_array_equal(found, wanted[np.array([1, 3])])
