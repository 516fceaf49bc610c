"""Cost models: the work that a plan asks of a device, and the time that it takes."""
