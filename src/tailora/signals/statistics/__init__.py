"""Statistics: what is summed over the calibration examples, one file each; signals are read from them."""
