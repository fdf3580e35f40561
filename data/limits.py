"""The most that a file of a data set may claim, so that a small one stays small."""

IMAGE_BYTES = 2**28    # of an image file
IMAGE_PIXELS = 2**26   # of a decoded image: 8192 x 8192
JSON_BYTES = 2**26     # of dataset.json: that of ImageNet takes 45 MB
