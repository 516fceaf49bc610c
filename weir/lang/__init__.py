"""Programs of many generation calls: the frontend language (SGLang, arXiv 2312.07104, section 2).

A program is a function of a state `s`. What it appends runs in order, one state beside the other,
and nothing waits until a value is read. Programs are clients of an engine: this package knows text
and requests, no pages and no plans.
"""
