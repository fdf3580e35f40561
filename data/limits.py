"""The most that a file of a data set may claim, so that a small one stays small."""

IMAGE_BYTES = 2**28    # of an image file
DECODED = 410_000_000  # bytes of memory in which an image is decoded: 102 million pixels of RGB
PIXELS_PER_BYTE = 50   # of an image of more than SMALL pixels; photographs have 1 to 15
SMALL = 2**24
SIDE = 2**16           # pixels of a row or column
SET_PIXELS = 2**24     # of an image in a data set: 4096 x 4096
SCANS = 32             # over the pixels of a JPEG; programs write up to 12
JSON_BYTES = 2**26     # of dataset.json: that of ImageNet takes 45 MB
