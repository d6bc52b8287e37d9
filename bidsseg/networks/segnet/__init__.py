"""SegNet: the network, what it sees of each voxel, and segmentation in stages."""
