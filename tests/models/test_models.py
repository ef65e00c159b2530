"""What every model keeps to: sizes, types, initialisation, agents axis; users' own modules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ccl_jax import models
from ccl_jax.models.layers import max_pool_2x2
from ccl_jax.models.resnet import cifar_resnet, imagenet_resnet
from experiments import flops

# name: (image shape, F, parameters with 10 classes and the published norm). LeNet-5, ResNet-20 and
# -18, MobileNet-V2 and VGG-11: counted in the authors' models. ResNet-34 and -50: torchvision's
# 21,797,672 and 25,557,032 with 1000 classes, less 990 rows of the last layer (513 and 2,049
# numbers each). ResNet-8: ResNet-20 less two blocks of each stage,
# 2 * (18 * 256 + 64) + 2 * (18 * 1024 + 128) + 2 * (18 * 4096 + 256) = 194,432.
# digits-cnn: 160 + 32 + 9,280 + 128 + 650.
SIZES = {
    "digits-cnn": ((8, 8, 1), 64, 10_250),
    "lenet5": ((28, 28, 1), 84, 61_706),
    "mobilenetv2": ((32, 32, 3), 1280, 2_296_922),
    "resnet8": ((32, 32, 3), 64, 78_042),
    "resnet20": ((32, 32, 3), 64, 272_474),
    "resnet18": ((224, 224, 3), 512, 11_181_642),
    "resnet34": ((224, 224, 3), 512, 21_289_802),
    "resnet50": ((224, 224, 3), 2048, 23_528_522),
    "vgg11": ((32, 32, 3), 128, 579_786),
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes_of(model, image_shape, batch=3):
    images = jnp.zeros((batch, *image_shape))

    def run():
        params, state = models.init(model, jax.random.key(0), image_shape)
        return params, state, models.apply_eval(model, params, state, images)

    return jax.eval_shape(run)


def test_every_model_is_listed():
    assert set(SIZES) == set(models.MODELS) - {"mlp", "slow"}  # tests/support/tiny_main.py's own


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    image_shape, width, parameters = SIZES[name]
    params, state, (features, logits) = shapes_of(models.make(name, 10), image_shape)
    assert count(params) == parameters
    assert state == {}
    assert features.shape == (3, width)
    assert logits.shape == (3, 10)
    assert params["head"]["kernel"].shape == (width, 10)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("digits-cnn", "none"),
        ("lenet5", "evonorm"),
        ("mobilenetv2", None),
        ("resnet8", "batch"),
        ("vgg11", "group"),
    ],
)
def test_half_precision_computes_but_does_not_return(name, norm):
    model = models.make(name, 10, norm=norm, dtype=jnp.bfloat16)
    params, _, (features, logits) = shapes_of(model, SIZES[name][0])
    assert features.dtype == logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_half_precision_is_close_to_full(quick_init):
    full, half = (models.make("digits-cnn", 10, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    params, _ = quick_init(full, (8, 8, 1))
    images = normal(4, 8, 8, 1)
    _, expected = jax.jit(lambda: models.apply_eval(full, params, {}, images))()
    _, logits = jax.jit(lambda: models.apply_eval(half, params, {}, images))()
    np.testing.assert_allclose(logits, expected, atol=0.02)
    assert not np.array_equal(logits, expected)


def test_features_are_the_input_of_the_head(quick_init):
    model = models.make("lenet5", 10)
    params, _ = quick_init(model, (28, 28, 1))
    images = normal(4, 28, 28, 1)
    features, logits = jax.jit(lambda: models.apply_eval(model, params, {}, images))()
    head = params["head"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"][None], logits, atol=1e-6)


@pytest.mark.parametrize("name", ["lenet5", "digits-cnn", "resnet20", "vgg11", "mobilenetv2"])
def test_other_image_sizes(name):
    _, _, (features, logits) = shapes_of(models.make(name, 100), (40, 36, 2))
    assert features.shape[0] == 3
    assert logits.shape == (3, 100)


def test_agents_axis(quick_init):
    """Two agents with their own parameters and images, stacked: the same as one after the other."""
    model = models.make("digits-cnn", 10, norm="batch")
    one = quick_init(model, (8, 8, 1))
    params, state = jax.tree.map(lambda leaf: np.stack([leaf, 0.5 * leaf]), one)
    images = normal(2, 5, 8, 8, 1)
    apply = lambda *args: models.apply_train(model, *args)
    (features, logits), new_state = jax.jit(jax.vmap(apply))(params, state, images)
    apply = jax.jit(apply)
    for agent in range(2):
        own = jax.tree.map(lambda leaf: leaf[agent], (params, state, images))  # noqa: B023
        (f, z), s = apply(*own)
        np.testing.assert_allclose(features[agent], f, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logits[agent], z, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            new_state["batch_stats"]["norm2"]["var"][agent],
            s["batch_stats"]["norm2"]["var"],
            rtol=1e-4,
        )


def test_lenet_starts_as_in_pytorch(quick_init):
    """Uniform in +-1/sqrt(fan_in), the standard deviation 1/sqrt(3 fan_in); biases too."""
    params, _ = quick_init(models.make("lenet5", 10), (28, 28, 1))
    for module, fan_in in [("conv2", 150), ("fc1", 400), ("fc2", 120), ("head", 84)]:
        kernel, bias = params[module]["kernel"], params[module]["bias"]
        assert np.abs(kernel).max() <= fan_in**-0.5 * 1.0001
        assert np.std(kernel) * np.sqrt(3 * fan_in) == pytest.approx(1, abs=0.05)
        assert 0.5 * fan_in**-0.5 < np.abs(bias).max() <= fan_in**-0.5


def test_resnet_starts_normal_in_fan_out(quick_init):
    params, _ = quick_init(models.make("resnet8", 10), (32, 32, 3))
    for kernel, fan_out in [
        (params["layer3_0"]["conv1"]["kernel"], 9 * 64),
        (params["layer3_0"]["shortcut_conv"]["kernel"], 64),
    ]:
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / fan_out), rel=0.05)
        # Kurtosis 3: normal, neither uniform (1.8) nor truncated at two deviations (2.4).
        standard = np.asarray(kernel) / np.std(kernel)
        assert np.mean(standard**4) == pytest.approx(3, abs=0.4)


def test_vgg_starts_normal_in_fan_out(quick_init):
    """As the published one: deviations sqrt(2 / (9 out)), biases 0; the last layer PyTorch's."""
    params, _ = quick_init(models.make("vgg11", 10), (32, 32, 3))
    for layer, channels in [("conv2", 32), ("conv4", 64), ("conv8", 128)]:
        kernel = np.asarray(params[layer]["kernel"])
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * channels)), rel=0.05)
        assert np.mean((kernel / np.std(kernel)) ** 4) == pytest.approx(3, abs=0.4)
        assert not np.any(params[layer]["bias"])
    assert 0.5 * 128**-0.5 < np.abs(params["head"]["bias"]).max() <= 128**-0.5


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 7, 2)])
def test_max_pool_equals_window_reduction(shape):
    x = normal(*shape)
    slices = jax.jit(max_pool_2x2)
    window = lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    np.testing.assert_array_equal(slices(x), window(x))
    weights = normal(*window(x).shape, seed=1)
    ours, theirs = (
        jax.jit(jax.grad(lambda x, pool=pool: jnp.sum(pool(x) * weights)))(x)
        for pool in (slices, window)
    )
    np.testing.assert_array_equal(ours, theirs)


