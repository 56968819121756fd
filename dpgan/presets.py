"""What is trained, a row each. `params.yaml: train` may set any key of a row; what it sets wins.

`paper-*` rows hold what the paper says (supplement, section 2). The small ones say what they deviate in.
"""

from __future__ import annotations

from typing import Any

# Paper: Adam betas (0, 0.999), rates 1e-4 / 4e-4, EMA 0.9999, lambda_LM 5; images and batch are not in it.
_PAPER: dict[str, Any] = {
    "lr_generator": 1e-4, "lr_discriminator": 4e-4, "ema": 0.9999, "losses": {"labelmix": 5.0},
}  # fmt: skip

# Trained on two CPU cores in minutes. Deviations from the paper: an eighth of the widths and half of the pyramid's;
# the paper's losses at a twentieth (feature matching: a tenth) beside a perceptual and an L1 term, without which
# minutes do not reach the floor; other rates, which fall to 0 over the second half, and beta1 0.9 for the generator;
# a faster EMA; one fake for both updates; no spectral norm in the discriminator, which is too slow a learner with it.
_SMALL: dict[str, Any] = {
    "batch": 8, "generator_width": 8, "pyramid_width": 32, "discriminator_width": 8,
    "discriminator_spectral_norm": False, "shared_fake": True, "feature_matching": "relative",
    "lr_generator": 1e-3, "lr_discriminator": 1e-3, "beta1_generator": 0.9, "decay_from": 0.5, "ema": 0.99,
    "losses": {"pixel": 0.05, "patch": 0.05, "feature": 0.1, "labelmix": 0.05, "perceptual": 10.0, "l1": 10.0},
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "paper-cityscapes": {**_PAPER, "images": 2975 * 200, "batch": 5},
    "toyscapes": {**_SMALL, "images": 3600, "evaluate_images": 900},
    "camvid": {**_SMALL, "images": 4800, "evaluate_images": 1200},
}
