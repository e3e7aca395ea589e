"""The stages that make a small vision-language model; `examples/make_small_vlm.py` runs them in order.

parts -> drawings (with the teacher) -> tower -> spelling -> voice -> folder -> exam. Each stage reads the files of
those before it and leaves its own in the work folder, so that an interrupted run goes on where it was.
"""
