"""Scores: image features, FID, KID, the judge network behind mIoU, and the floor that any model must beat."""

# Version of all that computes a score: painting and its noise, extractors, judges, formulas, intervals. Raise it with
# every change by which the same generator scores differently; `tests/test_golden_scores.py` notices most of them.
MEASURE = 2
