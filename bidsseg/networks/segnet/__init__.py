"""SegNet: the network, its inputs for each voxel, and segmentation in stages."""
