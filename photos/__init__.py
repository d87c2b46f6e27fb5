"""Photos and videos: decoding, detection, landmarks, alignment, measures of each face."""

# Which faces of a photo are used; the values of --faces.
FACES = ("largest", "central", "all")
