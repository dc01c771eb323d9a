"""Data sets as uint8 tensors on the device, and the batches that training draws from them."""

from atbench.data.augment import PadCropFlip, View
from atbench.data.batch import Batch
from atbench.data.loader import Share, Stream, TrainData
from atbench.data.splits import Images, Source

__all__ = ["Batch", "Images", "PadCropFlip", "Share", "Source", "Stream", "TrainData", "View"]
