"""Settings of the data: where images and masks are, what their values mean, and how images are viewed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from protoseg.input_rule import ResizeConfig
from protoseg.records import NumberChoice, Section

BUILT_IN_MAPS = ("cityscapes", "ade20k", "voc")
"""Label maps by name, which bring their classes with them."""


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
