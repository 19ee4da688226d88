"""Stands for ComfyUI's package in tests: the few functions that the pack calls, with ComfyUI's signatures."""
