"""The data contract: what is expected of a dataset, a row an expectation, errors first.

An *error* of a pair takes it out of the dataset (quarantine), up to the card's `max_faulty`; beyond that, and where it
is about a whole split, it stops the pipeline: training would crash, learn something wrong, or be scored on what it has
seen. A *warning* is reported. `dpgan.data.facts` says what the columns are, `dpgan.data.validation` runs the suite.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import great_expectations.expectations as gxe

from dpgan.data.scan import MAX_RAMPS
from dpgan.labels import Card

Severity = Literal["error", "warning"]


class Check(NamedTuple):
    """An expectation of the suite.

    `tells` makes the line of a failing row from the columns of `facts`; `beside` is the column of the photo that the
    report shows beside it.
    """

    name: str
    severity: Severity
    expectation: Any
    tells: str
    reason: str
    remedy: str
    beside: str | None = None


def _null(column: str) -> Any:
    return gxe.ExpectColumnValuesToBeNull(column=column)


def _between(column: str, low: float | None = None, high: float | None = None) -> Any:
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)


def pair_checks(card: Card) -> list[Check]:
    """What is expected of every pair: of the rows of `facts.pair_facts`."""
    height, width = card.size
    instances = [
        Check("every pair has its instance map", "warning",
              gxe.ExpectColumnValuesToNotBeNull(column="instance"), "{label}: no instance map beside it",
              "The layout of the card names instance maps, so the copy is not complete.",
              "Restore the file, or drop `layout.instance` from the card: training does not read it."),
    ]  # fmt: skip
    return [
        Check("files are paired", "error", _null("missing"), "{missing}",
              "A photo needs a label map, and a label map a photo.",
              "Restore the missing file from the source, or delete its partner."),
        Check("files can be decoded", "error", _null("broken"), "{broken}",
              "A truncated or corrupt file gives grey blocks or nothing at all.",
              "Copy the file from the source again, `file FILE` says what it is; fetch what a broken link leads to "
              "(`git annex get FILE`, `dvc pull`)."),
        Check("images are not too large to read", "error", _null("oversize"), "{oversize}",
              "Beyond the limit of Pillow, which reads images, a file counts as an attack on the memory.",
              f"Resize photo and label map alike, still above the card's {width}x{height}: the photo smoothly "
              "(`mogrify -resize 50% FILE`), the label map by nearest neighbour (`mogrify -filter point -resize 50% "
              "FILE`)."),
        Check("photos have 8 bits per channel", "error", _null("image_fault"), "{image}: {image_fault}",
              "Training sees 8-bit RGB. Of 16 bits Pillow reads the upper 8, and 12-bit cameras use the lower ones.",
              "Convert the photo to 8-bit RGB, with a range that you choose: 12 bits in 16 by "
              "`mogrify -level 0,6.25% -depth 8 FILE`, full 16 bits by `mogrify -depth 8 FILE`."),
        Check("photos are stored upright", "error",
              gxe.ExpectColumnValuesToBeInSet(column="image_orientation", value_set=[0, 1]),
              "{image}: EXIF orientation {image_orientation}; viewers turn it, training does not",
              "Pixels are read as stored: the label map would not fit what viewers show.",
              "If the label map fits what a viewer shows, turn the pixels (`PIL.ImageOps.exif_transpose`, or "
              "`mogrify -auto-orient FILE`); if it fits the pixels as stored, remove the tag "
              "(`exiftool -Orientation= FILE`)."),
        Check("label maps are stored upright", "error",
              gxe.ExpectColumnValuesToBeInSet(column="label_orientation", value_set=[0, 1]),
              "{label}: EXIF orientation {label_orientation}; viewers turn it, training does not",
              "Pixels are read as stored: the label map would not lie on its photo.",
              "If the label map fits its photo in a viewer, turn its pixels (`PIL.ImageOps.exif_transpose`); if it "
              "fits with the pixels as stored, remove the tag (`exiftool -Orientation= FILE`)."),
        Check(f"label maps hold {card.encoding}", "error", _null("label_fault"), "{label}: {label_fault}",
              f"The card says `encoding: {card.encoding}`; what is stored otherwise would be read as other classes.",
              "Set `encoding` in the card to what all files hold (ids, palette, colors), or convert the files that "
              "differ."),
        Check("photo and label map have one size", "error",
              gxe.ExpectColumnPairValuesToBeEqual(
                  column_A="image_size", column_B="label_size", ignore_row_if="either_value_is_missing"),
              "{image} is {image_size}, {label} is {label_size}",
              "Labels would lie beside the things they name.",
              "Check that both files are of one scene; resize label maps by nearest neighbour only."),
        Check("labels are in the card", "error", _null("unknown"), "{label}: {unknown}",
              "A label that the card does not list belongs to no class.",
              "Add it to `classes` in the card (`void: true` for don't care), or get the edition that the card "
              "describes. Ids that nobody drew come from smooth resizing or JPEG: get the maps anew."),
        Check("label maps are not smoothed", "error", _between("ramps", high=MAX_RAMPS),
              "{label}: {ramps:.0%} of its edges lead over a third class",
              "Smooth resizing or JPEG invents classes along every edge.",
              "Get the maps anew, and resize them by nearest neighbour only."),
        Check("label maps are not all void", "error", _between("labelled_pixels", low=1),
              "{label}: every pixel is void",
              "A map without a labelled pixel trains nothing.",
              "Delete the pair, or check that the maps are of the edition that the card describes."),
        Check("instance maps agree with label maps", "error", _null("instance_fault"), "{instance}: {instance_fault}",
              "One of the two maps is damaged, or of another photo.",
              "Restore both maps from the source, or drop `layout.instance` from the card: training does not read it."),
        Check("no validation photo is in training", "error", _null("twin_across"), "{image} = {twin_across}",
              "The score would be taken on photos that training has seen.",
              "Delete the training pair, or mend `splits` in the card.", beside="twin_across"),
        Check("no validation photo is nearly in training", "error", _null("twin_near"),
              "{image} is nearly {twin_near}{mirrored}",
              "The score would be taken on what training has seen: the same photo, saved anew or mirrored, or the same "
              "scene.",
              "Delete the training pair; split videos by clip, and fixed cameras by place.", beside="twin_near"),
        Check("no photo stands twice in a split", "warning", _null("twin_within"), "{image} = {twin_within}",
              "It counts twice, in training or in the score.",
              "Delete one of the two pairs.", beside="twin_within"),
        Check("label maps hold several classes", "warning", _between("ids_present", low=2),
              "{label}: one class only",
              "A scene of one class is often an unfinished annotation.",
              "Look at the map, and delete the pair if it is not finished."),
        Check("resizing keeps the shape of photos", "warning",
              _between("stretch", 1 / card.max_stretch, card.max_stretch),
              "{image}: {image_size}, its height grows {stretch:.2f}x against its width",
              f"At the card's size, {width}x{height}, things look stretched or squashed.",
              "Choose a `size` in the card with the aspect ratio of the photos, or raise `max_stretch` if that is "
              "meant."),
        *(instances if card.layout.instance else []),
        Check("files decode without a complaint", "warning", _null("note"), "{note}",
              "The file could be read, but is not as it should be.",
              "Look at it; copy it from the source again, or write it anew with a current tool."),
    ]  # fmt: skip


def split_checks(card: Card) -> list[Check]:
    """What is expected of the splits that are left without the quarantined pairs: of `facts.split_facts`."""
    return [
        Check("a split has enough pairs", "error", _between("pairs", low=card.min_pairs),
              f"{{sample_id}} ({{folder}}): {{pairs}} pairs, {card.min_pairs} at least",
              "Too few pairs to train on or to score.",
              "Add pairs; or mend `splits` and `layout`, or lower `min_pairs`, in the card."),
        Check("label maps are not of trainIds", "error", _null("train_ids"), "{sample_id} ({folder}): {train_ids}",
              "The card lists raw ids: every class would be read as another one.",
              "Use the files with raw ids (Cityscapes: *_labelIds.png, not *_labelTrainIds.png), or list the trainIds "
              "as the ids of `classes` in the card."),
        Check("training has every class of validation", "warning", _null("untrained"),
              "{sample_id} ({folder}): {untrained}",
              "Photos would be asked for, and judged on, classes that training never sees.",
              "Move pairs between the splits, or make these classes `void: true` in the card."),
        Check("class shares are those of the accepted version", "warning",
              gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                  column_A="drift_limit", column_B="drift", or_equal=True, ignore_row_if="either_value_is_missing"),
              "{sample_id} ({folder}): {drift:.1%} of the pixels changed their class, {drift_limit:.1%} at most; "
              "most: {moved}",
              "Scores of models trained on either version cannot be compared; a mistake in the data often looks so.",
              "Look at what changed (`dpgan data diff`); if it is meant, `dpgan data accept`."),
        Check("no class came or went since the accepted version", "warning", _null("came_or_went"),
              "{sample_id} ({folder}): {came_or_went}",
              "A class that vanishes, or shows up, is often a mistake in the conversion.",
              "Look at what changed (`dpgan data diff`); if it is meant, `dpgan data accept`."),
    ]  # fmt: skip
