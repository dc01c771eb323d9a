"""Allow-list of the classes and functions that a configuration may build, node by node, by their full names.

None of them runs, fetches or writes what a configuration tells it to, so that a file of somebody else's may name any of
them. The user's own code is allowed beside the list (`instantiate.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


def _named(package: str, names: str) -> frozenset[str]:
    return frozenset(f"{package}.{name}" for name in names.split())


SOURCES = _named(
    "atbench.data",
    "npz.npz digits.digits image_folder.folder image_folder.tiny_imagenet mnist14.mnist14 torchvision_sets.published",
)
AUGMENTATIONS = _named(
    "atbench.data",
    "augment.Brightness augment.Chain augment.Cutout augment.EdgePad augment.GaussianNoise augment.OneOf"
    " augment.PadCropFlip auto_augment.AutoAugment mixup.CutMix mixup.MixUp",
)
MODELS = _named(
    "atbench.models",
    "cnn.CNN eat_mnist.EatMnist plain.ConvNet8 plain.ConvNet9 plain.FastMnist plain.LeNet plain.SsdrlMnist"
    " plain.Strided plain.TradesMnist preact.PreActResNet preact.WRN residual.ResNet torchvision_models.TorchVision"
    " torchvision_models.Wrapped",
)
ATTACKS = _named(
    "atbench.attacks",
    "ascent.gradient_ascent.GradientAttack gradient.pgd.Pgd gradient.pgd.RandomFgsm gradient.apgd.APGD"
    " gradient.apgd.TargetedAPGD gradient.constraint_relaxation.ConstraintRelaxation gradient.di_fgsm.Diverse"
    " gradient.feature.FeatureAttack gradient.gama.GAMA gradient.margin_decomposition.MarginDecomposition"
    " gradient.max_confidence.MaxConfidence gradient.multitargeted.Targeted gradient.odi.ODI gradient.transfer.Transfer"
    " min_norm.cw.CarliniL2 min_norm.deepfool.DeepFool min_norm.fab.FAB min_norm.fab.FABT min_norm.fmn.FMN"
    " min_norm.lbfgs.LBFGS"
    " black_box.noise.Noise black_box.spsa_nes.NES black_box.spsa_nes.SPSA black_box.square.Square foolbox.Foolbox",
)
METHODS = _named(
    "atbench.methods",
    "aaer.Aaer adp.Adp adt_exp.AdtExp adt_exp_am.AdtExpAm adt_imp_am.AdtImpAm adv_pretrain.AdvPretrain ait.Ait"
    " alp.Alp atas.Atas atda.Atda avmixup.AvMixup bat.Bat cat_curriculum.CatCurriculum cat_customized.CatCustomized"
    " ccat.Ccat clp.Clp dkl.Dkl dverge.Dverge dynamic_at.DynamicAt early_stop.EarlyStop eat.Eat elle.Elle"
    " fast_at.FastAt fat.Fat fat_mart.FatMart fat_trades.FatTrades feature_scatter.FeatureScatter fgsm_at.FgsmAt"
    " fgsm_mep.FgsmMep fgsmr.Fgsmr free_at.FreeAt gair_fat.GairFat gairat.Gairat gal.Gal gat.Gat grad_align.GradAlign"
    " hat.Hat iaat.Iaat kd_swa.KdSwa kim_interval.KimInterval kurakin_mixed_batch.KurakinMixedBatch"
    " l1_penalty_at.L1PenaltyAt lbgat.Lbgat llr.Llr mail.MailAt mail.MailMart mail.MailTrades mart.Mart"
    " mlcat.Mlcat mlcat.MlcatLs mma.Mma"
    " msd.Msd multi_grad.MultiGrad multi_norm.MultiNorm nuat.Nuat oaat.Oaat pass_.Pass pgd_at.PgdAt rlfat.Rlfat"
    " rlfat.RlfatTrades rotation_ss.RotationSs rst.Rst sads.Sads sat_r.SatR1 sat_r.SatR2 sat_r.SatR3 score.Score"
    " ssdrl.Ssdrl standard.Standard strong_adversary.StrongAdversary szegedy.Szegedy te.PgdAtTe te.TradesTe tla.Tla"
    " trades.Trades trs.Trs uat.Uat yopo.Yopo",
)
SCHEDULES = _named(
    "atbench.training.schedules",
    "CosineByEpoch Cyclic ExponentialByEpoch InverseTime OneCycle OneCycleByEpoch Piecewise PiecewiseLinear Product"
    " Triangular",
)
PLUS = _named("atbench.training", "weight_averaging.Ema weight_averaging.Swa weight_perturbation.WeightPerturbation")
# Without those that need a closure (LBFGS), sparse gradients (SparseAdam) or matrices alone (Muon).
OPTIMIZERS = _named("torch.optim", "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD")
LAYERS = _named(
    "torch.nn",
    # Activations.
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish PReLU RReLU ReLU"
    " ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold"
    # What learns.
    " Bilinear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Embedding Linear MultiheadAttention"
    " Transformer TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer"
    # Normalisation and dropout.
    " AlphaDropout BatchNorm1d BatchNorm2d BatchNorm3d Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout"
    " GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d LayerNorm LocalResponseNorm RMSNorm SyncBatchNorm"
    # Pools, shapes, containers.
    " AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d AvgPool1d AvgPool2d ChannelShuffle"
    " CircularPad2d ConstantPad2d Flatten Fold FractionalMaxPool2d Identity LPPool2d MaxPool1d MaxPool2d ModuleDict"
    " ModuleList PixelShuffle PixelUnshuffle ReflectionPad2d ReplicationPad2d Sequential Unflatten Unfold Upsample"
    " UpsamplingBilinear2d UpsamplingNearest2d ZeroPad2d"
    # Losses.
    " BCELoss BCEWithLogitsLoss CosineEmbeddingLoss CosineSimilarity CrossEntropyLoss GaussianNLLLoss"
    " HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss MSELoss MarginRankingLoss MultiLabelMarginLoss"
    " MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss PairwiseDistance PoissonNLLLoss SmoothL1Loss SoftMarginLoss"
    " TripletMarginLoss",
)
CLASSIFIERS = _named(
    "torchvision.models",
    "alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201"
    " efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6"
    " efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5"
    " mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf"
    " regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf"
    " regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152"
    " resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5"
    " shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t"
    " swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32"
    " vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2",
)
NETWORKS = MODELS | LAYERS | CLASSIFIERS


@dataclass(frozen=True)
class BuildRule:
    """What one node of the configuration may build.

    names: allowed targets; types: full names of the types that the object must have one of (none: any type);
    partial: the program calls it later with arguments of its own (`_partial_: true`), so that there is no object yet;
    nested: allowed targets of the nodes below it.
    """

    names: frozenset[str]
    types: tuple[str, ...] = ()
    partial: bool = False
    nested: frozenset[str] = frozenset()


_ATTACK = BuildRule(ATTACKS, ("atbench.attacks.Attack", "atbench.attacks.GradientAttack"), nested=ATTACKS)
_OPTIMIZER = BuildRule(OPTIMIZERS, ("torch.optim.Optimizer",), partial=True)
_SCHEDULE = BuildRule(SCHEDULES, ("collections.abc.Callable",), nested=SCHEDULES)
_AUGMENT = BuildRule(AUGMENTATIONS, ("collections.abc.Callable",), nested=AUGMENTATIONS)
# `*` stands for one name or position.
RULES = {
    "dataset.source": BuildRule(SOURCES, ("atbench.data.Source",), nested=SOURCES | AUGMENTATIONS),
    "dataset.augment": _AUGMENT,
    "dataset.augment.*": _AUGMENT,
    "model": BuildRule(NETWORKS, ("torch.nn.Module",), nested=NETWORKS),
    "attack": _ATTACK,
    "eval.attacks.*": _ATTACK,
    "method": BuildRule(METHODS, ("atbench.methods.Method",), nested=NETWORKS | ATTACKS | SCHEDULES),
    "train.optimizer": _OPTIMIZER,
    "train.groups.*.optimizer": _OPTIMIZER,
    "train.schedule": _SCHEDULE,
    "train.groups.*.schedule": _SCHEDULE,
    "plus.*": BuildRule(
        PLUS,
        ("atbench.training.weight_averaging.Average", "atbench.training.weight_perturbation.WeightPerturbation"),
        nested=SCHEDULES,
    ),
}


def rule_for(path: str) -> BuildRule | None:
    """The rule for a dotted path of the configuration; for a path below a node, what may be nested in it. None where
    nothing is built.
    """
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        for pattern, rule in RULES.items():
            expected = pattern.split(".")
            if len(expected) == end and all(name in ("*", part) for name, part in zip(expected, parts, strict=False)):
                return rule if end == len(parts) else BuildRule(rule.nested, nested=rule.nested)
    return None
