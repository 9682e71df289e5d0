"""One device: model families, tile advance, decoding, video files. Plain classes, no Ray."""
