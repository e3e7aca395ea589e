"""The parts of the few-shot study; `examples/few_shot_vision.py` puts them together.

task: labelled images and who is shown what. language: a vision-language model through the SDK. backbone: a vision
model with a linear head. report: means, bands, picture. Only `task` is known to the others.
"""
