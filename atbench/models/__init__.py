"""Networks: [0, 1] images in, logits out."""

from atbench.models.batchnorm import BN_MODES, Frozen, attack_mode, capture_batch_statistics
from atbench.models.cnn import CNN
from atbench.models.dtype import Cast, image_type
from atbench.models.heads import Hypersphere
from atbench.models.network import Ensemble, Network
