"""What outputs look like: boxes, colours, panoptic maps, captions, pictures."""