class Plain(nn.Module):
    """A user's own model: no `train`."""

    @nn.compact
    def __call__(self, images):
        features = nn.relu(nn.Dense(7)(images.reshape(images.shape[0], -1)))
        return features, nn.Dense(3)(features)


def test_own_module_without_train(quick_init):
    model = Plain()
    params, state = quick_init(model, (4, 4, 1))
    images = normal(2, 4, 4, 1)
    (features, logits), new_state = models.apply_train(model, params, state, images)
    assert features.shape == (2, 7)
    assert new_state == state == {}
    np.testing.assert_array_equal(logits, models.apply_eval(model, params, state, images)[1])


def test_bad_input():
    with pytest.raises(ValueError, match="unknown model 'ResNet-20': did you mean 'resnet20'"):
        models.make("ResNet-20", 10)
    with pytest.raises(ValueError, match="unknown norm 'groupnorm': did you mean 'group'"):
        models.make("resnet20", 10, norm="groupnorm")
    with pytest.raises(ValueError, match="num_classes is 0"):
        models.make("resnet20", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "plain", lambda num_classes, dtype: OneLayer())
        patch.setitem(models.MODELS, "untyped", lambda num_classes: OneLayer())
        models.make("plain", 2)
        around = functools.wraps(models.MODELS["untyped"])(lambda **fields: OneLayer())
        patch.setitem(models.MODELS, "around", around)
        models.make("around", 2, norm="batch")
        with pytest.raises(ValueError, match="model plain has no field norm; leave out norm"):
            models.make("plain", 2, norm="batch")
        with pytest.raises(ValueError, match="untyped has no field dtype, which every model has"):
            models.make("untyped", 2)
        assert flops.forward("plain", 2, (2, 2, 1)) == 2 * 4 * 2
    with pytest.raises(ValueError, match="image_shape is \\(28, 28\\)"):
        models.init(models.make("lenet5", 10), jax.random.key(0), (28, 28))
    with pytest.raises(ValueError, match="depth is 21"):
        cifar_resnet(21)
    with pytest.raises(ValueError, match="depth is 101"):
        imagenet_resnet(101)


class OneLayer(nn.Module):
    """Features are two numbers of an image, logits their negatives."""

    @nn.compact
    def __call__(self, images):
        features = nn.Dense(2)(images.reshape(len(images), -1))
        return features, -features


def test_bytes_of_a_forward_pass():
    # 3 images of 40 numbers in a row; their product, its sum with the bias (in a row) and its negative.
    numbers = 3 * 40 + 3 * 2 + 3 * 2 + 2 + 3 * 2
    assert models.forward_bytes(OneLayer(), (4, 5, 2), 3) == 4 * numbers
    lenet = functools.partial(models.forward_bytes, models.make("lenet5", 10), (28, 28, 1))
    # Beside what each image needs there are kernels, which are rearranged once.
    assert lenet(64) - lenet(32) == lenet(96) - lenet(64) > 0
    with pytest.raises(ValueError, match="cannot read images of 2 x 2 x 1"):
        models.forward_bytes(models.make("lenet5", 10), (2, 2, 1), 3)


def test_of_images_that_are_too_small_it_is_said_which_models_read_them():
    with pytest.raises(ValueError) as error:
        models.shapes(models.make("lenet5", 10), (8, 8, 1))
    said = str(error.value)
    assert said.startswith("LeNet5 cannot read images of 8 x 8 x 1 (")
    fitting = said.partition("take a model made for this size (")[2]
    fitting = fitting.removesuffix("), or larger images").split(", ")
    assert "digits-cnn" in fitting and "lenet5" not in fitting
    for name in fitting:
        model = models.make(name, 10)
        draw = functools.partial(models.init, model, image_shape=(8, 8, 1))
        params, state = jax.eval_shape(draw, jax.random.key(0))
        images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
        run = lambda p, s, x, m=model: models.apply_eval(m, p, s, x)
        assert jax.eval_shape(run, params, state, images)[1].shape == (2, 10)
