"""The forms of outputs: boxes, colours, panoptic maps, captions, pictures."""
