"""Who writes a program's text: an engine of ours, or a service over HTTP."""
