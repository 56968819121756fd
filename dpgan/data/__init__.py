"""From raw pairs of photo and label map to the batches that training sees."""
