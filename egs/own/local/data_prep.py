#!/usr/bin/env python3
"""Makes data/{train,dev,test} of one's own recordings: `steermoe import`."""

import runpy

runpy.run_module("steermoe.bin.import", run_name="__main__")
