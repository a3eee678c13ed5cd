"""TensorFlow Lite files: writing, reading, and what devices make of them."""
