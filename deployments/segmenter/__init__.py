"""The segmenter: turns image bytes into boxes and crops."""
