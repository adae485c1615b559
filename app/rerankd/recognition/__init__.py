"""Recognises a model by the files of its folder: what changes its input or output is applied, or refused by name.

Reads small files only: no runtime, and of weights only the headers. An accepted folder gives the scores of its authors'
own library; the load probe (app/rerankd/serving/probe.py) checks that.
"""
