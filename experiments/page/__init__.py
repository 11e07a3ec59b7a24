"""A sweep as one HTML file that opens anywhere, without a server or a network.

It may import pictures, record and run, and nothing of sweep or the commands.
"""
