"""Data sets as uint8 tensors, augmentation, and the batches that training draws."""

from atbench.data.augment import (
    Augment,
    Brightness,
    Chain,
    Cutout,
    EdgePad,
    GaussianNoise,
    OneOf,
    PadCropFlip,
    View,
    canvas_pad,
)
from atbench.data.batch import Batch, join
from atbench.data.dataset import FloatImages, Images, Source, stratified_subset
from atbench.data.idbh import Idbh
from atbench.data.loader import Shard, Stream, TrainData
from atbench.data.mixup import CutMix, Mix, MixUp
