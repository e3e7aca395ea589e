"""learn/rewards/walls: what the kernel can put around a process that runs code from outside.

Each file knows one means of the kernel, speaks to it through ctypes, and knows nothing of graders or servers.
"""
