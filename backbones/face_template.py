"""Where the five points of an aligned face lie: ArcFace's template for 112 x 112 pixels."""

# METHOD 2: x and y of left eye, right eye, nose tip, left and right mouth corner, in image order.
ARCFACE_POINTS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
SIDE = 112
