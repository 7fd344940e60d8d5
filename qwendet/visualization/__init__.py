"""Pictures: boxes on images, bars, heat maps."""
