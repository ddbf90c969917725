"""Text-to-image pipelines of diffusers, whose parts are read one at a time, and only where they are needed."""
