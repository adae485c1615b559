"""Reads a model folder and says what changes its model's input or output: what is applied, and what is refused by name.

Pure but for reading small files: no runtime is loaded, and no weight beyond its header. A folder that this package
accepts is scored as its authors' own library scores it, or the load probe (app/rerankd/serving/probe.py) finds it out.
"""
