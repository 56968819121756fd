"""What is trained, a row each. `params.yaml: train` may set any key of a row; what it sets wins.

`paper-*` rows hold what the paper says (supplement, section 2), `released-*` rows what its released code does. Where
neither says anything, both take what the released code has: batch 5, 200 epochs. The small rows say what they deviate
in.
"""

from __future__ import annotations

from typing import Any

# Paper: Adam betas (0, 0.999), rates 1e-4 / 4e-4, EMA 0.9999, lambda_LM 5. It names neither the first weights nor a
# warm-up. With those of the released code the losses of the first steps explode, and the generator then stands still
# for tens of thousands of steps (docs/performance.md): a gain of 1, and rates that rise over the first 1000 steps.
_PAPER: dict[str, Any] = {
    "batch": 5, "lr_generator": 1e-4, "lr_discriminator": 4e-4, "ema": 0.9999, "losses": {"labelmix": 5.0},
    "init_gain": 1.0, "warmup_images": 5000,
}  # fmt: skip

# Released code: feature matching summed over layers, a patch loss that trains nothing; rates, EMA and lambda_LM by
# the dataset.
_RELEASED: dict[str, Any] = {"batch": 5, "feature_matching": "sum", "patch_gradient": "released"}
_RELEASED_CITYSCAPES: dict[str, Any] = {
    **_RELEASED, "lr_generator": 2e-4, "lr_discriminator": 2e-4, "ema": 0.999, "losses": {"labelmix": 5.0},
}  # fmt: skip
_RELEASED_ADE20K: dict[str, Any] = {
    **_RELEASED, "lr_generator": 4e-4, "lr_discriminator": 4e-4, "ema": 0.9999, "losses": {"labelmix": 10.0},
}  # fmt: skip

# Trained on two CPU cores in minutes. Deviations from the paper: an eighth of the widths and half of the pyramid's;
# the paper's losses at a twentieth (feature matching: a tenth) beside a perceptual and an L1 term, without which
# minutes do not reach the floor (the perceptual one shifted at random, or its strides show as stripes); other rates,
# which fall to 0 over the second half, and beta1 0.9 for the generator; a faster EMA; one fake for both updates; no
# spectral norm in the discriminator, which is too slow a learner with it.
_SMALL: dict[str, Any] = {
    "batch": 8, "generator_width": 8, "pyramid_width": 32, "discriminator_width": 8,
    "discriminator_spectral_norm": False, "shared_fake": True, "feature_matching": "relative", "perceptual_shift": 16,
    "lr_generator": 1e-3, "lr_discriminator": 1e-3, "beta1_generator": 0.9, "decay_from": 0.5, "ema": 0.99,
    "losses": {"pixel": 0.05, "patch": 0.05, "feature": 0.1, "labelmix": 0.05, "perceptual": 10.0, "l1": 3.0},
}  # fmt: skip

# Photos of the training splits, from the paper's section 4.
_CITYSCAPES, _ADE20K, _ADE20K_OUTDOOR = 2975, 20210, 9649
_COCO_STUFF = 118287

PRESETS: dict[str, dict[str, Any]] = {
    "paper-cityscapes": {**_PAPER, "images": 200 * _CITYSCAPES},
    "paper-ade20k": {**_PAPER, "images": 200 * _ADE20K},
    "paper-ade20k-outdoor": {**_PAPER, "images": 200 * _ADE20K_OUTDOOR},
    "released-cityscapes": {**_RELEASED_CITYSCAPES, "images": 200 * _CITYSCAPES},
    "released-ade20k": {**_RELEASED_ADE20K, "images": 200 * _ADE20K},
    "released-ade20k-outdoor": {**_RELEASED_ADE20K, "images": 200 * _ADE20K_OUTDOOR},
    # The paper did not train COCO-Stuff: its settings, over the 100 epochs that SPADE takes (NVlabs/SPADE, issue 51).
    "coco-stuff": {**_PAPER, "images": 100 * _COCO_STUFF},
    "toyscapes": {**_SMALL, "images": 4800, "evaluate_images": 1200},
    "camvid": {**_SMALL, "images": 4800, "evaluate_images": 1200},
}

# What `discriminator: ...` in params.yaml brings along: a row between the preset's and the rest of params.yaml.
DISCRIMINATORS: dict[str, dict[str, Any]] = {
    # "OA" of table 4a: pixel loss and LabelMix.
    "oasis": {"patch_at": "none", "feature_at": "none"},
    # SPADE: hinge and 10 x feature matching over both scales. (Its objective has losses.perceptual 10 on VGG-19 too.)
    "patch": {
        "patch_at": "encoder", "patch_gradient": "keep", "feature_at": "encoder", "feature_matching": "l1",
        "losses": {"pixel": 0.0, "labelmix": 0.0, "patch": 1.0, "feature": 10.0},
    },
}  # fmt: skip
