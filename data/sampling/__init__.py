"""Template and image sampling, augmentation and degradations."""
