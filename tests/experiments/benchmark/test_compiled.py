"""What is compiled for TPUs that are not there, and how a compiled program is read."""

import importlib.util
import json

import jax
import pytest

from ccl_jax.devices.parallel import Plan
from experiments.benchmark import command, compiled
from experiments.benchmark.hlo import Hlo

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)

PROGRAM = """HloModule jit_step, is_scheduled=true

%matrix (p: f32[2,4], q: f32[4,8]) -> f32[2,8] {
  %p = f32[2,4]{1,0} parameter(0)
  %q = f32[4,8]{1,0} parameter(1)
  ROOT %c = f32[2,8]{1,0} convolution(%p, %q), dim_labels=bf_io->bf
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%rows (x: f32[2,8]) -> f32[2] {
  %x = f32[2,8]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %r = f32[2]{0} reduce(%x, %zero), dimensions={1}, to_apply=%sum
}

%laid (y: f32[2,8]) -> f32[8,2] {
  %y = f32[2,8]{1,0} parameter(0)
  ROOT %t = f32[8,2]{1,0} transpose(%y), dimensions={1,0}
}

%body (i: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %i = (s32[], f32[2,8]{1,0:T(2,128)S(1)}) parameter(0)
  %e = f32[2,8]{1,0} exponential(%i), backend_config={"window":{"estimated_cycles":"7"}}
  ROOT %moved = bf16[3]{0} collective-permute(%e), source_target_pairs={{0,1},{1,0}}
}

%more (i: (s32[], f32[2,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %i), direction=LT, backend_config={"estimated_cycles":"1"}
}

ENTRY %main (m: f32[2,4], n: f32[4,8]) -> f32[2] {
  %m = f32[2,4]{1,0:T(2,128)} parameter(0)
  %n = f32[4,8]{1,0:T(4,128)} parameter(1)
  %f.1 = f32[2,8]{1,0} fusion(%m, %n), kind=kOutput, calls=%matrix, backend_config={"estimated_cycles":"1000"}
  %f.2 = f32[8,2]{1,0} fusion(%f.1), kind=kLoop, calls=%laid, backend_config={"estimated_cycles":"30"}
  %w = (s32[], /*index=1*/f32[2,8]{1,0}) while(%f.2), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %g = f32[4,2]{1,0} all-gather(%f.2), replica_groups={{0,1}}, dimensions={0}
  %s.1 = (f32[10]{0}, f32[10]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%g), source_target_pairs={{0,1}}
  %d.1 = f32[10]{0:T(1,128)S(1)} collective-permute-done(%s.1)
  ROOT %f.3 = f32[2]{0} fusion(%w), kind=kLoop, calls=%rows, backend_config={"estimated_cycles":"200"}
}
"""  # noqa: E501


def test_cycles_by_kind_and_in_loops():
    expected = {"convolution": 1000, "reduction": 200, "movement": 30, "elementwise": 5 * (7 + 1)}
    assert Hlo(PROGRAM).cycles() == expected


def test_collectives_are_counted_where_they_are_done():
    # Five turns of three bfloat16, and ten float32; eight float32.
    expected = {"collective-permute": (6, 5 * 3 * 2 + 40), "all-gather": (1, 32)}
    assert Hlo(PROGRAM).collectives() == expected


CALL = (
    "  %{name} = f32[8]{{0}} custom-call(%p), window={{size={size} pad=1_1x1_1}}, "
    'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{kind}"'
)


def test_calls_of_cudnn_are_counted_with_their_windows():
    calls = [("a", "3x3", "Forward"), ("b", "14x14", "Forward"), ("c", "3x3", "BackwardFilter")]
    calls += [("d", "5x5", "BiasActivationForward"), ("e", "1x7", "ForwardGraph")]
    lines = [CALL.format(name=name, size=size, kind=kind) for name, size, kind in calls]
    text = "\n".join(["ENTRY %main (p: f32[8]) -> f32[8] {", *lines, "}"])
    assert Hlo(text).convolutions() == {
        "forward": (4, (14, 14)),
        "by image": (0, (0,)),
        "by kernel": (1, (3, 3)),
    }


class Chip:
    def __init__(self, process_index):
        self.process_index = process_index


