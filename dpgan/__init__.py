"""dpgan: a production training pipeline for DP-GAN (label map -> photo)."""

__version__ = "0.1.0"
