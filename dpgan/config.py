"""The run's settings: `params.yaml`, typed, and the presets that fill what it leaves open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from dpgan.checks import check_losses
from dpgan.errors import UserError
from dpgan.presets import DISCRIMINATORS, PRESETS
from dpgan.settings import Model, load_yaml, parse, unknown_name

PARAMS = Path("params.yaml")

# Where the stages leave what they made; the same paths stand in dvc.yaml.
BUILD = Path("build")


Part = Literal["none", "encoder", "decoder", "both"]  # of a discriminator


class LossWeights(Model):
    """Weights of the training losses; 0 leaves a term out (and out of the computation)."""

    pixel: float = Field(default=1.0, ge=0, description="segmentation loss, equation 3")
    patch: float = Field(default=1.0, ge=0, description="multi-scale patch hinge, equation 5; at patch_at")
    feature: float = Field(default=1.0, ge=0, description="feature matching, equation 6; at feature_at")
    labelmix: float = Field(default=5.0, ge=0, description="lambda_LM, equation 9")
    perceptual: float = Field(default=0.0, ge=0, description="SPADE's perceptual loss; not in the paper")
    l1: float = Field(default=0.0, ge=0, description="mean |fake - real|; not in the paper")


class TrainSettings(Model):
    """Everything that decides what is trained. `preset` fills what is not given."""

    preset: str
    images: int = Field(ge=1, description="real images seen in all, over all workers")
    batch: int = Field(ge=1, description="images a step, over all workers; the last batch may be smaller")
    accumulate: int = Field(
        default=1, ge=1,
        description="micro-batches that a batch is cut into, where memory is short: their gradients add up to the "
        "batch's, class weights and LabelMix stay the batch's, but BatchNorm sees one micro-batch at a time",
    )  # fmt: skip
    generator: Literal["dp", "oasis", "spade"] = Field(default="dp", description="table 4a; spade looks at no noise")
    discriminator: Literal["dp", "oasis", "patch"] = Field(
        default="dp", description="table 4a; patch: SPADE's. Brings a row of presets.DISCRIMINATORS"
    )
    concat_s0: bool = Field(default=True, description="of the dp generator; false: 'w/o cat', supplement's table 3")
    patch_at: Part = Field(default="encoder", description="where the dp discriminator has patch heads, table 4b")
    feature_at: Part = Field(default="decoder", description="whose feature maps are matched, table 4c")
    generator_width: int = Field(default=64, ge=1, description="channels of the last SPADE block (paper: 64)")
    pyramid_width: int = Field(default=64, ge=2, description="channels of the conditioning pyramid (paper: 64)")
    discriminator_width: int = Field(default=64, ge=1, description="channels of the last up block (paper: 64)")
    discriminator_spectral_norm: bool = True
    noise_channels: int = Field(default=64, ge=1)
    losses: LossWeights = LossWeights()
    feature_matching: Literal["mean", "sum", "relative", "l1"] = Field(
        default="mean", description="over layers: mean (paper), sum (released code), relative to their size, l1 (SPADE)"
    )
    patch_gradient: Literal["keep", "released"] = Field(
        default="keep", description="released: the patch loss is logged and trains nothing, as in the released code"
    )
    patch_clamp: bool = Field(default=False, description="generator's patch loss max(1 - score, 0) as in equation 7")
    perceptual_network: Literal["mobilenet_v2", "vgg19"] = Field(
        default="mobilenet_v2", description="vgg19: SPADE's, from the file run.vgg19; mobilenet_v2 comes with its wheel"
    )
    perceptual_shift: int = Field(
        default=0, ge=0, lt=32,
        description="both images are shifted by up to so many pixels, drawn a step, for the perceptual network, whose "
        "strides leave a grid in what is trained otherwise; 16 is the stride of mobilenet_v2's last tap",
    )  # fmt: skip
    shared_fake: bool = Field(default=False, description="one fake for both updates instead of a new one for D")
    lr_generator: float = Field(default=1e-4, gt=0)
    lr_discriminator: float = Field(default=4e-4, gt=0)
    beta1_generator: float = Field(default=0.0, ge=0, lt=1)
    beta1_discriminator: float = Field(default=0.0, ge=0, lt=1)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    init_gain: float = Field(
        default=0.02, gt=0,
        description="gain of the first weights under spectral norm. The networks' outputs do not depend on it, but at "
        "0.02 (SPADE, OASIS) Adam's first update is as large as the weights; 1: a start without loss spikes",
    )  # fmt: skip
    warmup_images: int = Field(default=0, ge=0, description="images over which both rates rise from 0")
    decay_from: float = Field(default=1.0, ge=0, le=1, description="share of the run after which rates fall to 0")
    ema: float = Field(default=0.9999, ge=0, lt=1)
    flip: bool = True
    holdout: int = Field(
        default=64, ge=2,
        description="training pairs kept out for the evaluation while training; at most a third of them (`held_out`)",
    )  # fmt: skip
    evaluate_images: int = Field(default=1000, ge=1, description="images between two evaluations; the best is kept")
    crop: tuple[int, int] | None = Field(default=None, description="height, width of a random crop")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where it is faster, else fp32; fp16 scales the loss"
    )
    fork: str | None = Field(default=None, description="folder of a run, runs/...: start from its newest checkpoint")

    def held_out(self, pairs: int) -> int:
        """How many of so many training pairs are kept out for the evaluation while training.

        That is `holdout`, but at most a third of the pairs, and at least the 2 that KID compares (1 of 2 pairs). The
        number of workers is no part of the rule: a run may resume with another one.
        """
        return min(self.holdout, max(pairs // 3, 2), pairs - 1)

    def generator_arguments(self, num_classes: int) -> dict[str, Any]:
        """The arguments of `build_generator`."""
        own: dict[str, dict[str, Any]] = {
            "dp": {"noise_channels": self.noise_channels, "concat_s0": self.concat_s0},
            "oasis": {"noise_channels": self.noise_channels},
            "spade": {},
        }
        widths = {"width": self.generator_width, "pyramid_width": self.pyramid_width}
        return {"kind": self.generator, "num_classes": num_classes, **widths, **own[self.generator]}

    def discriminator_arguments(self, num_classes: int) -> dict[str, Any]:
        """The arguments of `build_discriminator`."""
        return {
            "kind": self.discriminator,
            "num_classes": num_classes,
            "width": self.discriminator_width,
            "spectral_norm": self.discriminator_spectral_norm,
            "patch_at": self.patch_at,
            "feature_at": self.feature_at,
        }


class RunSettings(Model):
    """How and where to run: it changes nothing in what is trained but rounding, so DVC does not track it."""

    workers: int = Field(default=2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["ddp", "deepspeed"] = Field(default="ddp", description="how the workers' gradients meet")
    zero_stage: Literal[0, 1, 2] = Field(
        default=0, description="deepspeed shards over the workers: 1 the optimizer's state, 2 the gradients too"
    )
    placement: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = Field(
        default="PACK", description="of workers on Ray's nodes; STRICT_SPREAD: each on one of its own"
    )
    cpus_per_worker: int = Field(default=1, ge=1)
    compile: bool = Field(
        default=False, description="torch.compile both networks: the first step takes minutes; for GPUs, which small "
        "batches leave waiting for the next operation",
    )  # fmt: skip
    max_failures: int = Field(default=2, ge=0, description="restarts after a lost worker, and starts in vain")
    start_timeout_s: float = Field(
        default=180, gt=0,
        description="seconds that training waits for workers to start, and for a node in place of a lost one; then it "
        "ends and says what is missing. A container with an image to load needs some minutes",
    )  # fmt: skip
    hang_s: int = Field(
        default=600, gt=0,
        description="seconds that a worker waits for the others, in one exchange; then their stacks are printed and "
        "they are restarted, which counts in max_failures",
    )  # fmt: skip
    accept_code: str | None = Field(
        default=None, min_length=8,
        description="first digits of a hash of code: a run that began under other networks, losses or steps resumes "
        "under this code all the same. The refusal names it, and it accepts no later change",
    )  # fmt: skip
    checkpoint_images: int = Field(default=2000, ge=1, description="images between two checkpoints")
    keep_last: int = Field(default=2, ge=1, description="newest checkpoints that are kept, beside the best one's")
    keep_every: int | None = Field(
        default=None, ge=1, description="the first checkpoint at each multiple stays: runs/finished"
    )
    grace_s: float = Field(default=60, gt=0, description="seconds that SIGTERM and ctrl-c leave for a checkpoint")
    log_images: int = Field(default=200, ge=1, description="images between two log lines")
    data_cache: str | None = Field(
        default=None,
        description="folder on every node, environment variables are filled in there, into which the prepared data is "
        "fetched once a node from the DVC remote; null: build/prepared is a path that all nodes share",
    )
    vgg19: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        default=None,
        description="torchvision's vgg19-dcbb9e9d.pth, for perceptual_network; every worker reads it",
    )


class JudgeSettings(Model):
    """The segmentation network that mIoU is measured with: one trained here on the real photos, or a published one."""

    kind: Literal["trained", "drn105", "upernet101", "transformers"] = Field(
        default="trained",
        description="trained: a small one, for any dataset; drn105: the papers' for Cityscapes; upernet101: theirs for "
        "ADE20K; transformers: a SegFormer or Mask2Former",
    )
    weights: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        default=None, description="of a published judge: a file (drn105), or a folder (upernet101, transformers)"
    )
    sha256: list[Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]] = Field(
        default=[], description="of a published judge: first digits of the sha256 of each file of weights"
    )
    size: tuple[int, int] | None = Field(
        default=None,
        description="height, width it works at; null: trained 1.5x, drn105 256x512 (or 1024x2048), transformers 1x",
    )
    images: int = Field(default=3200, ge=1, description="trained: photos seen in all")
    batch: int = Field(default=16, ge=1, description="trained: photos a step")
    lr: float = Field(default=2e-3, gt=0, description="trained: the highest learning rate")


class EvaluateSettings(Model):
    """What is scored, and with which noise."""

    noise_seed: int = Field(default=0, ge=0)
    noise_seeds: int = Field(
        default=1, ge=1,
        description="noises a label map, from noise_seed on: each score is their mean; with several, their deviation "
        "(table 3) and the diversity stand beside it",
    )  # fmt: skip
    resolutions: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(),
        description="factors on the card's size at which FID and KID are measured too; supplement, table 2: 0.5, 2",
    )
    lpips: Path | None = Field(
        default=None,
        description="folder of alexnet-owt-7be5be79.pth (torchvision's) and alex.pth (LPIPS v0.1): diversity by LPIPS "
        "too, with several noise_seeds",
    )
    objects: bool = Field(
        default=False, description="FID and KID of objects by size too (supplement, table 1): a crop costs an image"
    )
    inception_weights: str | None = Field(
        default=None, description="file weights-inception-2015-12-05-6726825d.pth; null: FID and KID on Lite0"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_old_settings(cls, given: Any) -> Any:
        gone = sorted({"kid_subsets", "kid_subset_size"} & given.keys()) if isinstance(given, dict) else []
        if gone:
            raise ValueError(f"{' and '.join(gone)}: no longer a setting, KID is of all images; delete it")
        if isinstance(given, dict) and "batch" in given:
            raise ValueError("batch: no longer a setting, as many images are computed at once as fit; delete it")
        return given

    @model_validator(mode="after")
    def _lpips_compares(self) -> EvaluateSettings:
        if self.lpips and self.noise_seeds == 1:
            raise ValueError("lpips compares the images of several noises: set noise_seeds to 2 or more")
        return self


class GateSettings(Model):
    """What a candidate must do to become champion, beside what `registry.gate` always asks."""

    class_tolerance: float = Field(
        default=10, ge=0,
        description="points of IoU (percent) by which a class may fall behind the champion's, beyond doubt; of four "
        "short trainings on toyscapes the rarest classes fell behind each other's by up to 7.6",
    )  # fmt: skip
    approval: bool = Field(
        default=False,
        description="whom the gate lets pass stays `challenger` until `dpgan registry promote` crowns it",
    )


class Params(Model):
    """params.yaml. Keys that are not here are refused, with the nearest known one."""

    dataset: str
    raw: str = Field(description="folder of the raw pairs, laid out as the dataset's card says")
    seed: int = Field(default=0, ge=0)
    judge: JudgeSettings = JudgeSettings()
    train: dict[str, Any] | None = Field(
        default_factory=dict, description="keys of TrainSettings; null: nothing is trained, the judge is the last stage"
    )
    run: RunSettings = RunSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    gate: GateSettings = GateSettings()


def load_params(path: Path = PARAMS) -> Params:
    """params.yaml, checked. Raises UserError for unknown keys, wrong types and unknown presets."""
    return parse(Params, load_yaml(path), path)


def train_settings(params: Params, card_preset: str, path: Path = PARAMS) -> TrainSettings:
    """The preset's row with what params.yaml says on top. `preset: null` means the card's.

    A discriminator that params.yaml chooses brings the losses that go with it (`presets.DISCRIMINATORS`), between the
    two. UserError for what cannot go together.
    """
    given = {key: value for key, value in (params.train or {}).items() if value is not None}
    name = given.pop("preset", card_preset)
    if name not in PRESETS:
        raise unknown_name("preset", str(name), PRESETS, where=f"{path}: train.preset")
    rows = [PRESETS[name], DISCRIMINATORS.get(str(given.get("discriminator")), {}), given]
    merged = {key: value for row in rows for key, value in row.items()}
    if isinstance(given.get("losses", {}), dict):  # merged by loss; anything else is for `parse` to refuse
        merged["losses"] = {key: weight for row in rows for key, weight in row.get("losses", {}).items()}
    settings = parse(TrainSettings, {**merged, "preset": name}, Path(f"{path}: train"))
    check_losses(settings, path)
    return settings


def need(path: Path, stage: str) -> Path:
    """`path`, or a UserError that names the stage that makes it."""
    if not path.exists():
        raise UserError(f"{path} is not there; `dvc repro {stage}` makes it")
    return path
