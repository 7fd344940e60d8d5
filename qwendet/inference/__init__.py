"""Images to detections, by the head or in text."""
