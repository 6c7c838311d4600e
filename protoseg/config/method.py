"""Settings of the method: prototypes, pseudo-labels and losses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from protoseg.records import Section


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
