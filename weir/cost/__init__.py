"""Time and size as numbers: what a plan asks of a device, and how long that takes."""
