"""Programs of many generation calls: the frontend language (SGLang, arXiv 2312.07104, section 2).

A program is a function of a state `s`. What it appends to a state runs in order, different states
run concurrently, and a program waits only when it reads a value. Programs are clients of an engine:
this package knows text and requests, no pages and no plans.
"""
