"""The machine room: a computation written plainly, recorded once, and replayed in arrays that are planned once.

It knows NumPy alone: it may import nothing of the engine but `blocks.arrays`.
"""
