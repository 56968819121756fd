"""Scores: image features, FID, KID, the judge network behind mIoU, and the floor that any model must beat."""
