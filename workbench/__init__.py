"""Workbench: given the same data and the same budget, which sequence architecture is better, and how sure are we?"""

__version__ = "0.1.0"
