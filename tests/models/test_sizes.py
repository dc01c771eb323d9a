"""Parameters and operations of the networks in conf/model against what is published. No number is computed in full:
networks of shapes alone do not touch memory.

FLOP: two a multiplication and addition, of convolutions and matrix products.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from atbench.config import allow_list, registry
from atbench.config.instantiate import build
from atbench.models import Network
from atbench.models.network import Shape, has_large_stem
from tests.support.nets import count, on_meta, option

CIFAR, IMAGENET, MNIST = (3, 32, 32), (3, 224, 224), (1, 28, 28)
IAAT = {"shortcut": "pool3x3", "norm_affine": False, "head": "convolution"}
OPTIONS = registry.options("model", [registry.conf_dir()])
#: One option of each class of ours.
CLASSES = (
    "cnn", "convnet8", "convnet9", "lenet", "mnist_eat_a", "mnist_fast", "mnist_ssdrl", "mnist_trades",
    "preactresnet50", "resnet50", "strided", "vit_b_16",
    "wrn",
)  # fmt: skip

# For 10 classes on CIFAR and MNIST, 1000 on ImageNet. pytorch-cifar: kuangliu's networks as counted by
# jvlmdr/flax-cifar (ResNetV1, ResNetV2). imgclsmob: osmr/imgclsmob's tables. torchvision: `num_params` of its weights.
PARAMETERS = [
    ("preactresnet18", CIFAR, {}, 11_172_170),  # pytorch-cifar
    ("preactresnet18", CIFAR, {"final_norm": False}, 11_172_170 - 2 * 512),
    ("preactresnet50", CIFAR, {}, 23_513_162),  # pytorch-cifar
    ("preactresnet18", IMAGENET, {}, 11_687_848),  # imgclsmob
    ("preactresnet34", IMAGENET, {}, 21_796_008),  # imgclsmob
    ("preactresnet50", IMAGENET, {}, 25_549_480),  # imgclsmob
    ("resnet18", CIFAR, {}, 11_173_962),  # pytorch-cifar
    ("resnet50", CIFAR, {}, 23_520_842),  # pytorch-cifar
    ("resnet18", IMAGENET, {}, 11_689_512),  # torchvision, as the three below
    ("resnet34", IMAGENET, {}, 21_797_672),
    ("resnet50", IMAGENET, {}, 25_557_032),
    ("resnet152", IMAGENET, {}, 60_192_808),
    ("resnet20", CIFAR, {"shortcut": "pad"}, 269_722),  # akamaster/pytorch_resnet_cifar10; the paper's 0.27 M
    ("resnet20", CIFAR, {}, 272_474),  # imgclsmob
    # RuntianZ/adversarial-robustness-unlabeled, model.py.
    ("resnet32", CIFAR, {"width": 160, "stem_width": 16}, 46_162_714),
    ("resnet32", CIFAR, {"shortcut": "pad"}, 464_154),  # akamaster; the paper's 0.46 M
    ("wrn_28_10", CIFAR, {}, 36_479_194),  # the paper's 36.5 M
    ("wrn_34_10", CIFAR, {}, 46_160_474),  # RobustBench
    ("wrn_32_10", CIFAR, {}, 46_160_474),
    ("wrn_32_10", CIFAR, {"shortcut": "pool", "padding": "same"}, 45_901_914),  # JHL-HUST/RLFAT, model_bn.py, run
    ("wrn_34_20", CIFAR, {}, 184_531_674),  # RobustBench
    ("wrn_70_16", CIFAR, {}, 266_796_506),  # RobustBench
    ("wrn_40_2", CIFAR, {}, 2_243_546),  # the paper's 2.2 M
    ("wrn_28_4", CIFAR, {}, 5_849_050),
    ("wrn", CIFAR, {"depth": 28, "width": 8}, 23_354_842),  # jvlmdr/flax-cifar
    # Counted in the authors' code: google-deepmind/local_linearity_regularizer (as wide as RobustBench's), MadryLab's
    # cifar10_challenge, and yogeshbalaji/Instance_Adaptive_Adversarial_Training.
    ("wrn", CIFAR, {"depth": 40, "width": 8, "stem_width": 128, "shortcut": "projection"}, 35_894_922),
    ("wrn", CIFAR, {"depth": 32, "width": 10, "shortcut": "pool", "activation": "leaky_relu"}, 45_901_914),
    ("wrn", CIFAR, {"depth": 32, "width": 10, "stem_width": 160, **IAAT}, 46_090_740),
    # ftramer/ensemble-adv-training, mnist.py.
    ("mnist_eat_a", MNIST, {}, 3_382_346),
    ("mnist_eat_b", MNIST, {}, 710_218),
    ("mnist_eat_c", MNIST, {}, 4_795_082),
    ("mnist_eat_d", MNIST, {}, 509_410),
    # P2333/Adaptive-Diversity-Promoting, model.py: a member, without the running statistics that Keras counts.
    ("resnet20", CIFAR, {"shortcut": "raw", "conv_bias": True}, 273_066),
    ("densenet121", CIFAR, {}, 6_956_298 + 2 * 64),  # pytorch-cifar, which has no BatchNorm behind its small stem
    ("densenet121", IMAGENET, {}, 7_978_856),  # torchvision
    ("densenet161", IMAGENET, {}, 28_681_000),  # torchvision
    ("inception_v3", (3, 299, 299), {}, 27_161_264 - 3_326_696),  # torchvision, less its auxiliary classifier
    ("vit_b_16", IMAGENET, {}, 86_567_656),  # torchvision
    ("convnext_tiny", IMAGENET, {}, 28_589_128),  # torchvision
    ("torchvision", IMAGENET, {"name": "wide_resnet50_2"}, 68_883_240),
    ("torchvision", IMAGENET, {"name": "googlenet"}, 6_624_904),
    ("lenet", MNIST, {}, 61_706),  # the LeNet-5 of textbooks
    # Padded to 32×32, by hand from mnist/train-mnist-robust-inf.lua of ushaham/adversarialPaper.
    (
        "lenet",
        (1, 32, 32),
        {"channels": [32, 64], "padding": [0, 0], "pools": [3, 2], "hidden": [200]},
        105_506,
    ),
    ("lenet_madry", MNIST, {}, 3_274_634),  # the network of TensorFlow's MNIST tutorial, which Madry et al. took
    ("lenet_madry", MNIST, {"kernel": 3, "padding": [1, 1]}, 320 + 18_496 + 3_212_288 + 10_250),
    ("convnet9", CIFAR, {}, 1_372_234),  # JHL-HUST/ATDA, cifar10.py: modelZ, run
    # Their sources give no count: from their layers by hand.
    ("mnist_trades", MNIST, {}, 320 + 9_248 + 18_496 + 36_928 + 205_000 + 40_200 + 2_010),
    ("mnist_fast", MNIST, {}, 272 + 8_224 + 156_900 + 1_010),
    ("mnist_ssdrl", MNIST, {}, 659_402),  # counted on pfnet-research/ssdrl's
    ("strided", (1, 14, 14), {}, 256 + 32 + 8_192 + 64 + 28_900 + 1_010),  # ours
    ("convnet8", CIFAR, {}, 1_792 + 36_928 + 73_856 + 147_584 + 225_988 + 345_940 + 1_552 + 803_072 + 512 + 2_570),
]

# In GFLOP: speed.md's three were counted on the peers' code, torchvision's are `_ops` of its weights (multiplications).
OPERATIONS = [
    ("preactresnet18", CIFAR, 1.111),
    ("wrn_28_10", CIFAR, 10.49),
    ("wrn_34_10", CIFAR, 13.32),
    ("resnet18", IMAGENET, 2 * 1.814),
    ("resnet50", IMAGENET, 2 * 4.089),
    ("resnet152", IMAGENET, 2 * 11.514),
    ("inception_v3", (3, 299, 299), 2 * 5.713),
    ("convnext_tiny", IMAGENET, 2 * 4.456),
]


def network_of(name: str, shape: Shape, /, **changes: Any) -> Network:
    """The network of a YAML, in shapes alone."""
    channels, side, _ = shape
    given = {"shape": shape, "classes": 1000 if side > 64 else 10, "mean": (0.5,) * channels, "std": (0.5,) * channels}
    made = on_meta(lambda: build({**option(name), **changes}, "model", **given))
    assert isinstance(made, Network)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "changes", "published"), PARAMETERS)
def test_parameters(name: str, shape: Shape, changes: dict[str, Any], published: int) -> None:
    assert count(network_of(name, shape, **changes)) == published


@pytest.mark.parametrize(("name", "shape", "published"), OPERATIONS)
def test_operations(name: str, shape: Shape, published: float) -> None:
    network = network_of(name, shape).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty((1, *shape), device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("name", CLASSES)
def test_one_option_of_each_class_classifies(name: str) -> None:
    """With the options that its YAML has, which PARAMETERS holds against numbers for each."""
    shape = MNIST if name in ("mnist_trades", "lenet") else CIFAR
    network = network_of(name, shape)
    assert network(torch.empty((2, *shape), device="meta")).shape == (2, 10)
    assert isinstance(network.stages[0], torch.nn.Conv2d) or name == "torchvision"


def test_every_option_is_counted() -> None:
    assert {name for name, *_ in PARAMETERS} | {"cnn", "module"} == set(OPTIONS)
    wrapped = {"atbench.models.torchvision_models.Wrapped"}
    assert {option(name)["_target_"] for name in CLASSES} | wrapped == set(allow_list.MODELS)


def test_stems_follow_the_size_of_images() -> None:
    assert [has_large_stem("auto", (3, side, side)) for side in (8, 32, 64, 65, 224)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert has_large_stem("auto", (3, 224, 32)) is False
    assert has_large_stem("large", CIFAR) is True and has_large_stem("small", IMAGENET) is False
