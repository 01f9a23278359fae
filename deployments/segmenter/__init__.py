"""The segmenter: image bytes to boxes and crops."""
