"""Text-to-image pipelines of diffusers: their parts, read one at a time, and never more than is needed."""
