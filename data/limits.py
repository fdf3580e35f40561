"""The most that a file of a data set may claim, so that a small one stays small."""

IMAGE_BYTES = 2**28    # of an image file
IMAGE_PIXELS = 2**26   # of a decoded image: 8192 x 8192
PIXELS_PER_BYTE = 200  # of an image of more than SMALL pixels; photographs have 1 to 10
SMALL = 2**24
JSON_BYTES = 2**26     # of dataset.json: that of ImageNet takes 45 MB
