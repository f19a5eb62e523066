"""COCO: what is in its pictures, which are kept from tests, and captions scored by CHAIR."""
