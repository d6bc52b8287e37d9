"""From one image to another: rigid motion, affine maps, demons, and the standard spaces."""