def test_one_chip_and_several_processes_know_one_form():
    both, here = ("shard_map", "pmap"), [Chip(0)] * 8
    assert compiled.variants(here, 8, ["float32"], both) == [
        (1, "float32", "shard_map"),
        (4, "float32", "shard_map"),
        (4, "float32", "pmap"),
        (8, "float32", "shard_map"),
        (8, "float32", "pmap"),
    ]
    hosts = [Chip(0)] * 4 + [Chip(1)] * 4
    assert [v for v in compiled.variants(hosts, 8, ["float32"], both) if v[0] == 8] == [
        (8, "float32", "shard_map")
    ]
    # Eight chips cannot share twelve agents, and there are no more than four.
    dtypes = ["float32", "bfloat16"]
    assert [n for n, *_ in compiled.variants(here, 12, dtypes, both[:1])] == [1, 1, 4, 4]
    assert compiled.variants(here[:4], 8, dtypes[1:], both[1:], 2) == [(2, "bfloat16", "pmap")]


def refused(flags, capsys) -> str:
    """The line that a command says before it ends with 2."""
    assert command.main(["benchmark", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    "target", ["gpu", "tpu", "tpu:v5e", "tpu:v5e:8", "cuda:h100:1x1", "gpu:h100", "gpu:h100:0"]
)
def test_what_is_no_slice_of_tpus_is_refused(target, capsys):
    expected = f"compile_for is {target!r}; it must be tpu:GENERATION:SHAPE, as tpu:v5e:2x4"
    assert expected in refused([f"--compile_for={target}"], capsys)


def test_without_libtpu_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'ccl_jax[aot]'" in refused(["--compile_for=tpu:v5e:2x4"], capsys)


def test_without_a_plugin_for_gpus_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'jax[cuda12]'" in refused(["--compile_for=gpu:h100:1"], capsys)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--algorithm=d2"], "--algorithm: only with --compile_for"),
        (["--lambda_m=0", "--drop=0.1"], "--drop, --lambda_m: only with --compile_for"),
        (["--compile_for=tpu:v5e:2x4", "--repeats=3"], "takes no --repeats"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(flags, says, tmp_path, capsys):
    output = tmp_path / "lines.jsonl"
    assert says in refused([*flags, f"--output={output}"], capsys)
    assert not output.exists()


def prepared(*flags):
    """The run that is compiled, here on one CPU device."""
    values = command.define_flags()
    values(["benchmark", "--agents=4", "--model=digits-cnn", "--batch_size=2", *flags])
    return compiled.prepare(values, "bfloat16", Plan(1))


def test_the_flags_of_a_run_say_what_is_compiled():
    run = prepared()
    assert run.config.label == "CCL + qg-dsgdm-n" and run.objective.weights == {
        "model_variant": 0.1,
        "data_variant": 0.1,
    }
    assert run.model.dtype == "bfloat16" and run.dataset.image_shape == (8, 8, 1)
    # The network's flags leave the method as it is; the method's are all that there is of it.
    assert prepared("--drop=0.25").network.faults.drop == 0.25
    assert prepared("--drop=0.25").config.label == "CCL + qg-dsgdm-n"
    run = prepared("--algorithm=d2", "--compression=top-k:0.5", "--gossip_rate=0.2")
    assert run.config.label == "d2" and run.objective.weights == {}
    assert run.network.compressor is not None and run.config.gossip_rate == 0.2
    assert prepared("--feature_loss=moon:1").config.label == "moon + qg-dsgdm-n"


def test_settings_change_the_step_that_is_compiled():
    """What XLA is given, of the run that training would make: products in full precision, and others."""
    text = lambda *flags: lowered_text(prepared("--agents=2", *flags))
    plain = text("--algorithm=dsgd", "--lambda_m=0")
    assert text("--algorithm=dsgd", "--precision=highest").count("HIGHEST") > plain.count("HIGHEST")
    assert len(text("--algorithm=dsgd", "--compression=sign")) > len(plain)


def lowered_text(run):
    return compiled.lower(run).as_text()


def test_a_method_that_is_not_for_tpus_is_refused():
    class Chips(Plan):
        platform = "tpu"

    values = command.define_flags()
    values(["benchmark", "--agents=4", "--model=digits-cnn", "--algorithm=cga"])
    with pytest.raises(ValueError, match="cga needs float64, which a TPU does not have"):
        compiled.prepare(values, "float32", Chips(1))


def test_not_with_growing_numbers_of_agents(capsys):
    assert "leave one" in refused(["--compile_for=tpu:v5e:2x4", "--scaling"], capsys)


@needs_libtpu
@pytest.mark.parametrize(
    "target, says",
    [
        ("tpu:v9:2x2", "does not know it (INVALID_ARGUMENT: Invalid TPU external name"),
        ("tpu:v5e:3x5", "is not divisible"),
        ("tpu:v4:2x2x1", "take v5e, v5p or v6e"),
    ],
)
def test_slices_that_are_not_known_are_refused(target, says, capsys):
    assert says in refused([f"--compile_for={target}"], capsys)


@needs_libtpu
def test_numbers_of_chips_that_are_left_out_are_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compiled, "facts", lambda run: {"cycles": 10**6})
    flags = ["--compile_for=tpu:v5e:2x2", "--agents=6", "--spmd=pmap", f"--output={tmp_path}/x"]
    assert command.main(["benchmark", *flags]) == 0
    out, error = capsys.readouterr()
    assert "not for [4, 8] chips: tpu:v5e:2x2 has 4, and the number has to divide 6 agents" in error
    assert "1 x float32" in out and "1 x bfloat16" in out


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_lenet5_compiles_for_four_chips(tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    flags = ["--model=lenet5", "--dtype=float32", "--compile_for=tpu:v5e:2x2", f"--output={file}"]
    assert command.main(["benchmark", *flags, "--devices=4"]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["devices"], line["spmd"]) for line in lines] == [(4, "shard_map"), (4, "pmap")]
    for line in lines:
        kinds = [line[f"cycles_{kind}"] for kind in ("convolution", "reduction", "elementwise")]
        assert min(kinds) > 0 and sum(kinds) + line["cycles_movement"] == line["cycles"]
        # Two neighbours' models, and their images for the features.
        model, images = 4 * 61_706, 32 * 28 * 28 * 4
        assert 2 * (model + images) < line["collective_bytes"] < 4 * (model + images)
        # Models, images, features, class sums and counts, one buffer of each in both directions.
        assert line["collectives"] == {"collective-permute": 10}
        # Four agents' models and their momentum, at least.
        assert line["chip_bytes"] > 4 * 2 * model
    shown = capsys.readouterr().out
    assert "4 x float32, pmap" in shown and "M cycles" in shown
    assert jax.default_backend() == "cpu"


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="JAX's CUDA plugin is not installed",
)
@pytest.mark.slow
def test_kernel_gradients_on_a_gpu_are_calls_of_their_own(tmp_path, capsys):
    """cuDNN has a call for them; else they are convolutions with windows as large as the images."""
    file = tmp_path / "lines.jsonl"
    flags = ["--model=lenet5", "--dtype=float32", "--compile_for=gpu:h100:1", f"--output={file}"]
    assert command.main(["benchmark", *flags]) == 0
    line = json.loads(file.read_text())
    # Of its two convolutions.
    assert line["convolutions_by kernel"] == 2 and line["largest_window"] == "3x3"
    assert "by kernel" in capsys.readouterr().out


@needs_libtpu
@pytest.mark.slow
def test_another_method_compiles(tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    flags = ["--model=digits-cnn", "--dtype=float32", "--agents=4", "--batch_size=4"]
    flags += ["--compile_for=tpu:v5e:2x2", f"--output={file}", "--devices=4", "--spmd=shard_map"]
    assert command.main(["benchmark", *flags, "--algorithm=dsgd"]) == 0
    assert command.main(["benchmark", *flags, "--algorithm=dsgt"]) == 0
    assert "dsgt: digits-cnn, ring, 4 agents" in capsys.readouterr().out
    one, two = map(json.loads, file.read_text().splitlines())
    # Gradient tracking sends its tracker, too.
    assert two["collective_bytes"] == 2 * one["collective_bytes"] > 0
    assert two["method"] == "dsgt" and two["settings"]["algorithm"] == "dsgt"
