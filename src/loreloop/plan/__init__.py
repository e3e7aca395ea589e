"""plan: what a run would take on given devices, before any is rented: memory, time and cost of every layout.

From a decoder's spec alone, by the arithmetic of `parallel/`. Nothing is loaded and nothing is computed on a device.
"""
