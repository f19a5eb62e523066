"""COCO: its annotations, which pictures are held out, and captions scored by CHAIR."""
