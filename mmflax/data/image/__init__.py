"""Image decoding, resizing, preprocessing of published models, augmentation."""
