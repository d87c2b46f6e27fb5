"""Photos and videos: decoding, detection, landmarks, alignment, measures of each face."""
