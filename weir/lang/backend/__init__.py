"""The backends that write a program's text: a Weir engine, or a service over HTTP."""
