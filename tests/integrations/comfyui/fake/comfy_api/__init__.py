"""Stands for ComfyUI's package in tests."""
