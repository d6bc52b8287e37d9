"""Registration: rigid, affine and deformable transforms, and standard spaces."""
